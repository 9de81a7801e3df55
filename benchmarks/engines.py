"""What does Beam's example generation take on each engine: one process, two workers, Flink with one and two slots?

Tables of a size are made by `any_size.generate`. Each side makes the same examples in a process of its own; of that
process and of all that it starts, and of every process of a Flink cluster that is up before the clock starts, CPU time
and the peak of each one's own memory are watched.
"""

import argparse
import contextlib
import pathlib
import subprocess
import sys
import tempfile
import time
import typing

import any_size
import psutil
import recording

from serving.deploy.flink import cluster as flink

LOCAL = {
    "1 worker": ["--runner=FnApiRunner", "--direct_running_mode=in_memory", "--direct_num_workers=1"],
    "2 workers": ["--runner=FnApiRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=2"],
}
SLOTS = {"Flink, 1 slot": (1,), "Flink, 2 slots": (2,)}
EVERY_S = 0.2


class Watched:
    """CPU seconds and peak memory of processes and of all that they start, by what they are."""

    def __init__(self, roots: typing.Mapping[str, int]):
        self._roots = roots
        self._cpu: dict[tuple[str, int], float] = {}
        self._peaks: dict[tuple[str, int], int] = {}
        self._before = 0.0
        self.look()
        self._before = sum(self._cpu.values())

    def look(self) -> None:
        for name, pid in self._roots.items():
            with contextlib.suppress(psutil.Error):
                root = psutil.Process(pid)
                for number, process in enumerate([root, *root.children(recursive=True)]):
                    key = (name if number == 0 else f"worker of {name}", process.pid)
                    with contextlib.suppress(psutil.Error, OSError):
                        times = process.cpu_times()
                        self._cpu[key] = times.user + times.system
                        self._peaks[key] = max(self._peaks.get(key, 0), any_size.own_memory(process.pid))

    def figures(self) -> dict[str, typing.Any]:
        peaks: dict[str, list[float]] = {}
        for (name, _), peak in self._peaks.items():
            peaks.setdefault(name, []).append(peak / 1e6)
        return {"cpu_s": sum(self._cpu.values()) - self._before, "peak_mb": peaks}


def work(data: pathlib.Path, length: int, output: pathlib.Path, options: list[str]) -> None:
    import apache_beam
    from apache_beam.options.pipeline_options import PipelineOptions

    from tfmm.data import beam

    run = any_size.run_of(length)
    with apache_beam.Pipeline(options=PipelineOptions(options)) as root:
        beam.write(root, data, run.data, run.feature_set, output, prefix="{split}")


def measure(data: pathlib.Path, length: int, options: list[str], others: typing.Mapping[str, int]) -> dict:
    """Makes the examples in a process of its own; returns seconds, CPU seconds and peak memory of each process."""
    with tempfile.TemporaryDirectory(dir=data.parent) as output, tempfile.TemporaryFile("w+") as log:
        command = [sys.executable, __file__, "--work", str(data), output, str(length), *options]
        start = time.perf_counter()
        with subprocess.Popen(command, stdout=log, stderr=log) as process:
            watched = Watched({"pipeline": process.pid, **others})
            while process.poll() is None:
                watched.look()
                time.sleep(EVERY_S)
        seconds = time.perf_counter() - start
        if process.returncode:
            log.seek(0)
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {log.read()[-2000:]}")
        return {"seconds": seconds, **watched.figures()}


def on_flink(data: pathlib.Path, length: int, slots: tuple[int, ...]) -> dict:
    with tempfile.TemporaryDirectory(dir=data.parent) as folder:
        cluster = flink.Cluster(folder)
        cluster.up(slots, jars=flink.FOLDER / "lib")
        try:
            return measure(data, length, cluster.beam_options, cluster.processes)
        finally:
            cluster.down()


def main() -> None:
    if sys.argv[1:2] == ["--work"]:
        data, output, length, *options = sys.argv[2:]
        work(pathlib.Path(data), int(length), pathlib.Path(output), options)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--length", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=1, help="rounds of all sides, in turn")
    parser.add_argument("--scratch", help="a folder on a disk with room; the system's where it is not given")
    parser.add_argument("--without-flink", action="store_true", help="where there is no Java")
    given = parser.parse_args()
    rounds: dict[str, list[dict]] = {}
    with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
        data = pathlib.Path(scratch) / "data"
        any_size.generate(given.rows, given.length, data)
        for _ in range(given.repeats):
            for name, options in LOCAL.items():
                rounds.setdefault(name, []).append(measure(data, given.length, options, {}))
                print(name, rounds[name][-1], flush=True)
            for name, slots in {} if given.without_flink else SLOTS.items():
                rounds.setdefault(name, []).append(on_flink(data, given.length, slots))
                print(name, rounds[name][-1], flush=True)
    results = {
        name: {
            "seconds": recording.spread([one["seconds"] for one in found]),
            "cpu_s": recording.spread([one["cpu_s"] for one in found]),
            "peak_mb": found[-1]["peak_mb"],
        }
        for name, found in rounds.items()
    }
    one, two = (results[name]["seconds"]["median"] for name in LOCAL)
    bars = {"speed of 2 workers over 1": recording.bar(one / two, at_least=1.2)}
    facts = {"rows": given.rows, "length": given.length, "engines": results}
    recording.write("engines", __doc__.splitlines()[0], facts, seed=0, bars=bars)


if __name__ == "__main__":
    main()
