"""The command `tfmm page`."""

import os
import re
import signal
import subprocess
import sys

import click.testing
import httpx
import pytest

from tfmm import cli


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_command_serves_while_nothing_runs_until_a_signal(root, tmp_path, number):
    words = ["page", "--server", "127.0.0.1:1", "--index", str(tmp_path / "none.sqlite"), "--port", "0"]
    command = [sys.executable, "-m", "tfmm.cli", *words]
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = re.fullmatch(r"The page: (http://127\.0\.0\.1:\d+/)\n", process.stdout.readline()).group(1)
            assert httpx.get(url, timeout=60).status_code == 200
            assert httpx.get(f"{url}data.json", timeout=60).json()["sections"]
            process.send_signal(number)
            assert process.wait(120) == 0
        finally:
            process.kill()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--host", "0.0.0.0"], "faces a network: give --ssl_config_file, or --allow_insecure"),
        (["--target", "127.0.0.1:8500"], "--index must be named with --target"),
        (["--every", "0"], "0 is not in the range"),
        (["--token_file", "short"], "A token must have at least 16 printable ASCII characters"),
        (["--token_file", "none"], "File 'none' does not exist"),
        (["--token_file", ""], "File '' does not exist"),
    ],
)
def test_command_refuses_in_a_line(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short").write_text("short")
    done = click.testing.CliRunner().invoke(cli.main, ["page", *words])
    assert done.exit_code != 0 and message in done.output, done.output
