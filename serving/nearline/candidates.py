"""Candidates for service: frozen as they were trained, judged on what they have not trained on, by a process apart."""

from __future__ import annotations

import json
import logging
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import typing

import numpy as np
import tensorflow as tf

from serving.nearline.rows import AT, Columns
from tfmm.config import RunConfig
from tfmm.data import examples as data_examples
from tfmm.stages import run_file
from tfmm.stages.folders import MULTIMODAL
from tfmm.training import examples as examples_lib

FOLDER, LAST = "candidates", "last.json"  # in the trainer's workdir, below the model's id; in it, the last result
ORDER, RESULT, TIMES, EXAMPLES = "order.json", "result.json", "times.npy", "examples"
_KEPT = 2  # folders of candidates, the newest
_log = logging.getLogger(__name__)


class Candidates:
    """A folder with candidates by number, and the process that judges one of them at a time.

    A candidate that is ready while another is judged takes its turn after it; where a newer one is ready by then, it is
    passed over. The training does not wait, and what it learns does not depend on any verdict.

    Args:
        folder: made where missing.
        run: what the gate and the export go by.
        order: further facts for `judge`, JSON values.
    """

    def __init__(self, folder: pathlib.Path, run: RunConfig, order: typing.Mapping[str, typing.Any]):
        self._folder, self._run, self._order = folder, run, dict(order)
        self._process: subprocess.Popen[bytes] | None = None
        self._number = 0  # of the one that is judged
        folder.mkdir(parents=True, exist_ok=True)

    def freeze(self, number: int, save_model: typing.Callable[[pathlib.Path], None], times_s: np.ndarray) -> None:
        """Keeps a model as it stands.

        Args:
            number: of the candidate; the same number is the same model.
            save_model: writes it into a folder.
            times_s: float64 [n], when the impressions were that it knows and no pushed model does.
        """
        place = self._folder / str(number)
        if (place / RESULT).exists() or (place / ORDER).exists():
            return  # before a restart
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        np.save(place / TIMES, times_s)
        save_model(place / MULTIMODAL)

    def submit(self, number: int, rows: Columns) -> None:
        """Lets a frozen candidate be judged on rows, raw columns."""
        place = self._folder / str(number)
        if not (place / RESULT).exists() and (place / MULTIMODAL).is_dir():
            files = place / EXAMPLES
            files.mkdir(exist_ok=True)
            columns = {name: values for name, values in rows.items() if name != AT}
            with tf.io.TFRecordWriter(str(files / "eval-00000-of-00001.tfrecord.gz"), "GZIP") as writer:
                for example in data_examples.serialize(columns):
                    writer.write(example)
            run_file.write(self._run, place)
            temporary = place / f".{ORDER}"
            temporary.write_text(json.dumps(self._order))
            temporary.replace(place / ORDER)

    def poll(self) -> tuple[int, dict[str, typing.Any], np.ndarray] | None:
        """Starts what is ready, unless one is judged; returns number, result and times of one that has ended."""
        if self._process is not None:
            if self._process.poll() is None:
                return None
            code, self._process, place = self._process.returncode, None, self._folder / str(self._number)
            if code == -signal.SIGTERM and not (place / RESULT).exists():
                return None  # with its service, perhaps, and before us: it is judged when we go on
            if not (place / RESULT).exists():
                failed = {"passed": False, "reasons": ["the process that judges it failed, see the log"]}
                (place / RESULT).write_text(json.dumps(failed))
            result = json.loads((place / RESULT).read_text())
            temporary = self._folder / f".{LAST}"
            temporary.write_text(json.dumps({**result, "candidate": self._number}))
            temporary.replace(self._folder / LAST)
            return self._number, result, np.load(place / TIMES)
        ready = [number for number in self._numbers() if self._is_ready(number)]
        for number in ready[:-1]:
            _log.info("candidate %d is passed over: candidate %d is ready", number, ready[-1])
            (self._folder / str(number) / RESULT).write_text(json.dumps({"passed": False, "reasons": ["passed over"]}))
        if ready:
            self._number = ready[-1]
            self._process = subprocess.Popen(
                [sys.executable, "-m", "serving.nearline.judge", str(self._folder / str(self._number))],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        return None

    def clean(self) -> None:
        """Removes what is old."""
        for number in self._numbers()[:-_KEPT]:
            if (self._folder / str(number) / RESULT).exists() or not self._is_ready(number):
                shutil.rmtree(self._folder / str(number), ignore_errors=True)

    @property
    def is_judging(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def close(self) -> None:
        """Ends the process that judges; that candidate is judged after the next start."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait()

    def _numbers(self) -> list[int]:
        return sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdigit())

    def _is_ready(self, number: int) -> bool:
        place = self._folder / str(number)
        return (place / ORDER).exists() and not (place / RESULT).exists()


def last_verdict(work_dir: pathlib.Path) -> tuple[int, dict[str, typing.Any]] | None:
    """Returns number and result of the candidate that was judged last, of a trainer's workdir; None: there is none."""
    found = sorted(work_dir.glob(f"*/{FOLDER}/{LAST}"), key=lambda path: path.stat().st_mtime)
    result = json.loads(found[-1].read_text()) if found else None
    return result and (result["candidate"], result)


def eval_pattern(folder: pathlib.Path) -> str:
    """Returns the pattern of the rows that a candidate is judged on."""
    return examples_lib.split_pattern(folder / EXAMPLES, "eval")
