"""What a run's encoders are worth: Acc@N of pre-training, and the probe beside that of fresh weights."""

from __future__ import annotations

import json
import pathlib
import typing

import numpy as np
import pyarrow as pa
import tensorflow as tf

from tfmm import artifacts
from tfmm import config as config_lib
from tfmm.data import as_known, schema
from tfmm.data import behaviors as behaviors_lib
from tfmm.data import shards as shards_lib
from tfmm.evaluate import probe as probe_lib
from tfmm.features import KEYS, FeatureSet
from tfmm.index import snapshot as snapshot_lib
from tfmm.modalities import UNDECLARED, ModalitySet
from tfmm.pretrain.accuracy import ACCURACY_AT
from tfmm.pretrain.encoders import make_encoder
from tfmm.training import examples as examples_lib
from tfmm.training.labels import metric_weights, weights_of

ENCODE_CHUNK = 256
MAX_ROWS, MAX_ITEMS = 100_000, 20_000  # of a large log whole users are drawn: the fresh encoder must read their items
FROM_MANIFEST = (
    *(f"acc_at_{n}{part}" for n in ACCURACY_AT for part in ("", "_untrained", "_chance", "_interval", "_gain")),
    *(f"{name}{part}" for name in ("alignment", "uniformity") for part in ("", "_untrained")),
    "siblings",
    *(f"acc_at_1_siblings{part}" for part in ("", "_untrained", "_chance")),
    "categories",
    "validation_pairs",
    "kept",
    "exported",
    "train_pairs",
    "heldout_pairs",
    "heldout_items",
    "distinct_positives",
    "positives_per_query",
    "queries_among_positives",
    "memory_bank_size",
    "batch_size",
    "epochs",
    "pairs_per_epoch",
    "steps",
)
Folder = str | pathlib.Path


def probe_encoders(
    eval_pattern: examples_lib.Patterns,
    feature_set: FeatureSet,
    snapshot_dir: Folder | None,
    data_dir: Folder | None = None,
    encoder_dirs: typing.Mapping[str, Folder] | None = None,
    modality_set: ModalitySet = UNDECLARED,
    time_zone: str = "UTC",
) -> dict[str, dict[str, typing.Any]]:
    """Probes each modality of the item index on held-out impressions.

    Args:
        eval_pattern: glob pattern(s) of examples, raw or transformed.
        feature_set: what the examples hold; the histories of all sequences count as one.
        snapshot_dir: the item index's snapshot: the vectors as they are served; None: nothing is probed.
        data_dir: the catalog, for what the untrained encoders read.
        encoder_dirs: pre-training's output folder by modality: the same encoder with fresh weights is probed on
            the same rows. Modalities that are not in it (items' own vectors) and frozen ones are probed alone.
        modality_set: what the run declares: from which columns the encoders read.
        time_zone: of items' versions, where their times name none.
    Returns:
        Per modality: `probe`, as `probe.judge` returns it, with `rows_left_out` (target or history without an
        embedding); for an encoder Acc@N with its untrained and chance values and counts, and the settings in
        effect; `warnings`: sentences on few pairs, and where training did not raise Acc@1 or the probe beyond noise;
        `is_no_better`: whether the probe, or Acc@1 where no click tells, shows no gain.
    Raises:
        FileNotFoundError: no example file matches, or a folder is incomplete.
        ValueError: encoders without `snapshot_dir` or `data_dir`.
    """
    encoder_dirs = encoder_dirs or {}
    if encoder_dirs and (snapshot_dir is None or data_dir is None):
        raise ValueError(
            "`snapshot_dir` and `data_dir` must be named beside `encoder_dirs`: the probe compares the served vectors "
            f"with what untrained encoders make of the catalog. Received: {snapshot_dir}, {data_dir}."
        )
    if snapshot_dir is None:
        return {}
    rows = sample(_read(eval_pattern, feature_set))
    weights = metric_weights(rows, feature_set.label)
    snapshot, result = snapshot_lib.load_snapshot(snapshot_dir), {}
    for modality in snapshot.modalities:
        table = snapshot[modality]
        shown = np.unique(np.append(rows["behavior_item_ids"].ravel(), rows["item_id"]))
        ids = shown[table.lookup(shown).mask]
        wanted = (rows["item_id"], rows["behavior_item_ids"])
        cosines, known = probe_lib.largest_cosines(ids, table.lookup(ids).rows, *wanted)
        facts: dict[str, typing.Any] = {"warnings": []}
        untrained = None
        if modality in encoder_dirs:
            manifest = artifacts.read_manifest(encoder_dirs[modality], "encoder")
            facts |= {name: manifest[name] for name in (*FROM_MANIFEST, "warnings") if name in manifest}
            if not manifest.get("frozen"):
                vectors = untrained_vectors(manifest, data_dir, ids, modality_set, time_zone)  # type: ignore[arg-type]
                untrained, read = probe_lib.largest_cosines(ids, vectors, *wanted)
                known &= read
                untrained = untrained[known]
        counted = weights_of(weights, known)
        probe = probe_lib.judge(rows["label"][known], rows["user_id"][known], cosines[known], untrained, counted)
        facts["probe"] = {**probe, "rows_left_out": int((~known).sum())}
        found, gain = warning(modality, probe), facts.get("acc_at_1_gain")
        facts["warnings"] = [*([found] if found else []), *facts["warnings"]]
        is_told = probe.get("gauc_gain") is not None
        facts["is_no_better"] = found is not None if is_told else gain is not None and gain["low"] <= 0.0
        result[modality] = facts
    return result


def _read(eval_pattern: examples_lib.Patterns, feature_set: FeatureSet) -> examples_lib.Columns:
    """Reads, of the rows that `sample` may keep, keys, labels and, as `behavior_item_ids`, the items of sequences."""
    histories = [sequence.item_ids for sequence in feature_set.sequences]
    files, names = examples_lib.example_files(eval_pattern), {*KEYS, *feature_set.label.sources, *histories}
    if shards_lib.is_shards(files):
        shards = shards_lib.Shards(files)
        columns = shards.gather(np.sort(_of_whole_users(shards.column("user_id"))[0]), names)
    else:
        columns = examples_lib.read_columns(files, feature_set, names)
    rows = {name: columns[name] for name in (*KEYS, *feature_set.label.sources)}
    return rows | {"behavior_item_ids": np.concatenate([columns[name] for name in histories], axis=1)}


def encoder_folders(encoders_dir: Folder | None) -> dict[str, pathlib.Path]:
    """Returns the folders of a run's encoders by modality; none where items bring their own vectors."""
    if encoders_dir is None:
        return {}
    found = sorted(pathlib.Path(encoders_dir).glob(f"*/{artifacts.MANIFEST}"))
    manifests = {path.parent: json.loads(path.read_text()) for path in found}
    return {facts["modality"]: folder for folder, facts in manifests.items() if facts["kind"] == "encoder"}


def sample(rows: examples_lib.Columns) -> examples_lib.Columns:
    """Draws whole users, by a hash, until the rows or their distinct items would be too many."""
    order, ends = _of_whole_users(rows["user_id"])
    shown = np.concatenate([rows["item_id"][order, None], rows["behavior_item_ids"][order]], axis=1)
    _, first = np.unique(shown, return_index=True)
    items = np.cumsum(np.bincount(first // shown.shape[1], minlength=len(order)))[ends - 1]
    last = max(1, int(np.searchsorted(items, MAX_ITEMS, side="right")))
    kept = np.sort(order[: ends[last - 1]])
    return {name: values[kept] for name, values in rows.items()}


def _of_whole_users(users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows of whole users in a drawn order, some MAX_ROWS at most, and where each user ends."""
    order = np.lexsort((users, behaviors_lib.tie_break(users)))
    users = users[order]
    starts = np.flatnonzero(np.append(True, users[1:] != users[:-1]))
    ends = np.append(starts[1:], len(users))  # after each user
    last = max(1, int(np.searchsorted(ends, MAX_ROWS, side="right")))
    return order[: ends[last - 1]], ends[:last]


def untrained_vectors(
    manifest: typing.Mapping[str, typing.Any],
    data_dir: Folder,
    ids: np.ndarray,
    modality_set: ModalitySet = UNDECLARED,
    time_zone: str = "UTC",
) -> np.ndarray:
    """Encodes items of the catalog with the encoder as it was before training: its seed gives the same weights.

    Args:
        manifest: of the trained encoder.
        data_dir: the catalog.
        ids: int64 [m], fingerprints of item ids, ascending.
        modality_set: what the run declares.
        time_zone: of items' versions, whose newest is encoded, where their times name none.
    Returns:
        float32 [m, D]; zeros where the catalog has no content that can be used.
    """
    encoder = make_encoder(config_lib.from_dict(config_lib.SCLConfig, manifest["config"]))
    column, tables = modality_set[manifest["modality"]].content, schema.documented(modality_set)
    vectors = np.zeros([len(ids), manifest["dim"]], np.float32)
    for part, group, newest in as_known.row_groups(data_dir, "items", time_zone, tables):
        items = schema.read_part(part, "items", ["item_id", column], group, tables)
        items = items if newest is None else items.take(pa.array(newest))
        places = probe_lib.places(ids, schema.fingerprints(items["item_id"]))
        wanted = np.flatnonzero(places < len(ids))
        for start in range(0, len(wanted), ENCODE_CHUNK):
            chunk = wanted[start : start + ENCODE_CHUNK]
            values = items[column].take(pa.array(chunk)).to_pylist()
            contents = tf.constant(encoder.admit(value or b"" for value in values), tf.string)
            vectors[places[chunk]] = encoder.encode(contents)["vector"].numpy()
    return vectors


def warning(modality: str, probe: typing.Mapping[str, typing.Any]) -> str | None:
    """Returns a sentence where an encoder's vectors rank clicks no better than those of fresh weights; else None."""
    if probe.get("gauc_gain") is None:
        return None
    interval = probe["gauc_gain_interval"]
    if interval["low"] is not None and interval["low"] > 0.0:
        return None
    return (
        f"The {modality} encoder is not better than untrained beyond noise: its vectors alone rank clicks with a "
        f"GAUC of {probe['gauc']:.4f}, fresh weights with {probe['gauc_untrained']:.4f}"
        + (
            "."
            if interval["low"] is None
            else f", difference {probe['gauc_gain']:+.4f} [{interval['low']:+.4f}, {interval['high']:+.4f}] over "
            f"{probe['users']:,} users and {probe['rows']:,} rows."
        )
    )
