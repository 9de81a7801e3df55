"""Slices of an evaluation: by the item's age, the length of the history, and declared features."""

from __future__ import annotations

import math
import os
import typing

import numpy as np

from tfmm import metrics
from tfmm.data import as_known, declared, instants, schema, times
from tfmm.data import shards as shards_lib
from tfmm.features import Feature, FeatureSet
from tfmm.fingerprints import fingerprint
from tfmm.modalities import UNDECLARED, ModalitySet
from tfmm.training import examples as examples_lib
from tfmm.training.labels import weights_of

AGE, HISTORY = "item_age", "history"  # by name of what is sliced; the others are features
YOUNG, UNKNOWN = "< 24 h", "unknown"  # of ages
NO_HISTORY = "none"
DAY_US = 86_400_000_000
MAX_VALUES = 8  # of a feature: the most frequent ones; the others are one slice
REPLICATES = 200  # draws of users for an interval
OTHERS, MISSING = "others", "missing"
_PIECE = 100_000  # rows whose histories are read at once
Masks = dict[str, dict[str, np.ndarray]]
Folder = str | os.PathLike[str]


class Births(typing.NamedTuple):
    """When items were new, int64 [n] each: their fingerprints, ascending, and microseconds since 1970."""

    ids: np.ndarray
    created_us: np.ndarray  # `instants.NULL` where the catalog does not say


class Sliced(typing.NamedTuple):
    """By what an evaluation is sliced.

    Attributes:
        names: of features, see `declared_values.sliceable`.
        data_dir: the tables: ages of items, and the words of ids that are strings; None: neither.
        modality_set, time_zone: of the tables.
    """

    names: typing.Sequence[str] = ()
    data_dir: Folder | None = None
    modality_set: ModalitySet = UNDECLARED
    time_zone: str = "UTC"


def masks(files: typing.Sequence[str], feature_set: FeatureSet, sliced: Sliced) -> Masks:
    """Returns which of the evaluation rows each slice has: bool [n] per thing sliced and slice.

    - `item_age`: the first 24 hours of an item in the catalog, later, and unknown, where `data_dir` has `created_at`.
    - `history`: no behavior, up to the median of the others, more; of all sequences together.
    - a feature: its most frequent values, or quarters of a number; what is missing is a slice of its own.

    Histories are read in pieces, so that memory grows by a few bytes a row and slice.

    Args:
        files: of the evaluation examples.
        feature_set: what they hold.
        sliced: by what.
    """
    names, data_dir, modality_set, time_zone = sliced
    of_features = {column.name: column for column in feature_set.columns if column.sequence is None}
    tables = declared.tables(feature_set, modality_set)
    found: Masks = {}
    if data_dir is not None:
        rows = examples_lib.read_columns(files, feature_set, ("item_id", "timestamp"))
        if (born := births(data_dir, tables, time_zone)) is not None:
            found[AGE] = by_age(rows["item_id"], rows["timestamp"], born)
    found[HISTORY] = _by_length(_history_lengths(files, feature_set))
    for name in names:
        values = examples_lib.read_columns(files, feature_set, (name,))[name]
        if of_features[name].is_float:
            found[name] = _by_quarter(values)
        else:
            words = {} if data_dir is None else _words(of_features[name].feature, data_dir, tables, time_zone)
            found[name] = _by_value(values, words)
    return found


def report(
    found: Masks,
    scores: typing.Mapping[str, np.ndarray],
    labels: np.ndarray,
    user_ids: np.ndarray,
    baseline: str,
    weights: np.ndarray | None = None,
) -> dict[str, dict[str, typing.Any]]:
    """Returns per thing sliced and slice: `rows`, `clicks`, and per model `auc`, `gauc`, `logloss`, `calibration`, and
    of the others than the baseline `gauc_gain` with `low` and `high` over users; None for what the rows cannot give.

    Args:
        found: as `masks` returns it.
        scores: per model, probability float [n].
        labels, user_ids: [n].
        baseline: the model that others are compared with.
        weights: float [n], how many rows each stands for; None: one.
    """
    return {
        name: {part: _of_rows(mask, scores, labels, user_ids, baseline, weights) for part, mask in parts.items()}
        for name, parts in found.items()
    }


def _of_rows(
    mask: np.ndarray,
    scores: typing.Mapping[str, np.ndarray],
    labels: np.ndarray,
    user_ids: np.ndarray,
    baseline: str,
    weights: np.ndarray | None,
) -> dict[str, typing.Any]:
    label, user, weight = labels[mask], user_ids[mask], weights_of(weights, mask)
    counted = label if weight is None else label[weight > 0]
    clicks = int(counted.sum())
    models: dict[str, dict[str, typing.Any]] = {}
    has_both = 0 < clicks < len(counted)
    mixed = has_both and not np.isnan(metrics.user_aucs(label, scores[baseline][mask], user, weight).auc).all()
    for model, of_model in scores.items():
        score = of_model[mask]
        models[model] = {
            "auc": metrics.auc(label, score, weight) if has_both else None,
            "gauc": metrics.gauc(label, score, user, weights=weight).value if mixed else None,
            "logloss": metrics.log_loss(label, score, weight) if len(counted) else None,
            "calibration": metrics.calibration(label, score, weight) if clicks else None,
        }
        if model != baseline:
            models[model]["gauc_gain"] = None
            if mixed and len(np.unique(user)) >= metrics.MIN_GROUPS:
                gain = metrics.user_bootstrap(
                    "gauc", label, score, user, baseline_scores=scores[baseline][mask], weights=weight,
                    replicates=REPLICATES,
                )  # fmt: skip
                bounds = {key: getattr(gain, key) for key in ("value", "low", "high")}
                models[model]["gauc_gain"] = {key: v if math.isfinite(v) else None for key, v in bounds.items()}
    return {"rows": int(mask.sum()), "clicks": clicks, "models": models}


def births(data_dir: Folder, tables: schema.Tables, time_zone: str) -> Births | None:
    """Reads when the catalog's items were new; None where it has no `created_at`.

    Args:
        data_dir: the tables.
        tables: what they hold.
        time_zone: of times without one.
    """
    parts = schema.table_parts(os.fspath(data_dir), "items", tables)
    if not all("created_at" in part.schema.names for part in parts):
        return None
    table = as_known.read_table(os.fspath(data_dir), "items", time_zone, ["item_id"], tables)
    ids = fingerprint(table["item_id"].to_pylist())
    groups = as_known.row_groups(os.fspath(data_dir), "items", time_zone, tables)
    told = [(times.starts(part, "items", group, time_zone), rows) for part, group, rows in groups]
    pieces = [all_rows if rows is None else all_rows[rows] for all_rows, rows in told]
    created = np.concatenate([np.zeros(0, np.int64), *pieces])
    order = np.argsort(ids, kind="stable")
    return Births(ids[order], created[order])


def by_age(items: np.ndarray, shown_us: np.ndarray, born: Births) -> dict[str, np.ndarray]:
    """Returns which rows show an item in its first 24 hours in the catalog, `YOUNG`, later, and of `UNKNOWN` age.

    Args:
        items: int64 [n], fingerprints.
        shown_us: int64 [n], microseconds since 1970.
        born: of the catalog.
    Returns:
        bool [n] per slice that has rows.
    """
    places, known = as_known.find(items, born.ids)
    at = np.full(len(items), instants.NULL, np.int64)
    at[known] = born.created_us[places[known]]
    known, age = at != instants.NULL, shown_us - np.where(at == instants.NULL, 0, at)
    young = known & (age < DAY_US)
    return _not_empty({YOUNG: young, ">= 24 h": known & ~young, UNKNOWN: ~known})


def _history_lengths(files: typing.Sequence[str], feature_set: FeatureSet) -> np.ndarray:
    names = [sequence.item_ids for sequence in feature_set.sequences]
    if shards_lib.is_shards(files):
        shards, parts = shards_lib.Shards(files), []
        for start in range(0, shards.num_rows, _PIECE):
            columns = shards.gather(np.arange(start, min(start + _PIECE, shards.num_rows)), names)
            parts.append(sum(np.count_nonzero(columns[name], axis=1) for name in names))
            shards.release()
    else:
        pieces = examples_lib.read_pieces(files, feature_set, names)
        parts = [sum(np.count_nonzero(piece[name], axis=1) for name in names) for piece in pieces]
    return np.concatenate(parts)


def _by_length(lengths: np.ndarray) -> dict[str, np.ndarray]:
    some = lengths > 0
    middle = int(np.median(lengths[some])) if some.any() else 0
    short = some & (lengths <= middle)
    return _not_empty({NO_HISTORY: ~some, f"1 to {middle}": short, f"more than {middle}": some & ~short})


def _by_quarter(values: np.ndarray) -> dict[str, np.ndarray]:
    known = np.isfinite(values)
    edges = np.unique(np.quantile(values[known], [0.25, 0.5, 0.75], method="lower")) if known.any() else np.zeros(0)
    quarter = np.searchsorted(edges, np.where(known, values, 0.0), side="left")
    bounds = [f"{edge:g}" for edge in edges]
    names = [f"up to {bound}" for bound in bounds] + ([f"above {bounds[-1]}"] if bounds else ["all"])
    parts = {name: known & (quarter == number) for number, name in enumerate(names)}
    return _not_empty({**parts, MISSING: ~known})


def _by_value(values: np.ndarray, words: typing.Mapping[int, str]) -> dict[str, np.ndarray]:
    given = values[values != 0]
    found, counts = np.unique(given, return_counts=True)
    most = found[np.lexsort((found, -counts))][:MAX_VALUES]
    parts = {str(words.get(int(value), value)): values == value for value in most}
    others = (values != 0) & ~np.isin(values, most)
    return _not_empty({**parts, OTHERS: others, MISSING: values == 0})


def _words(feature: Feature, data_dir: Folder, tables: schema.Tables, time_zone: str) -> dict[int, str]:
    """Returns the strings of a feature's ids by their fingerprints."""
    table, column = feature.table, feature.column
    values: set[str] = set()
    for part in schema.table_parts(os.fspath(data_dir), table, tables):
        for group in range(len(part.row_groups)):
            stored = schema.read_part(part, table, [column], group, tables)[column]
            values |= {value for value in stored.unique().to_pylist() if isinstance(value, str)}
    texts = sorted(values)
    return dict(zip(fingerprint(texts).tolist(), texts, strict=True)) if texts else {}


def _not_empty(parts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: mask for name, mask in parts.items() if mask.any()}
