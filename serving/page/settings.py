"""What the page is told to watch."""

from __future__ import annotations

import dataclasses
import pathlib
import typing

from serving import channel
from serving.page import document, drift, items, scores
from serving.page.watching import Watch
from tfmm.data.served_examples import LABEL_WINDOW_S
from tfmm.features import FeatureSet
from tfmm.index import store
from tfmm.stages import run_file

_TIMEOUT_S = 60.0  # of a score: a version's first request of a kind may be slow, and nobody waits for it


@dataclasses.dataclass(frozen=True)
class Settings:
    """Where everything is; what is None, or empty, is not shown.

    Attributes:
        addresses: of processes' metrics, by kind of `document.KINDS`.
        index_url: the item index.
        target: host:port of a server's gRPC: the last items are scored there.
        model_name: the model's name there.
        ca_file: PEM of who signed the server's certificate, where it has TLS.
        events_url: of the stream's events: titles and pictures of new items.
        data_dir: Parquet tables: titles and pictures of the others, and a user.
        evaluation_dir: as `tfmm evaluate` wrote it, with the run that was judged.
        served_dir: a log of what was served.
        clicked_dir: events of what was shown and clicked.
        window_s: seconds after an item was shown in which a click counts.
        every_s: seconds between two looks.
    """

    addresses: typing.Mapping[str, typing.Sequence[str]]
    index_url: str | None = None
    target: str | None = None
    model_name: str = "tfmm"
    ca_file: str = ""
    events_url: str | None = None
    data_dir: pathlib.Path | None = None
    evaluation_dir: pathlib.Path | None = None
    served_dir: pathlib.Path | None = None
    clicked_dir: pathlib.Path | None = None
    window_s: float = LABEL_WINDOW_S
    every_s: float = 1.0

    def __post_init__(self) -> None:
        needs = {"--target": self.target, "--events": self.events_url, "--data": self.data_dir}
        if self.index_url is None and (given := [name for name, value in needs.items() if value is not None]):
            raise ValueError(
                f"--index must be named with {', '.join(needs)}, which tell more of its items. Received: "
                f"{', '.join(given)} alone."
            )
        if self.clicked_dir is not None and (self.served_dir is None or self.evaluation_dir is None):
            raise ValueError("--clicked needs --served and --evaluation: clicks of what was served, beside the judged.")


def open_board(settings: Settings) -> tuple[document.Board, typing.Callable[[str], bytes | None]]:
    """Returns the board that was asked for, not started yet, and what gives an item's picture."""
    watches: list[Watch[typing.Any]] = []
    sections: list[document.Sections] = []
    picture: typing.Callable[[str], bytes | None] = lambda item: None  # noqa: E731
    run = None if settings.evaluation_dir is None else run_file.read(settings.evaluation_dir)
    if settings.index_url is not None:
        feature_set = FeatureSet() if run is None else run.feature_set
        scorer = None if settings.target is None else _scorer(settings, feature_set)
        shown = items.Items(settings.index_url, settings.events_url, settings.data_dir, scorer)
        watches += shown.watches
        sections.append(shown.section)
        picture = shown.picture
    if settings.evaluation_dir is not None and settings.served_dir is not None:
        if run is None:
            raise ValueError(f"--evaluation must hold {run_file.FILE}, the run that was judged. Received: none there.")
        folders = settings.evaluation_dir, settings.served_dir
        compared = drift.Drift(*folders, run, settings.index_url, settings.clicked_dir, settings.window_s)
        watches.append(compared.watch)
        sections.append(compared.section)
    return document.Board(settings.addresses, settings.index_url, watches, sections, settings.every_s), picture


def _scorer(settings: Settings, feature_set: FeatureSet) -> scores.Scorer:
    access = channel.Access(ca_file=settings.ca_file)

    def connect() -> scores.ScoringClient:
        index = store.open_store(str(settings.index_url), create=False)
        return scores.ScoringClient(
            str(settings.target), model_name=settings.model_name, index=index, feature_set=feature_set,
            timeout_s=_TIMEOUT_S,
            access=access,
        )  # fmt: skip

    return scores.Scorer(str(settings.target), connect, feature_set, settings.served_dir, settings.data_dir)
