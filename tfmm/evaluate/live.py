"""The gate's metrics on live traffic: what versions in service scored, beside what became of it.

Versions that serve at once, such as a canary beside the stable one, have other requests and mostly other users, so that
their difference is not paired: its interval adds the variances of both.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import os
import pathlib
import tempfile
import time
import typing

import numpy as np

from tfmm.data import declared, served_rows, unread
from tfmm.data.served_examples import LABEL_WINDOW_S
from tfmm.evaluate import slices as slices_lib
from tfmm.features import FeatureSet
from tfmm.fingerprints import fingerprint
from tfmm.labels import LABEL
from tfmm.metrics import confidence

METRICS = ("auc", "gauc", "log_loss", "calibration_error")
_Z95 = 1.959963984540054
Version = tuple[str, int]  # model and its number


@dataclasses.dataclass(frozen=True)
class Slice:
    """What one version served, as far as it is known what became of it.

    Attributes:
        requests, rows, clicks, users: how many; a row is an item that was shown.
        mean_score: to be held against clicks / rows.
        metrics: with their interval over users; without those that the rows do not have, such as of one class.
        first_day: the same of items that were shown in the first 24 hours of their `created_at`; None where there are
            none, or no catalog was named.
        unknown_age: rows of items that the named catalog lacks, or of which it does not tell `created_at`, so that
            `first_day` is without them.
    """

    requests: int
    rows: int
    clicks: int
    users: int
    mean_score: float
    metrics: dict[str, confidence.Interval]
    first_day: Slice | None = None
    unknown_age: int = 0


class _Row(typing.NamedTuple):
    """An item that was shown, and what became of it."""

    user: str
    score: float
    label: int
    item: int | str
    request_id: str
    time_s: float  # of the request


class Difference(typing.NamedTuple):
    """A metric of one version minus another's."""

    value: float
    low: float
    high: float


def slices(
    log: str | os.PathLike[str],
    events: str | os.PathLike[str],
    *,
    label: str = LABEL,
    window_s: float = LABEL_WINDOW_S,
    since: float = 0.0,
    until: float | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    time_zone: str = "UTC",
) -> tuple[dict[Version, Slice], list[str]]:
    """Returns what each version served, and what was left out, a line each.

    Args:
        log: folder of records, see `tfmm.data.served`; a sample does as well.
        events: folder of what became of their items.
        label: under which an event says that an item was clicked.
        window_s: seconds after an item was shown in which a click counts.
        since: seconds since 1970, of the first request that counts.
        until: seconds since 1970, by which a row's window must have ended; None: now.
        data_dir: the tables, of which the catalog tells when an item was new; None: `first_day` is not told.
        time_zone: of times in the tables that have none.
    Raises:
        ValueError: the catalog does not tell `created_at`.
    """
    born = None if data_dir is None else _births(data_dir, time_zone)
    labels = served_rows.Labels(label, window_s, time.time() if until is None else until)
    letters = served_rows.Letters(None)
    found: dict[Version, list[_Row]] = collections.defaultdict(list)
    requests: collections.Counter[Version] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        spread = served_rows.Spread(log, events, labels, place, letters, takes_samples=True, since=since)
        for number in range(spread.num_parts):
            for record, shown in spread.rows(number):
                if record.time >= since:
                    version = record.model, record.version
                    requests[version] += 1
                    user = str(record.features.get("user_id"))
                    found[version] += [
                        _Row(user, record.scores[one.place], one.label, record.items[one.place],
                             record.request_id, record.time)
                        for one in shown
                    ]
    said = unread.in_words(spread.unread)
    said += [f"left out: {one}" for one in sorted(letters.found.values(), key=lambda one: -one.count)]
    if spread.early:
        said.append(f"labels: {spread.early:,} items that were shown are not known yet: their window has not ended")
    result = {version: _slice(rows, requests[version]) for version, rows in sorted(found.items())}
    if born is not None:
        for version, one in result.items():
            young, unknown_age = _first_day(found[version], born)
            first_day = _slice(young, len({row.request_id for row in young})) if young else None
            result[version] = dataclasses.replace(one, first_day=first_day, unknown_age=unknown_age)
    return result, said


def difference(one: Slice, other: Slice, metric: str) -> Difference | None:
    """Returns a metric of one version minus another's, with its 95 % interval; None where one does not have it."""
    if metric not in one.metrics or metric not in other.metrics:
        return None
    mine, theirs = one.metrics[metric], other.metrics[metric]
    value = mine.value - theirs.value
    half = _Z95 * math.hypot(mine.standard_error, theirs.standard_error)
    return Difference(value, value - half, value + half)


def _births(data_dir: str | os.PathLike[str], time_zone: str) -> slices_lib.Births:
    born = slices_lib.births(data_dir, declared.tables(FeatureSet()), time_zone)
    if born is None:
        raise ValueError(f"{data_dir} must tell in `created_at` of items when they were new. Received: no such column.")
    return born


def _first_day(rows: typing.Sequence[_Row], born: slices_lib.Births) -> tuple[list[_Row], int]:
    """Returns the rows of items in their first day, and how many are of unknown age."""
    items = fingerprint([row.item for row in rows])
    shown_us = np.array([round(row.time_s * 1e6) for row in rows], np.int64)
    ages = slices_lib.by_age(items, shown_us, born)
    young = [rows[place] for place in np.flatnonzero(ages.get(slices_lib.YOUNG, []))]
    return young, int(np.sum(ages.get(slices_lib.UNKNOWN, 0)))


def _slice(rows: typing.Sequence[_Row], requests: int) -> Slice:
    users, scores, labels = (np.array(values) for values in list(zip(*rows))[:3])
    metrics = {}
    for name in METRICS:
        try:
            metrics[name] = confidence.user_bootstrap(name, labels, scores, users)
        except ValueError:  # such as rows of one class
            continue
    clicks = int(labels.sum())
    return Slice(requests, len(rows), clicks, len(np.unique(users)), float(scores.mean()), metrics)
