"""The model in service as it serves: with the items that came into the index since it was exported."""

from __future__ import annotations

import os
import typing

import tensorflow as tf

from tfmm import saved_model
from tfmm.export.signatures import EXAMPLES, STATUS, UPSERT
from tfmm.index import graph_table, store
from tfmm.training import examples as examples_lib

NAME = "in_service"  # of the model in service, among those of a report
CHUNK = 1024  # rows of one upsert


def prepare(
    loaded: saved_model.LoadedModel, index_url: str | os.PathLike[str] | None, files: typing.Sequence[str]
) -> dict[str, typing.Any]:
    """Makes a model see the index as it stands.

    Args:
        loaded: the model in service.
        index_url: the item index, a path or a URL; None, or where there is none: the model stays as exported.
        files: TFRecord files of the examples that it is to score.
    Returns:
        `index`: what `catch_up` returns; `left_out`: why the model cannot score the examples, or None; `as_exported`:
        why it lacks what came into the index since its export, or None.
    """
    facts: dict[str, typing.Any] = {"index": {}, "left_out": _refusal(loaded, files), "as_exported": None}
    if facts["left_out"] is not None or STATUS not in loaded.signatures:
        return facts
    if index_url is None:
        return {**facts, "as_exported": "no item index is named"}
    try:
        index = store.open_store(index_url, create=False)
    except FileNotFoundError as error:
        return {**facts, "as_exported": str(error)}
    with index:
        return {**facts, "index": catch_up(loaded, index)}


def _refusal(loaded: saved_model.LoadedModel, files: typing.Sequence[str]) -> str | None:
    """Returns why a model cannot score examples, such as those of another declaration than its own; None: it can."""
    if EXAMPLES not in loaded.signatures:
        return f"it has no signature `{EXAMPLES}`"
    first = next(examples_lib.open_records(files).batch(1).as_numpy_iterator())
    try:
        loaded(EXAMPLES, {"examples": first}, ("score",))
    except tf.errors.OpError as error:
        return f"it cannot score these examples: {_message(error)}"
    return None


def catch_up(loaded: saved_model.LoadedModel, index: store.IndexStore) -> dict[str, typing.Any]:
    """Writes into a loaded model what the index has since the model's watermark, as the replicator does.

    Args:
        loaded: an exported model, in this process only.
        index: the item index that its servers follow.
    Returns:
        Per modality, `rows` that were written; `left_out`: why rows are missing, or None: the index knows no such
        encoder, or the model refuses them, such as one whose table is full; `ahead`: that the model was beyond the
        index and was given every row again, or None.
    """
    if STATUS not in loaded.signatures:
        return {}
    status = loaded(STATUS, {}, ("modality", "encoder_version", "watermark"))
    tables = zip(*(status[name].tolist() for name in ("modality", "encoder_version", "watermark")))
    return {
        modality.decode(): _follow(loaded, index, modality.decode(), version.decode(), watermark)
        for modality, version, watermark in tables
    }


def _follow(
    loaded: saved_model.LoadedModel, index: store.IndexStore, modality: str, version: str, watermark: int
) -> dict[str, typing.Any]:
    facts: dict[str, typing.Any] = {"rows": 0, "left_out": None, "ahead": None}
    if not index.has_encoder(modality, version):
        return {**facts, "left_out": f"{index.url} knows no {modality} encoder {version}"}
    if watermark > (newest := index.newest_sequence()):
        facts["ahead"] = (
            f"it holds change {watermark}, the index none beyond {newest}, as one that was restored. It was given "
            "every row again; what it holds by a later number stayed"
        )
        watermark = 0
    while len(rows := index.changes(modality, version, watermark, CHUNK)):
        inputs = {"item_ids": rows.ids, "rows": rows.rows, "scales": rows.scales, "sequences": rows.sequences}
        try:
            statuses = loaded(UPSERT, {**inputs, "modality": modality, "encoder_version": version})["statuses"]
        except tf.errors.OpError as error:
            why = "do not fit" if isinstance(error, tf.errors.OutOfRangeError) else "are refused"
            lag = index.lag(modality, version, watermark)
            return {**facts, "left_out": f"{lag:,} rows {why}: {_message(error)}"}
        facts["rows"] += int((statuses != graph_table.STALE).sum())
        watermark = int(rows.sequences[-1])
    return facts


def _message(error: tf.errors.OpError) -> str:
    return error.message.removeprefix(saved_model.PYTHON_PREFIX).splitlines()[0][:300]
