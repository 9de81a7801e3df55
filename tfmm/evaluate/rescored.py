"""Logged requests scored again, by the version and at the state of the item index that the log names.

A store of the index keeps the newest row of an item alone, so an older state comes from the version itself, which
carries the snapshot that it started from, and from the log of changes that the server took since. Both are rolled
forward in a session of the version's own, as the server's were.
"""

from __future__ import annotations

import base64
import collections
import json
import os
import typing

import numpy as np

from tfmm import config as config_lib
from tfmm import saved_model as loader
from tfmm.data import served
from tfmm.data.served import Served
from tfmm.export import saved_model, signatures
from tfmm.features import Column, FeatureSet

Key = tuple[str, str]  # modality, encoder version


class Changes(typing.NamedTuple):
    """The changes of one table, in their order."""

    sequences: np.ndarray  # int64 [n], ascending
    ids: np.ndarray  # int64 [n]
    rows: np.ndarray  # int8 [n, D]
    scales: np.ndarray  # float32 [n]


class Rescored(typing.NamedTuple):
    """What scoring again found.

    Attributes:
        differences: float64 [n], per request the largest between a score that was logged and its own.
        unknown: requests whose state the changes do not lead to, so that they were not scored.
        sessions: how often the version was loaded: states that no order leads through come apart.
    """

    differences: np.ndarray
    unknown: list[str]
    sessions: int


def read_changes(folder: str | os.PathLike[str]) -> dict[Key, Changes]:
    """Reads what `tfmm serve --changes_log` wrote; a change that several servers took counts once."""
    parts: dict[Key, list[Changes]] = collections.defaultdict(list)
    for path in served.files(folder):
        for values in map(json.loads, served.payloads(path)):
            ids = np.array(values["ids"], np.int64)
            if len(ids):
                rows = np.frombuffer(base64.b64decode(values["rows"]), np.int8).reshape(len(ids), -1)
                columns = np.array(values["sequences"], np.int64), ids, rows, np.array(values["scales"], np.float32)
                parts[values["modality"], values["encoder_version"]].append(Changes(*columns))
    result = {}
    for key, found in parts.items():
        merged = Changes(*(np.concatenate(columns) for columns in zip(*found)))
        _, places = np.unique(merged.sequences, return_index=True)
        result[key] = Changes(*(column[places] for column in merged))
    return result


def rescore(
    records: typing.Iterable[Served],
    version_dir: str | os.PathLike[str],
    changes: typing.Mapping[Key, Changes],
) -> Rescored:
    """Scores the requests of one version again.

    Args:
        records: of that version.
        version_dir: its folder, as it was exported.
        changes: see `read_changes`.
    Raises:
        FileNotFoundError: the folder is no complete export.
    """
    manifest = saved_model.read_manifest(str(version_dir))
    feature_set = config_lib.as_config(FeatureSet, manifest["feature_set"])
    looked_up = set((manifest["item_features"] or {}).get("names", ()))
    left = sorted(records, key=lambda record: (sum(record.index.values()), record.time))
    differences, unknown, sessions = [], [], 0
    while left:
        sessions += 1
        later = []
        with loader.load_session(version_dir) as model:
            state = _state(model)
            for record in left:
                if any(sequence < state.get(modality, 0) for modality, sequence in record.index.items()):
                    later.append(record)
                    continue
                for modality, sequence in record.index.items():
                    if sequence > state[modality]:
                        _roll(model, modality, record.encoders[modality], state[modality], sequence, changes)
                state = _state(model) if state != record.index else state
                if state != record.index:
                    unknown.append(record.request_id)
                    continue
                inputs = request(record, feature_set, manifest["id_types"], looked_up)
                scores = model(signatures.RANK, inputs)["score"]
                logged = np.asarray(record.scores, np.float32)
                differences.append(float(np.max(np.abs(scores - logged), initial=0.0)))
        if len(later) == len(left):  # older than the version's own snapshot
            unknown += [record.request_id for record in later]
            break
        left = later
    return Rescored(np.array(differences, np.float64), unknown, sessions)


def request(
    record: Served, feature_set: FeatureSet, id_types: typing.Mapping[str, str], looked_up: typing.Collection[str]
) -> dict[str, np.ndarray]:
    """Returns a record as inputs of `rank`; what its model looked up is left out, to be looked up again."""
    specs = signatures.raw_specs(feature_set, id_types, 1)
    inputs = {}
    told: typing.Any
    for column in feature_set.served:
        is_text = specs[column.name].dtype.as_numpy_dtype is object
        told = record.items if column.name == "item_id" else record.features.get(column.name)
        was_found = told is None or (is_text and any(isinstance(one, int) for one in _flat(told)))
        if was_found and column.feature.name in looked_up:
            told = [] if column.side == "item" and not column.shape else [[]]
        elif column.side == "user":
            told = [told]
        inputs[column.name] = _tensor(told, column, is_text)
    return inputs


def _tensor(rows: typing.Sequence[typing.Any], column: Column, is_text: bool) -> np.ndarray:
    missing = "" if is_text else column.missing
    if column.shape:
        width = max((len(row or ()) for row in rows), default=0)
        padded = [[*(row or ()), *[None] * (width - len(row or ()))] for row in rows]
        values = [missing if one is None else one for row in padded for one in row]
    else:
        width, values = 0, [missing if one is None else one for one in rows]
    dtype = np.float32 if column.is_float else np.int64
    flat = np.array([str(one).encode() for one in values], object) if is_text else np.array(values, dtype)
    return flat.reshape(len(rows), width) if column.shape else flat


def _flat(told: typing.Any) -> typing.Iterator[typing.Any]:
    if isinstance(told, list):
        for one in told:
            yield from _flat(one)
    else:
        yield told


def _state(model: loader.LoadedModel) -> dict[str, int]:
    """Returns how far each table is."""
    if signatures.STATUS not in model.signatures:
        return {}
    found = model(signatures.STATUS, {})
    return {name.decode(): int(at) for name, at in zip(found["modality"], found["watermark"])}


def _roll(
    model: loader.LoadedModel,
    modality: str,
    encoder_version: str,
    after: int,
    until: int,
    changes: typing.Mapping[Key, Changes],
) -> None:
    """Writes the changes after one sequence, up to another, as the server took them."""
    known = changes.get((modality, encoder_version))
    if known is None:
        return
    start, end = np.searchsorted(known.sequences, [after, until], side="right")
    if start < end:
        model(signatures.UPSERT, {
            "modality": np.array(modality.encode(), object), "item_ids": known.ids[start:end],
            "rows": known.rows[start:end], "scales": known.scales[start:end],
            "sequences": known.sequences[start:end], "encoder_version": np.array(encoder_version.encode(), object),
        })  # fmt: skip
