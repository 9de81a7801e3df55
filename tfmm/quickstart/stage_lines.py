"""One line per stage with its time, while a run of the DAG goes on; nothing here takes TensorFlow to load."""

from __future__ import annotations

import json
import pathlib
import time
import typing

from rich import console as rich_console
from rich import progress as rich_progress
from rich import table as rich_table

from tfmm.training import progress

TITLES = {
    "Marketplace": "Make the marketplace",
    "Dataset": "Take the data",
    "DataCheck": "Check the tables",
    "PairBuilder": "Build query -> purchase pairs",
    "Encoders": "Take the encoders",
    "Parent_id": "Take the ID-only model",
    "Parent_multimodal": "Take the multimodal model",
    "SCLTrainer": "Pre-train the encoders (SCL)",
    "CatalogEmbedder": "Embed the catalog (Beam)",
    "ExampleGenerator": "Generate examples (Beam)",
    "StatisticsGen": "Statistics",
    "FeatureSchema": "Schema",
    "ExampleValidator": "Validate the examples",
    "AnomalyCheck": "Compare with the span before",
    "Transform": "Transform",
    "MAKETrainer": "Pre-train MAKE",
    "IDTrainer": "Train the ID-only model",
    "MultimodalTrainer": "Train the multimodal model",
    "ModelGate": "Evaluate and judge",
    "InfraCheck": "Load it as a server does",
    "Pusher": "Push",
}


class Events:
    """Reads a progress file as it grows."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0

    def new(self) -> list[dict[str, typing.Any]]:
        """Returns the complete lines that were added since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            lines = file.read().split(b"\n")
        complete = lines[:-1]
        self._offset += sum(len(line) + 1 for line in complete)
        return [json.loads(line) for line in complete if line.strip()]


class StageLines:
    """Shows nodes and the training inside them as lines with bars and times; in a log file, as finished lines.

    Args:
        console: where to draw.
        titles: of stages, where they differ from `TITLES`.
    """

    def __init__(self, console: rich_console.Console, titles: typing.Mapping[str, str] | None = None) -> None:
        self._titles = {**TITLES, **(titles or {})}
        self._progress = rich_progress.Progress(
            rich_progress.SpinnerColumn(finished_text="[green]✓"),
            rich_progress.TextColumn("{task.description}", table_column=rich_table.Column(min_width=29, no_wrap=True)),
            rich_progress.BarColumn(bar_width=16),
            rich_progress.TimeElapsedColumn(),
            rich_progress.TextColumn("{task.fields[note]}", table_column=rich_table.Column(no_wrap=True)),
            console=console,
            disable=not console.is_terminal,
        )
        self._console = console
        self._tasks: dict[str, rich_progress.TaskID] = {}
        self._started: dict[str, float] = {}
        self._current = ""
        self.seconds: dict[str, float] = {}

    def __enter__(self) -> StageLines:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def start(self, stage: str) -> None:
        self._current = stage
        self._started[stage] = time.monotonic()
        self._tasks[stage] = self._progress.add_task(self._titles.get(stage, stage), total=None, note="")

    def finish(self, stage: str, note: str | None = None) -> None:
        self.seconds[stage] = time.monotonic() - self._started[stage]
        self._progress.update(self._tasks[stage], total=1, completed=1)
        if note is not None:
            self._progress.update(self._tasks[stage], note=note)
        if not self._console.is_terminal:
            self._console.print(f"{self._titles.get(stage, stage):<30}{self.seconds[stage]:7.1f} s  {note or ''}")

    def remark(self, text: str) -> None:
        """Prints what concerns no stage."""
        self._console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)

    def show(self, event: typing.Mapping[str, typing.Any]) -> None:
        """Takes one event of the progress file."""
        stage, done, total = event["stage"], event["done"], event["total"]
        if stage.startswith("node:"):
            node = stage.removeprefix("node:")
            if not done:
                self.start(node)
            elif node in self._tasks:
                self.finish(node)
        elif self._current:
            known = ("time", "stage", "done", "total", progress.NOTE)
            metrics = " ".join(f"{name} {value:.4g}" for name, value in event.items() if name not in known)
            note = f"{stage}: {event.get(progress.NOTE) or metrics}"
            if progress.NOTE in event and not self._console.is_terminal:
                self._console.print(note, markup=False, highlight=False)
            self._progress.update(self._tasks[self._current], total=total or None, completed=done, note=note)
