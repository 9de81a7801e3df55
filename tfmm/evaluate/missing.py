"""Targets without embeddings: the rows that truly lack them, and any rows with the target's vectors hidden."""

from __future__ import annotations

import os
import typing

import numpy as np

from tfmm import metrics, saved_model
from tfmm.evaluate import differences
from tfmm.features import STORED
from tfmm.index import snapshot as snapshot_lib
from tfmm.modalities import ALL, NOTHING
from tfmm.training import examples as examples_lib
from tfmm.training.labels import weights_of

SIGNATURE = "serve_examples_hidden"  # of the exported model, see `export.serving_module`
MAX_ROWS = 20_000  # scored with hidden vectors; drawn where there are more
Z_95 = 1.96
Scores = dict[str, np.ndarray]


def sets_of(modalities: typing.Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Returns by name what a row may lack: all of the modalities, or one of several.

    >>> sets_of(["image", "text"])
    {'all': ('image', 'text'), 'image': ('image',), 'text': ('text',)}
    >>> sets_of(["text"])
    {'all': ('text',)}
    """
    names = tuple(modalities)
    return {ALL: names, **({name: (name,) for name in names} if len(names) > 1 else {})}


def set_of(modality: str, found: typing.Mapping[str, typing.Any]) -> typing.Any:
    """Returns what a mapping of `sets_of`'s names says of one modality; {} where it says nothing.

    >>> set_of("text", {"all": 1}), set_of("text", {"all": 1, "image": 2, "text": 3}), set_of("text", {})
    (1, 3, {})
    """
    return found.get(modality, found.get(ALL, {}) if len(found) == 1 else {})


def draw_rows(num_rows: int, max_rows: int = MAX_ROWS) -> np.ndarray:
    """Returns which rows are scored with hidden vectors: bool [n], at most `max_rows` True, the same ones each time."""
    chosen = np.zeros(num_rows, bool)
    chosen[np.random.default_rng(0).permutation(num_rows)[:max_rows]] = True
    return chosen


def score_hidden(
    loaded: saved_model.LoadedModel, files: typing.Sequence[str], chosen: np.ndarray, batch_size: int = 512
) -> Scores | None:
    """Scores examples through an exported model as if their targets had no vector.

    Args:
        loaded: the exported model.
        files: TFRecord files of tf.Example.
        chosen: bool [n], the rows to score, in the order of the files.
        batch_size: rows per call.
    Returns:
        Per set of modalities of `sets_of`, score float32 [chosen rows]; None where the model has no such signature.
    """
    if SIGNATURE not in loaded.signatures:
        return None
    names = loaded("index_status", {}, ("modality",))["modality"]
    sets = sets_of(sorted({name.decode() for name in names.tolist()} - {STORED}))
    parts: dict[str, list[np.ndarray]] = {name: [] for name in sets}
    start = 0
    for batch in examples_lib.open_records(files).batch(batch_size).as_numpy_iterator():
        examples = batch[chosen[start : start + len(batch)]]
        start += len(batch)
        for name, hidden in sets.items() if len(examples) else ():
            inputs = {"examples": examples, "hidden": list(hidden)}
            parts[name].append(loaded(SIGNATURE, inputs, ("score",))["score"].reshape(-1))
    return {name: np.concatenate(values) for name, values in parts.items()}


def hidden_report(
    hidden: typing.Mapping[str, Scores | None],
    scores: typing.Mapping[str, np.ndarray],
    labels: np.ndarray,
    user_ids: np.ndarray,
    chosen: np.ndarray,
    weights: np.ndarray | None = None,
) -> dict[str, typing.Any]:
    """Reports what models score with the target's vectors hidden, and as the rows are.

    Args:
        hidden: per model, what `score_hidden` returned.
        scores: per model, float [n], of the rows as they are.
        labels, user_ids: [n].
        chosen: bool [n], the rows that `hidden` has.
        weights: float [n], how many rows each stands for; None: one.
    Returns:
        `rows`, `clicks`; `models`: per model and set of modalities (`nothing` for the rows as they are), `figures`;
        `worth`: per model and set of modalities, what the rows as they are have more than with those hidden, see
        `differences.slice_difference`; `left_out`: per model without hidden scores, why.
    """
    label, user, weight = labels[chosen], user_ids[chosen], weights_of(weights, chosen)
    models, worth = {}, {}
    for name, values in scores.items():
        sets = hidden[name] or {}
        found = {NOTHING: values[chosen], **sets}
        models[name] = {key: figures(label, score, user, weight) for key, score in found.items()}
        worth[name] = {
            key: differences.slice_difference(label, values[chosen], score, user, weight, ["gauc"])
            for key, score in sets.items()
        }
    left_out = {name: f"the model has no signature `{SIGNATURE}`" for name in scores if hidden[name] is None}
    counts = {"rows": int(chosen.sum()), "clicks": int(label.sum())}
    return {**counts, "models": models, "worth": worth, "left_out": left_out}


def lacking(snapshot_dir: str | os.PathLike[str], item_ids: np.ndarray) -> dict[str, np.ndarray]:
    """Returns per modality which int64 [n] items have no vector in an index snapshot: bool [n]."""
    snapshot = snapshot_lib.load_snapshot(str(snapshot_dir))
    return {modality: ~snapshot[modality].lookup(item_ids).mask for modality in snapshot.modalities}


def missing_report(
    lacks: typing.Mapping[str, np.ndarray],
    scores: typing.Mapping[str, np.ndarray],
    labels: np.ndarray,
    user_ids: np.ndarray,
    weights: np.ndarray | None = None,
) -> dict[str, typing.Any]:
    """Reports what models score where the index truly lacks vectors of the target.

    Args:
        lacks: what `lacking` returned of the index snapshot that the models were trained with.
        scores: per model, float [n].
        labels, user_ids: [n].
        weights: float [n], how many rows each stands for; None: one.
    Returns:
        Per set of modalities that the target lacks (at least those): `rows`, `clicks` and `models` (per model,
        `figures`; none where there is no row).
    """
    result = {}
    for name, modalities in sets_of(lacks).items():
        rows = np.all([lacks[modality] for modality in modalities], axis=0)
        weight = weights_of(weights, rows)
        models = {
            model: figures(labels[rows], s[rows], user_ids[rows], weight) for model, s in scores.items() if rows.any()
        }
        result[name] = {"rows": int(rows.sum()), "clicks": int(labels[rows].sum()), "models": models}
    return result


def figures(
    labels: np.ndarray, scores: np.ndarray, user_ids: np.ndarray, weights: np.ndarray | None = None
) -> dict[str, float | None]:
    """Returns how well, and how truly, rows are scored.

    Args:
        labels: int [n], 0 or 1, n > 0.
        scores: probability float [n].
        user_ids: int64 [n].
        weights: float [n], how many rows each stands for; None: one.
    Returns:
        `click_rate`, `mean_score`, `bias` (mean score over click rate, minus 1), `bias_margin` (half of its 95 %
        interval, with users as the sample), `auc`, `gauc`, `logloss`; None for what the rows cannot give.

    >>> found = figures(np.array([1, 0, 0, 1]), np.array([0.9, 0.5, 0.1, 0.9]), np.array([1, 1, 2, 2]))
    >>> round(found["bias"], 3), round(found["bias_margin"], 3)
    (0.2, 0.277)
    """
    rows = len(labels) if weights is None else float(weights.sum())
    clicks = int(labels.sum()) if weights is None else float(weights @ labels)
    has_classes = 0 < clicks < rows
    users = metrics.user_aucs(labels, scores, user_ids, weights)
    total = float(scores.sum(dtype=np.float64)) if weights is None else float(weights @ scores)
    ratio = total / clicks if clicks else None
    margin = None
    if ratio is not None:
        _, user = np.unique(user_ids, return_inverse=True)
        excess = (scores - ratio * labels) * (1.0 if weights is None else weights)
        excess = np.bincount(user, excess)  # per user; they sum to 0
        margin = float(Z_95 * np.sqrt(np.sum(excess**2)) / clicks)
    return {
        "click_rate": clicks / rows if rows else None,
        "mean_score": total / rows if rows else None,
        "bias": None if ratio is None else ratio - 1.0,
        "bias_margin": margin,
        "auc": metrics.auc(labels, scores, weights) if has_classes else None,
        "gauc": None if np.isnan(users.auc).all() else users.gauc().value,
        "logloss": metrics.log_loss(labels, scores, weights) if rows else None,
    }
