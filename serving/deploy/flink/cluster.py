"""A Flink cluster of several processes on this machine, to run Beam's Python pipelines on: `up` and `down`.

A job manager, task managers, Beam's job server and the pool of its Python workers, each a process of its own that
listens on 127.0.0.1 alone. Java and Maven must be there; the jars come from Maven's repository the first time.

    python serving/deploy/flink/cluster.py up --slots 1 2
    export TFMM_BEAM="$(cat .cache/flink/beam_options)"
    python serving/deploy/flink/cluster.py down
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
import shutil
import signal
import sys
import time
import typing
import urllib.request
import zipfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))  # a command puts only this folder there

from serving.deploy import started

HERE = pathlib.Path(__file__).resolve().parent
FOLDER = HERE.parents[2] / ".cache" / "flink"
HOST = started.HOST
SLOTS = (1, 2)  # of each task manager
UP_WITHIN_S, DOWN_WITHIN_S = 300.0, 20.0
CONF = "flink-conf.yaml"
JAR, AGENT = "flink.jar", "Loopback"
JOB_MANAGER, JOB_SERVER, WORKER_POOL = "job_manager", "beam_job_server", "worker_pool"
MAIN = {
    JOB_MANAGER: "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint",
    "task_manager": "org.apache.flink.runtime.taskexecutor.TaskManagerRunner",
    JOB_SERVER: "org.apache.beam.runners.flink.FlinkJobServerDriver",
}
SHUFFLE_BUFFERS = 64  # of each task that sends; with Flink's 512 TFX's Transform asks for more than 640 MB of network
# Memory of a task manager in MB.
SLOT_HEAP, SLOT_MANAGED, NETWORK, FRAMEWORK, METASPACE, OVERHEAD = 512, 128, 640, 128, 256, 192
OTHER_HEAP = 512  # of job manager and job server
_OPENED = (
    "java.lang", "java.lang.invoke", "java.lang.reflect", "java.net", "java.io", "java.nio", "sun.nio.ch", "java.text",
    "java.time", "java.util", "java.util.concurrent", "java.util.concurrent.atomic", "java.util.concurrent.locks",
)  # fmt: skip
_ACCESS = [f"--add-opens=java.base/{name}=ALL-UNNAMED" for name in _OPENED] + [
    "--add-exports=java.base/sun.net.util=ALL-UNNAMED",
    "--add-exports=java.rmi/sun.rmi.registry=ALL-UNNAMED",
]


def task_manager(number: int) -> str:
    """Returns the name of a task manager's process; they count from 1."""
    return f"task_manager_{number}"


class Cluster:
    """The processes of one cluster, as they are written down in its folder.

    Args:
        folder: gets `lib` (jars), `conf`, `logs`, the ids of the processes, and Beam's options in `beam_options`.
    """

    def __init__(self, folder: str | os.PathLike[str] = FOLDER):
        self.folder = pathlib.Path(folder).resolve()
        self.logs, self._jar = self.folder / "logs", self.folder / "lib" / JAR
        self._processes = started.Processes(self.folder / "processes.json")
        self._options = self.folder / "beam_options"

    @property
    def processes(self) -> dict[str, int]:
        """The ids of the processes that were started, by name."""
        return self._processes.ids

    @property
    def running(self) -> dict[str, int]:
        """The ids of those that are at work."""
        return self._processes.running

    @property
    def beam_options(self) -> list[str]:
        return self._options.read_text().split()

    def up(self, slots: typing.Sequence[int] = SLOTS, jars: pathlib.Path | None = None) -> None:
        """Starts a cluster with a task manager for each number of slots; returns once all have joined.

        Args:
            slots: of each task manager.
            jars: a folder that has them; None: `lib` of this one, where Maven puts them once.
        Raises:
            RuntimeError: it is up already, cannot be started here, or did not come up.
        """
        if self.running:
            raise RuntimeError(f"A cluster is up in {self.folder}. Take it down first: make flink-down")
        self._jar = class_path(jars or self.folder / "lib")
        shutil.rmtree(self.logs, ignore_errors=True)
        self._processes.forget()
        for name in ("logs", "conf", "tmp", "artifacts", "checkpoints"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        rpc, rest, pool = started.free_ports(3)
        (self.folder / "conf" / CONF).write_text(self._settings(rpc, rest))
        try:
            self._start_java(JOB_MANAGER, MAIN[JOB_MANAGER], OTHER_HEAP, *self._flink)
            self._start(WORKER_POOL, [sys.executable, str(HERE / "workers.py"), "pool", str(pool), str(self.logs)])
            for number, count in enumerate(slots, 1):
                self.start_task_manager(number, count)
            of_jobs = [f"--job-host={HOST}", "--job-port=0", "--artifact-port=0", "--expansion-port=0"]
            of_jobs += [f"--artifacts-dir={self.folder / 'artifacts'}", f"--flink-master={HOST}:{rest}"]
            self._start_java(JOB_SERVER, MAIN[JOB_SERVER], OTHER_HEAP, *of_jobs)
            self._await(lambda: self._num_joined() == len(slots) and started.answers(pool) and self._job_port() > 0)
        except BaseException:
            self.down()
            raise
        options = ["--runner=PortableRunner", f"--job_endpoint={HOST}:{self._job_port()}"]
        options += ["--environment_type=EXTERNAL", f"--environment_config={HOST}:{pool}"]
        options += [f"--parallelism={sum(slots)}", f"--flink_master={HOST}:{rest}"]
        self._options.write_text(" ".join(options) + "\n")

    def start_task_manager(self, number: int, slots: int) -> None:
        """Starts one; it joins the job manager by itself, also in the place of one that died."""
        heap, managed, network = SLOT_HEAP * slots, SLOT_MANAGED * slots, NETWORK
        sizes = {
            "framework.heap.size": FRAMEWORK, "task.heap.size": heap, "framework.off-heap.size": FRAMEWORK,
            "task.off-heap.size": 0, "managed.size": managed, "network.min": network, "network.max": network,
            "jvm-metaspace.size": METASPACE, "jvm-overhead.min": OVERHEAD, "jvm-overhead.max": OVERHEAD,
        }  # fmt: skip
        settings = {f"taskmanager.memory.{name}": f"{size}m" for name, size in sizes.items()}
        settings |= {"taskmanager.cpu.cores": f"{slots}.0", "taskmanager.numberOfTaskSlots": str(slots)}
        given = [word for name, value in settings.items() for word in ("-D", f"{name}={value}")]
        direct = f"-XX:MaxDirectMemorySize={FRAMEWORK + network}m"
        self._start_java(
            task_manager(number), MAIN["task_manager"], FRAMEWORK + heap, *self._flink, *given, java=(direct,)
        )

    def kill(self, name: str) -> None:
        """Kills a process at once, as a machine does that fails."""
        self._processes.signal(name, signal.SIGKILL)

    def down(self) -> None:
        """Ends the processes, by their ids, those that ask for work first."""
        self._processes.end(DOWN_WITHIN_S, first=(JOB_SERVER, JOB_MANAGER))
        self._options.unlink(missing_ok=True)

    def ask(self, path: str) -> dict[str, typing.Any]:
        """Returns what Flink's REST interface answers, such as to `jobs/overview`."""
        settings = (self.folder / "conf" / CONF).read_text()
        address = dict(line.split(": ") for line in settings.splitlines())
        with urllib.request.urlopen(f"http://{HOST}:{address['rest.port']}/{path}", timeout=10) as answer:
            return json.load(answer)

    @property
    def _flink(self) -> list[str]:
        return ["--configDir", str(self.folder / "conf")]

    def _settings(self, rpc: int, rest: int) -> str:
        """Returns Flink's settings; a job whose task manager died goes on once its slots are there again."""
        settings = {
            "jobmanager.rpc.address": HOST, "jobmanager.rpc.port": rpc, "jobmanager.bind-host": HOST,
            "rest.address": HOST, "rest.bind-address": HOST, "rest.port": rest,
            "taskmanager.host": HOST, "taskmanager.bind-host": HOST, "io.tmp.dirs": self.folder / "tmp",
            # All tasks of a dead task manager count as one failure here; with a fixed delay each counts for itself.
            "restart-strategy.type": "exponential-delay", "restart-strategy.exponential-delay.initial-backoff": "2 s",
            "restart-strategy.exponential-delay.max-backoff": "10 s", "slot.request.timeout": 120000,
            "resourcemanager.standalone.start-up-time": 2 * 10**10,  # ms, the most; then missing slots fail at once
            "restart-strategy.exponential-delay.attempts-before-reset-backoff": 10,
            "restart-strategy.exponential-delay.reset-backoff-threshold": "30 s",  # at work so long, it is well
            "state.checkpoints.dir": (self.folder / "checkpoints").as_uri(),
            "taskmanager.network.sort-shuffle.min-buffers": SHUFFLE_BUFFERS,
            "heartbeat.interval": 3000, "heartbeat.timeout": 60000,
        }  # fmt: skip
        return "".join(f"{name}: {value}\n" for name, value in settings.items())

    def _start_java(self, name: str, main: str, heap_mb: int, *words: str, java: typing.Sequence[str] = ()) -> None:
        own = [f"-Xmx{heap_mb}m", *java, *_ACCESS, f"-Djava.io.tmpdir={self.folder / 'tmp'}", f"-javaagent:{self._jar}"]
        own += ["-Dorg.slf4j.simpleLogger.showDateTime=true", "-cp", str(self._jar)]
        self._start(name, ["java", *own, main, *words])

    def _start(self, name: str, command: typing.Sequence[str]) -> None:
        self._processes.start(name, command, self.logs / f"{name}.log", self.folder)

    def _job_port(self) -> int:
        """Returns the port on which Beam's job server says that it takes jobs; 0 while it does not."""
        said = re.search(r"JobService started on \S+:(\d+)", (self.logs / f"{JOB_SERVER}.log").read_text())
        return int(said[1]) if said else 0

    def _num_joined(self) -> int:
        """Returns how many task managers the job manager knows; 0 while it does not answer."""
        try:
            return len(self.ask("taskmanagers")["taskmanagers"])
        except OSError:
            return 0

    def _await(self, is_up: typing.Callable[[], bool]) -> None:
        end = time.monotonic() + UP_WITHIN_S
        while not is_up():
            ended = sorted(set(self.processes) - set(self.running))
            if ended or time.monotonic() > end:
                what = f"{', '.join(ended)} ended" if ended else f"not within {UP_WITHIN_S:g} s"
                name = ended[0] if ended else JOB_MANAGER
                last = (self.logs / f"{name}.log").read_text(errors="replace").splitlines()[-5:]
                raise RuntimeError("\n".join([f"The cluster did not come up: {what}. {self.logs} says why:", *last]))
            time.sleep(0.2)


def class_path(folder: pathlib.Path) -> pathlib.Path:
    """Returns one jar that leads to all others, in a folder where Maven has put what `pom.xml` names.

    Beam's job server sends the jars of its class path along with each job, which are 150 MB that task managers have.
    What is made once stays.

    Raises:
        RuntimeError: Java, its compiler or Maven is missing, or failed.
    """
    started.require_tools("Flink", "java", "javac", "mvn")
    with started.alone(folder):
        return _class_path(folder)


def _class_path(folder: pathlib.Path) -> pathlib.Path:
    result, sources = folder / JAR, (HERE / "pom.xml", HERE / "Loopback.java")
    if result.exists() and all(source.stat().st_mtime <= result.stat().st_mtime for source in sources):
        return result
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    started.fetch_jars(sources[0], folder)
    started.prepare("javac", "-cp", f"{folder}/*", "-d", folder, sources[1])
    words = f"Class-Path: {' '.join(sorted(path.name for path in folder.glob('*.jar')))}"
    lines = [words[:70], *(f" {words[start : start + 69]}" for start in range(70, len(words), 69))]
    manifest = "\n".join(["Manifest-Version: 1.0", f"Premain-Class: {AGENT}", *lines, ""])
    aside = result.with_suffix(".part")
    with zipfile.ZipFile(aside, "w") as jar:
        jar.writestr("META-INF/MANIFEST.MF", manifest)
        for compiled in sorted(folder.glob("*.class")):
            jar.write(compiled, compiled.name)
    aside.replace(result)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("up", "down"))
    parser.add_argument("--slots", type=int, nargs="+", default=SLOTS, help="of each task manager")
    parser.add_argument("--folder", default=FOLDER, help="for jars, logs and the ids of the processes")
    options = parser.parse_args()
    cluster = Cluster(options.folder)
    try:
        if options.action == "down":
            cluster.down()
        else:
            cluster.up(options.slots)
            print(f"Flink is up: {len(options.slots)} task managers, logs in {cluster.logs}. Beam's options for it:")
            print(" ".join(cluster.beam_options))
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
