"""The model in service as it serves: with the items that came into the index since it was exported."""

from __future__ import annotations

import os
import typing

import tensorflow as tf

from tfmm import saved_model
from tfmm.export.signatures import EXAMPLES, STATUS, UPSERT
from tfmm.index import store
from tfmm.training import examples as examples_lib

NAME = "in_service"  # of the model in service, among those of a report
CHUNK = 1024  # rows of one upsert


def prepare(
    loaded: saved_model.LoadedModel, index_url: str | os.PathLike[str] | None, files: typing.Sequence[str]
) -> dict[str, typing.Any]:
    """Makes a model see the index as it stands.

    Args:
        loaded: the model in service.
        index_url: the item index, a path or a URL; None, or where there is none: the model stays as it was exported.
        files: TFRecord files of the examples that it is to score.
    Returns:
        `index`: what `catch_up` returns; `left_out`: why the model cannot score the examples, or None.
    """
    reason = _refusal(loaded, files)
    if reason is not None or index_url is None:
        return {"index": {}, "left_out": reason}
    try:
        index = store.open_store(index_url, create=False)
    except FileNotFoundError:
        return {"index": {}, "left_out": None}
    with index:
        return {"index": catch_up(loaded, index), "left_out": None}


def _refusal(loaded: saved_model.LoadedModel, files: typing.Sequence[str]) -> str | None:
    """Returns why a model cannot score examples, such as those of another declaration than its own; None: it can."""
    if EXAMPLES not in loaded.signatures:
        return f"it has no signature `{EXAMPLES}`"
    first = next(examples_lib.open_records(files).batch(1).as_numpy_iterator())
    try:
        loaded(EXAMPLES, {"examples": first}, ("score",))
    except tf.errors.OpError as error:
        return f"it cannot score these examples: {error.message.splitlines()[0][:300]}"
    return None


def catch_up(loaded: saved_model.LoadedModel, index: store.IndexStore) -> dict[str, typing.Any]:
    """Writes into a loaded model what the index has since the model's watermark, as the replicator does.

    Args:
        loaded: an exported model, in this process only.
        index: the item index that its servers follow.
    Returns:
        Per modality, `rows` that were written, and `left_out`: why rows are missing, or None: the index knows no such
        encoder, or the model's table is full.
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
    if not index.has_encoder(modality, version):
        return {"rows": 0, "left_out": f"{index.url} knows no {modality} encoder {version}"}
    written = 0
    while len(rows := index.changes(modality, version, watermark, CHUNK)):
        inputs = {"item_ids": rows.ids, "rows": rows.rows, "scales": rows.scales, "sequences": rows.sequences}
        try:
            loaded(UPSERT, {**inputs, "modality": modality, "encoder_version": version})
        except tf.errors.OutOfRangeError as error:
            lag = index.lag(modality, version, watermark)
            return {"rows": written, "left_out": f"{lag:,} rows do not fit: {error.message.splitlines()[0]}"}
        written, watermark = written + len(rows), int(rows.sequences[-1])
    return {"rows": written, "left_out": None}
