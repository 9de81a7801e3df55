"""Whether what is served is still like what the model was judged on: its tiers, scores and clicks."""

from __future__ import annotations

import contextlib
import functools
import json
import pathlib
import time
import typing

import numpy as np
import pyarrow.parquet as pq

from serving.page import cells
from serving.page.watching import FIRST_LOOK_S, Watch
from tfmm import drift
from tfmm.config import RunConfig
from tfmm.data import served
from tfmm.data.served_examples import LABEL_WINDOW_S
from tfmm.evaluate import live, tiers
from tfmm.features import STORED
from tfmm.fingerprints import fingerprint
from tfmm.index import store
from tfmm.labels import LABEL
from tfmm.stages.folders import MULTIMODAL
from tfmm.vectors import Vectors

REQUESTS = 200  # of the log's newest that are looked at
NUM_BINS = 10  # of scores, each with as many of the evaluation's rows
CLICKED_S = 86_400.0  # before the last label window that has ended: of its requests clicks are counted
EVERY_S = 10.0
TRAINING = "evaluation"
_REPORT, _PREDICTIONS = "report.json", "predictions.parquet"


class Reference(typing.NamedTuple):
    """What the evaluation found of the model that was judged."""

    scores: np.ndarray  # float [n]
    labels: np.ndarray  # int [n]
    tiers: dict[str, dict[str, typing.Any]]  # by modality, see `tiers.report`


class Found(typing.NamedTuple):
    """What was found, to be shown."""

    reference: Reference
    scores: dict[live.Version, np.ndarray]  # of the newest requests' candidates
    tiers: dict[str, tiers.Tiers]  # of theirs, by modality
    live: dict[live.Version, live.Slice]  # of what was shown, where clicks are known


class Drift:
    """Compares, now and then, the newest requests with the evaluation.

    Args:
        evaluation_dir: as `tfmm evaluate` wrote it.
        served_dir: a log of what was served, or a sample of it.
        run: that was judged: its features, and what a change is worth (`drift.warn`, `drift.stop`).
        index_url: the item index, whose vectors stand for those that were served; None: no tiers.
        clicked_dir: events of what was shown and clicked; None: no click rate.
        window_s: seconds after an item was shown in which a click counts.
    """

    def __init__(
        self,
        evaluation_dir: pathlib.Path,
        served_dir: pathlib.Path,
        run: RunConfig,
        index_url: str | None = None,
        clicked_dir: pathlib.Path | None = None,
        window_s: float = LABEL_WINDOW_S,
    ) -> None:
        self._evaluation_dir, self._served_dir, self._run = evaluation_dir, served_dir, run
        self._index_url, self._clicked_dir, self._window_s = index_url, clicked_dir, window_s
        self._reference: tuple[list[int], Reference] | None = None  # and when its files were written, in ns
        self.watch = Watch("log", str(served_dir), self._ask, EVERY_S, first_s=FIRST_LOOK_S)

    def _ask(self) -> Found:
        reference = self._judged()
        records = newest_records(self._served_dir, REQUESTS)
        scores: dict[live.Version, list[float]] = {}
        for record in records:
            scores.setdefault((record.model, record.version), []).extend(record.scores)
        shown: dict[live.Version, live.Slice] = {}
        if self._clicked_dir is not None:
            label = self._run.feature_set.label.column
            shown, _ = live.slices(
                self._served_dir, self._clicked_dir, label=label, window_s=self._window_s,
                since=time.time() - self._window_s - CLICKED_S,
            )  # fmt: skip
        by_version = {version: np.array(values) for version, values in scores.items()}
        return Found(reference, by_version, self._tiers(records), shown)

    def _judged(self) -> Reference:
        """Returns the evaluation's, read again where it was written anew."""
        written = [(self._evaluation_dir / name).stat().st_mtime_ns for name in (_REPORT, _PREDICTIONS)]
        if self._reference is None or self._reference[0] != written:
            self._reference = written, read_reference(self._evaluation_dir)
        return self._reference[1]

    def _tiers(self, records: typing.Sequence[served.Served]) -> dict[str, tiers.Tiers]:
        """Returns the tiers of requests' candidates, by the vectors that the index has now of the encoders served."""
        if self._index_url is None or not records:
            return {}
        names = [sequence.item_ids for sequence in self._run.feature_set.sequences]
        pairs = []
        for record in records:
            history = fingerprint([one for name in names for one in record.features.get(name) or ()])
            pairs.append((fingerprint(record.items), history))
        unique = np.unique(np.concatenate([ids for pair in pairs for ids in pair]))
        width = max(len(history) for _, history in pairs)
        behaviors = [np.pad(history, (0, width - len(history))) for _, history in pairs]
        result = {}
        with store.open_store(self._index_url, create=False) as index:
            for modality, encoder in records[0].encoders.items():  # of the newest; those of others are left out
                own = [place for place, one in enumerate(records) if one.encoders.get(modality) == encoder]
                if modality == STORED or not index.has_encoder(modality, encoder):
                    continue
                found = index.look_up({modality: encoder}, unique)[modality]
                targets = np.concatenate([pairs[place][0] for place in own])
                beside = np.concatenate([np.tile(behaviors[place], (len(pairs[place][0]), 1)) for place in own])
                result[modality] = tiers.tiers(targets, beside, functools.partial(_of_known, unique, found))
        return result

    def section(self) -> typing.Iterator[dict[str, typing.Any]]:
        """The section; to be asked by the board."""
        found = None if self.watch.is_silent else self.watch.value
        yield cells.section(
            "drift", "Drift against the evaluation", [] if found is None else self._tables(found), self.watch.notes
        )

    def _tables(self, found: Found) -> list[cells.Cell]:
        reference, scores, labels = found.reference, found.reference.scores, found.reference.labels
        edges = np.unique(np.quantile(scores, np.linspace(0, 1, NUM_BINS + 1)[1:-1])) if len(scores) else np.zeros(0)
        rows = [{
            "what": cells.cell(TRAINING, "held-out rows of the evaluation"), "rows": cells.count(len(scores)),
            "score": _mean(scores), "clicks": cells.number(float(labels.mean()) if len(labels) else None),
            "calibration": cells.number(float(scores.sum() / labels.sum()) if labels.any() else None, 3),
        }]  # fmt: skip
        for (model, version), values in sorted(found.scores.items()):
            told = {"what": cells.cell(f"{model} {version}", f"{model} version {version}, newest candidates")}
            divergence = drift.of_counts(_histogram(values, edges), _histogram(scores, edges))
            told |= {"rows": cells.count(len(values)), "score": _mean(values), "drift": self._divergence(divergence)}
            rows.append(told)
        for (model, version), one in sorted(found.live.items()):
            rows.append({
                "what": cells.cell(f"{model} {version}", f"{model} version {version}, what was shown"),
                "rows": cells.count(one.rows), "score": cells.number(one.mean_score),
                "clicks": cells.number(one.clicks / one.rows),
                "calibration": cells.number(one.mean_score * one.rows / one.clicks if one.clicks else None, 3),
            })  # fmt: skip
        by_tier = []
        for modality, served_tiers in sorted(found.tiers.items()):
            if (trained := reference.tiers.get(modality)) is not None:
                divergence = drift.of_counts(served_tiers.counts.tolist(), trained["counts"])
                by_tier.append({
                    "modality": cells.cell(modality), "drift": self._divergence(divergence),
                    "trained": cells.points(_shares(trained["counts"])),
                    "served": cells.points(_shares(served_tiers.counts)),
                    "pairs": cells.count(int(served_tiers.counts.sum())),
                    "trained_unknown": _unknown(trained["counts"], trained["unknown"]),
                    "unknown": _unknown(served_tiers.counts, served_tiers.unknown),
                })  # fmt: skip
        columns = {"what": "of", "rows": "rows", "score": "mean score", "clicks": "click rate",
                   "calibration": "predicted / observed", "drift": "divergence of scores"}  # fmt: skip
        of_tiers = {"modality": "modality", "drift": "divergence", "trained": "evaluation", "served": "served",
                    "pairs": "pairs served", "trained_unknown": "without a vector, evaluation",
                    "unknown": "without a vector, served"}  # fmt: skip
        return [
            cells.table("Scores and clicks; divergences are Jensen and Shannon's, 0 the same and 1 nothing in common",
                        columns, rows),
            cells.table("Tiers of target and behavior, from the least similar to the most", of_tiers, by_tier),
        ]  # fmt: skip

    def _divergence(self, value: float | None) -> cells.Cell:
        bars = self._run.drift
        if value is None:
            return cells.cell(None)
        level = cells.BAD if value >= bars.stop else cells.WARN if value >= bars.warn else cells.OK
        return cells.number(value, 3, level)


def read_reference(folder: pathlib.Path) -> Reference:
    """Reads what an evaluation found of the model that was judged.

    Raises:
        FileNotFoundError: there is none.
    """
    report = json.loads((folder / _REPORT).read_text())
    name = f"score_{MULTIMODAL}"
    rows = pq.read_table(folder / _PREDICTIONS, columns=[name, LABEL])
    return Reference(rows[name].to_numpy().astype(float), rows[LABEL].to_numpy(), report.get("tiers", {}))


def newest_records(folder: pathlib.Path, count: int) -> list[served.Served]:
    """Returns records of a log's newest files, the newest first, up to `count`."""
    found: list[served.Served] = []
    for path in reversed(served.files(folder)):
        own = []
        for payload in served.payloads(path):
            with contextlib.suppress(ValueError):  # another kind of record stands among them
                own.append(served.parse(payload))
        found += own[::-1]
        if len(found) >= count:
            break
    return sorted(found[:count], key=lambda record: -record.time)


def _of_known(ids: np.ndarray, known: Vectors, wanted: np.ndarray) -> Vectors:
    """Returns the vectors of ids that are all among those known, which ascend; padding has none."""
    places = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    return Vectors(known.rows[places], known.scales[places], known.mask[places] & (ids[places] == wanted))


def _histogram(values: np.ndarray, edges: np.ndarray) -> list[float]:
    return np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1).tolist()


def _shares(counts: typing.Any) -> list[float | None]:
    total = max(1, int(np.sum(counts)))
    return [float(one) / total for one in counts]


def _unknown(counts: typing.Any, unknown: int) -> cells.Cell:
    total = int(np.sum(counts)) + unknown
    return cells.share(unknown / total if total else None)


def _mean(values: np.ndarray) -> cells.Cell:
    return cells.number(float(values.mean()) if len(values) else None)
