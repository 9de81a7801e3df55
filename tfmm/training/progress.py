"""How a long stage says where it is: one callable, `progress(stage, done, total, **metrics)`."""

from __future__ import annotations

import json
import os
import pathlib
import time
import typing

NOTE = "note"  # key of a line of progress


class Progress(typing.Protocol):
    """Called now and then by a stage.

    Args:
        stage: the stage's name, as the caller of the stage chose it.
        done: int >= 0, units of work finished (steps, rows, ...).
        total: int, units of work in all; 0 where that is not known yet.
        note: a sentence that must be seen, such as where a training goes on from; "": none.
        **metrics: floats worth showing, such as loss, epoch or examples_per_s.
    """

    def __call__(self, stage: str, done: int, total: int, note: str = "", **metrics: float) -> None: ...


def silent(stage: str, done: int, total: int, note: str = "", **metrics: float) -> None:
    """Reports nothing; the default everywhere."""
    del stage, done, total, note, metrics


def jsonl(path: str | os.PathLike[str]) -> Progress:
    """Returns a Progress that appends one JSON object a line to `path`, for another process to follow.

    Each line is one write in append mode, so that several processes may share the file and a reader never
    sees two lines mixed. Keys: time (seconds since 1970), stage, done, total, the note where there is one, and the
    metrics.

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "progress.jsonl"
    >>> jsonl(path)("scl", 3, 10, loss=0.5)
    >>> [(line["stage"], line["done"], line["loss"]) for line in read_jsonl(path)]
    [('scl', 3, 0.5)]
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)

    def report(stage: str, done: int, total: int, note: str = "", **metrics: float) -> None:
        values: dict[str, float | str] = {name: float(value) for name, value in metrics.items()}
        if note:
            values[NOTE] = note
        line = json.dumps(
            {"time": round(time.time(), 3), "stage": stage, "done": done, "total": total, **values}
        )
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, (line + "\n").encode())
        finally:
            os.close(descriptor)

    return report


def lines(write: typing.Callable[[str], object], interval_s: float = 2.0) -> Progress:
    """Returns a Progress that writes a line of text every `interval_s` seconds, at a stage's end, and for each note.

    >>> lines(print)("make", 4, 4, loss=0.51234)
    make: 4/4 loss=0.5123
    """
    last = 0.0

    def report(stage: str, done: int, total: int, note: str = "", **metrics: float) -> None:
        nonlocal last
        if note:
            write(f"{stage}: {note}")
        elif time.monotonic() - last >= interval_s or done == total:
            last = time.monotonic()
            write(f"{stage}: {done}/{total or '?'} " + " ".join(f"{k}={v:.4g}" for k, v in metrics.items()))

    return report


def read_jsonl(path: str | os.PathLike[str]) -> list[dict[str, typing.Any]]:
    """Returns the reports in a file that `jsonl` writes; a line still being written is left out."""
    lines = pathlib.Path(path).read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines]
