"""The report on click models: what each scores on all rows, on new items and per group of item frequency.

Predictions come from exported SavedModels (`serve_examples`), so that what is judged is what is served.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import typing

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tfmm import artifacts, metrics, saved_model
from tfmm.evaluate import differences, in_service, missing
from tfmm.evaluate import slices as slices_lib
from tfmm.evaluate import tiers as tiers_lib
from tfmm.features import FeatureSet
from tfmm.training import examples as examples_lib
from tfmm.training.labels import metric_weights, weights_of

KIND = "evaluation"
NUM_GROUPS = 8  # of items, by how often training showed them (section 6.3.3)
REPLICATES = 200  # draws of users for an interval
COLUMNS = ("user_id", "item_id", "timestamp")  # and those of the label
Folder = str | os.PathLike[str]


def evaluate(
    models: typing.Mapping[str, Folder],
    train_pattern: examples_lib.Patterns,
    eval_pattern: examples_lib.Patterns,
    output_dir: Folder,
    feature_set: FeatureSet,
    *,
    baseline: str = "id",
    encoders: typing.Mapping[str, typing.Any] | None = None,
    snapshot_dir: Folder | None = None,
    index_url: Folder | None = None,
    training: typing.Mapping[str, typing.Any] | None = None,
    shown_items: typing.Mapping[int, int] | None = None,
    sliced: slices_lib.Sliced | None = None,
) -> dict[str, typing.Any]:
    """Scores the evaluation rows with each exported model and reports how they compare.

    Args:
        models: SavedModel folder by name, such as `id`, `multimodal` and, where there is one, `in_service`.
        train_pattern: glob pattern(s) of training examples: they say how often an item was shown in training.
        eval_pattern: the same for evaluation.
        output_dir: gets `report.json`, `predictions.parquet` (one row per impression, one score per model)
            and a manifest.
        feature_set: what the examples hold.
        baseline: the model that others are compared with.
        encoders: what `encoders.probe_encoders` found; it stands in the report as it is.
        snapshot_dir: the index snapshot that the models were trained with; where given, the report says what they
            score on rows whose target lacks vectors.
        index_url: the item index that servers follow, a path or a URL; the model `in_service` sees what it has beyond
            the export.
        training: through what each model was trained; it stands in the report as it is.
        shown_items: how often training showed each item, of a model whose training examples are only its newest; None:
            as often as these do.
        sliced: by what, beside the age of items and the length of histories; None: by nothing else, not by age.
    Returns:
        The report, see `compare`, with `encoders` and `training`; with `slices` (see `slices.report`); with
        `differences` from the baseline and the model in service, paired, overall, on new items and, where
        `snapshot_dir` is given, on items without any vector (see `differences.report`); with `hidden`: the scores with
        the target's vectors hidden (see `missing.hidden_report`); with `missing` and `tiers` where
        `snapshot_dir` is given (see `missing.missing_report`, `tiers.report`); and, where there is a model in service,
        with `in_service`: the rows of the index that it took, and why it is `left_out` where it cannot score these
        rows.
    Raises:
        FileNotFoundError: no example file matches a pattern.
        ValueError: `baseline` is not among the models, or a SavedModel lacks `serve_examples`.
    """
    eval_files = examples_lib.example_files(eval_pattern)
    rows = examples_lib.read_columns(eval_files, feature_set, (*COLUMNS, *feature_set.label.sources))
    weights = metric_weights(rows, feature_set.label)
    scores, hidden, service = {}, {}, {}
    chosen = missing.draw_rows(len(rows["label"]))
    for name, folder in models.items():
        with saved_model.load_session(folder) as loaded:
            if name == in_service.NAME:
                service = in_service.prepare(loaded, index_url, eval_files)
            if name != in_service.NAME or service["left_out"] is None:
                scores[name] = _score(loaded, folder, eval_files)["score"]
                hidden[name] = missing.score_hidden(loaded, eval_files, chosen)
    label, user = rows["label"], rows["user_id"]
    if shown_items is None:
        files = examples_lib.example_files(train_pattern)
        shown = examples_lib.read_columns(files, feature_set, ("item_id",))["item_id"]
        counts = metrics.item_frequencies(shown, rows["item_id"])
    else:
        counts = np.array([shown_items.get(item, 0) for item in rows["item_id"].tolist()], np.int64)
    report = compare(scores, label, user, rows["item_id"], counts, baseline, weights)
    report["encoders"] = dict(encoders or {})
    report["training"] = dict(training or {})
    found = slices_lib.masks(eval_files, feature_set, sliced or slices_lib.Sliced())
    report["slices"] = slices_lib.report(found, scores, label, user, baseline, weights)
    report["hidden"] = missing.hidden_report(hidden, scores, label, user, chosen, weights)
    slices = {differences.ALL: np.ones(len(label), bool), differences.NEW_ITEMS: counts == 0}
    if snapshot_dir is not None:
        lacks = missing.lacking(snapshot_dir, rows["item_id"])
        report["tiers"] = tiers_lib.report(eval_files, feature_set, snapshot_dir, len(label))
        report["missing"] = missing.missing_report(lacks, scores, label, user, weights)
        slices[differences.WITHOUT_VECTORS] = np.all(list(lacks.values()), axis=0)
    references = (baseline, in_service.NAME)
    report["differences"] = differences.report(scores, references, label, user, rows["item_id"], slices, weights)
    if service:
        report[in_service.NAME] = service
    folder = pathlib.Path(output_dir).absolute()  # pyarrow takes other relative names for URIs
    folder.mkdir(parents=True, exist_ok=True)
    table = {
        **rows,
        "is_new_item": counts == 0,
        **{f"score_{name}": values for name, values in scores.items()},
    }
    pq.write_table(pa.table(table), folder / "predictions.parquet")
    (folder / "report.json").write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    parents = [
        os.fspath(model) for model in models.values() if (pathlib.Path(model) / artifacts.MANIFEST).exists()
    ]
    artifacts.write_manifest(folder, KIND, None, parents, models=sorted(models))
    return report


def score_examples(
    saved_model_dir: Folder, files: typing.Sequence[str], batch_size: int = 512
) -> dict[str, np.ndarray]:
    """Scores raw or transformed examples through a SavedModel's `serve_examples` signature.

    Args:
        saved_model_dir: folder of the SavedModel.
        files: TFRecord files of tf.Example, see `training.examples.example_files`.
        batch_size: rows per call.
    Returns:
        `score` and `logit`, float32 [n] each, in the order of the files.
    Raises:
        ValueError: the SavedModel has no such signature.
    """
    with saved_model.load_session(saved_model_dir) as loaded:
        return _score(loaded, saved_model_dir, files, batch_size)


def _score(
    loaded: saved_model.LoadedModel, folder: Folder, files: typing.Sequence[str], batch_size: int = 512
) -> dict[str, np.ndarray]:
    if "serve_examples" not in loaded.signatures:
        raise ValueError(
            f"{folder} must have the signature `serve_examples` (export it with `tfmm export`). "
            f"Received: {sorted(loaded.signatures)}."
        )
    batches = examples_lib.open_records(files).batch(batch_size).as_numpy_iterator()
    outputs = [loaded("serve_examples", {"examples": batch}, ("score", "logit")) for batch in batches]
    return {name: np.concatenate([output[name].reshape(-1) for output in outputs]) for name in ("score", "logit")}


def compare(
    scores: typing.Mapping[str, np.ndarray],
    labels: np.ndarray,
    user_ids: np.ndarray,
    item_ids: np.ndarray,
    train_counts: np.ndarray,
    baseline: str = "id",
    weights: np.ndarray | None = None,
) -> dict[str, typing.Any]:
    """Compares models on the same impressions.

    Args:
        scores: probability float [n] per model.
        labels: int [n], 0 or 1.
        user_ids: int64 [n].
        item_ids: int64 [n].
        train_counts: int [n], how often training showed the row's item; 0 makes it a new item.
        baseline: the model that others are compared with.
        weights: float [n] >= 0, how many rows each stands for, see `training.labels.metric_weights`; None: one.
    Returns:
        JSON values: `rows` (counts, and their `weight` where there is one); `models` (per model `auc`, `gauc`,
        `gauc_users`, `logloss`, `normalized_entropy` and `calibration`, the first four also as `*_new_items`, and
        `undefined`: why a metric is None); `gains` (per other model, its metrics minus the baseline's, and
        `gauc_interval`); `groups` (see `frequency_groups`).
    Raises:
        ValueError: `baseline` is not among the models, or lengths differ.
    """
    if baseline not in scores:
        raise ValueError(f"`baseline` must be one of the models {sorted(scores)}. Received: {baseline!r}.")
    for name, values in scores.items():
        if len(values) != len(labels):
            raise ValueError(
                f"Model {name!r} must score each of the {len(labels)} rows. Received: {len(values)}."
            )
    is_new_item = train_counts == 0
    models = {name: _metrics(values, labels, user_ids, is_new_item, weights) for name, values in scores.items()}
    gains = {
        name: _gain(name, baseline, models, scores, labels, user_ids, weights) for name in models if name != baseline
    }
    rows: dict[str, float] = {
        "eval": len(labels),
        "clicks": int(labels.sum()),
        "users": len(np.unique(user_ids)),
        "items": len(np.unique(item_ids)),
        "new_items": len(np.unique(item_ids[is_new_item])),
        "new_item_rows": int(is_new_item.sum()),
        "new_item_clicks": int(labels[is_new_item].sum()),
    }
    if weights is not None:
        rows["weight"] = float(weights.sum())
    groups = frequency_groups(scores, labels, item_ids, train_counts, baseline, weights=weights)
    return {"baseline": baseline, "rows": rows, "models": models, "gains": gains, "groups": groups}


_GAINS = ("auc", "gauc", "logloss", "auc_new_items", "gauc_new_items", "logloss_new_items")


def _metrics(
    scores: np.ndarray,
    labels: np.ndarray,
    user_ids: np.ndarray,
    is_new_item: np.ndarray,
    weights: np.ndarray | None,
) -> dict[str, typing.Any]:
    result: dict[str, typing.Any] = {"undefined": {}}
    for suffix, chosen in (("", slice(None)), ("_new_items", is_new_item)):
        label, score, user = labels[chosen], scores[chosen], user_ids[chosen]
        weight = weights_of(weights, chosen)
        counted = label if weight is None else label[weight > 0]
        has_rows, clicks = len(counted) > 0, int(counted.sum())
        has_classes = 0 < clicks < len(counted)
        users = metrics.user_aucs(label, score, user, weight) if has_rows else None
        has_users = users is not None and not np.isnan(users.auc).all()
        gauc = users.gauc() if users is not None and has_users else None
        found: dict[str, tuple[typing.Any, str]] = {
            "auc": (metrics.auc(label, score, weight) if has_classes else None, "the rows are of one class"),
            "gauc": (gauc and gauc.value, "no user has both a click and a non-click"),
            "gauc_users": (gauc.users if gauc else 0, ""),
            "logloss": (metrics.log_loss(label, score, weight) if has_rows else None, "there is no row"),
        }
        if not suffix:
            found["normalized_entropy"] = (
                metrics.normalized_entropy(label, score, weight) if has_classes else None,
                "the rows are of one class",
            )
            found["calibration"] = (
                metrics.calibration(label, score, weight) if clicks else None,
                "there is no click",
            )
        for key, (value, reason) in found.items():
            result[key + suffix] = value
            if value is None:
                result["undefined"][key + suffix] = reason
    return result


def frequency_groups(
    scores: typing.Mapping[str, np.ndarray],
    labels: np.ndarray,
    item_ids: np.ndarray,
    train_counts: np.ndarray,
    baseline: str,
    num_groups: int = NUM_GROUPS,
    weights: np.ndarray | None = None,
) -> dict[str, list[dict[str, typing.Any]]]:
    """Compares each model with the baseline inside groups of items (section 6.3.3, figure 6b).

    The items that evaluation shows are divided into groups of equally many by how often training showed them.

    Returns:
        Per model: one dict per group, the least shown first, with the fields of `metrics.GroupComparison`
        (None for what has no value), `items`, `min_count` and `max_count`. Fewer groups where there are fewer
        items.
    """
    _, first, place = np.unique(item_ids, return_index=True, return_inverse=True)
    counts = train_counts[first]
    num_groups = min(num_groups, len(counts))
    group_of_item = metrics.item_frequency_groups(counts, num_groups)
    result = {}
    for name in sorted(set(scores) - {baseline}):
        compared = metrics.compare_groups(
            labels, scores[name], scores[baseline], group_of_item[place], num_groups, weights
        )
        result[name] = [
            {
                **{key: _or_none(value) for key, value in dataclasses.asdict(one).items()},
                "items": int((group_of_item == one.group).sum()),
                "min_count": int(counts[group_of_item == one.group].min()),
                "max_count": int(counts[group_of_item == one.group].max()),
            }
            for one in compared
        ]
    return result


def _gain(
    name: str,
    baseline: str,
    models: typing.Mapping[str, typing.Mapping[str, typing.Any]],
    scores: typing.Mapping[str, np.ndarray],
    labels: np.ndarray,
    user_ids: np.ndarray,
    weights: np.ndarray | None,
) -> dict[str, typing.Any]:
    """Returns a model's metrics minus the baseline's, and the interval of the gain in GAUC over users."""
    gain: dict[str, typing.Any] = {key: _minus(models[name][key], models[baseline][key]) for key in _GAINS}
    if gain["gauc"] is not None:
        interval = metrics.user_bootstrap(
            "gauc",
            labels,
            scores[name],
            user_ids,
            baseline_scores=scores[baseline],
            weights=weights,
            replicates=REPLICATES,
        )
        gain["gauc_interval"] = {
            key: _or_none(getattr(interval, key)) for key in ("low", "high", "standard_error", "level")
        }
    return gain


def _or_none(value: typing.Any) -> typing.Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _minus(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left - right
