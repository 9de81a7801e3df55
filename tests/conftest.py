"""What every test may use: real data beside the checkout, and one hypothesis profile."""

import gc
import os
import pathlib
import shutil
import subprocess
import sys
import time
import typing
import urllib.parse

import hypothesis
import pytest

from serving.deploy import started
from serving.deploy.redis import server as redis

ROOT = pathlib.Path(__file__).resolve().parents[1]

# No deadline: the first example compiles graphs, and machines are shared.
hypothesis.settings.register_profile(
    "tfmm", deadline=None, max_examples=50, print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large])
hypothesis.settings.load_profile("tfmm")


def pytest_collection_finish() -> None:
    """Lets collections of garbage go through what tests make, and not through all that they import."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def root() -> pathlib.Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session", autouse=True)
def java_for_seconds():
    """Servers in Java live for seconds here: they compile once, and collect garbage in one thread."""
    with pytest.MonkeyPatch.context() as patch:
        others = os.environ.get("JAVA_TOOL_OPTIONS", "")
        patch.setenv("JAVA_TOOL_OPTIONS", f"{others} -XX:TieredStopAtLevel=1 -XX:+UseSerialGC".strip())
        yield


@pytest.fixture
def install_entry_point(tmp_path, monkeypatch):
    """Returns a function that installs a package of somebody's own, for processes of the test too."""

    def install(folder: pathlib.Path, group: str, line: str) -> None:
        installed = tmp_path / "site" / "own_package-1.dist-info"
        installed.mkdir(parents=True)
        (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: own-package\nVersion: 1\n")
        (installed / "entry_points.txt").write_text(f"[{group}]\n{line}\n")
        folders = [str(installed.parent), str(folder)]
        monkeypatch.setattr(sys, "path", [*folders, *sys.path])
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*folders, os.environ.get("PYTHONPATH", "")]))

    return install


class RedisServer:
    """A Redis of a test's own, which keeps what it was told across kill -9."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self.port = 0
        self.process: subprocess.Popen | None = None

    def start_anew(self, *options: str) -> None:
        """Takes a port that nobody has, and returns once the server answers."""
        end = time.monotonic() + 300
        while time.monotonic() < end:
            (self.port,) = started.free_ports(1)
            self.start(*options)
            while self.process.poll() is None and time.monotonic() < end:
                if "Ready to accept connections" in (self._folder / "log").read_text():
                    return
                time.sleep(0.01)
        self.kill()
        raise TimeoutError((self._folder / "log").read_text()[-2000:])

    def start(self, *options: str) -> None:
        """Starts it on its port, and does not wait for it."""
        with (self._folder / "log").open("a") as log:
            self.process = subprocess.Popen(redis.command(self.port, self._folder, *options), stdout=log)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def url(self, prefix: str = "{tfmm}", options: str = "") -> str:
        return f"redis://127.0.0.1:{self.port}/0?{urllib.parse.urlencode({'prefix': prefix})}{options}"


@pytest.fixture(scope="session")
def make_redis(tmp_path_factory) -> typing.Iterator[typing.Callable[..., RedisServer]]:
    """Returns a function that starts a Redis with options of its own."""
    if shutil.which(redis.PROGRAM) is None:
        pytest.skip(f"{redis.PROGRAM} is not on this machine")
    servers = []

    def make(*options: str) -> RedisServer:
        server = RedisServer(tmp_path_factory.mktemp("redis"))
        servers.append(server)
        server.start_anew(*options)
        return server

    yield make
    for server in servers:
        server.kill()


@pytest.fixture(scope="session")
def redis_server(make_redis) -> RedisServer:
    """The Redis that tests share, each with a prefix of its own."""
    return make_redis()


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder with the real data sets; it lies beside the checkout and is no part of it."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("the real data sets (../shared/data) are not on this machine")
    return path


BY_HAND = """
import sys
from tfmm import cli
for words in [line.split() for line in sys.stdin]:
    try:
        cli.main(words, standalone_mode=False)
    except SystemExit as end:
        assert not end.code, words
assert "tfx" not in sys.modules
"""


@pytest.fixture(scope="session")
def run_commands(root):
    """Runs `tfmm` commands in a folder, in one process that never imports TFX; returns what they print."""

    def run(folder: pathlib.Path, *commands: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", BY_HAND], input="\n".join(commands), cwd=folder, text=True, capture_output=True,
            env={**os.environ, "PYTHONPATH": str(root)}, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        return done.stdout

    return run
