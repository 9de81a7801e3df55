"""One ranking as a record of the served log, from the tensors that went in and came out of a model."""

from __future__ import annotations

import typing

import numpy as np

from tfmm import fingerprints
from tfmm.export.signatures import LOOKED_UP

REQUEST_ID = "x-request-id"  # key of metadata, and header, of requests and of answers


class Ranked(typing.NamedTuple):
    """A request that was ranked.

    Attributes:
        request_id: its own.
        time: seconds since 1970, when it was scored.
        model, version: that scored it.
        inputs: of `rank` or `rank_ids`, by name.
        outputs: all of the signature of `LOGGED` that scored it.
        of_user: the inputs that are the user's.
        sample_rate: of the log.
    """

    request_id: str
    time: float
    model: str
    version: int
    inputs: typing.Mapping[str, np.ndarray]
    outputs: typing.Mapping[str, np.ndarray]
    of_user: typing.Collection[str]
    sample_rate: float = 1.0


def fields(ranked: Ranked) -> dict[str, typing.Any]:
    """Returns the fields of `tfmm.data.served.Served`, arrays as they are."""
    inputs, found, of_user = ranked.inputs, ranked.outputs, ranked.of_user
    modalities = [name.decode() for name in found["modality"].tolist()]
    given = {name: values for name, values in inputs.items() if values.size or LOOKED_UP + name not in found}
    named = {name.removeprefix(LOOKED_UP): values for name, values in found.items() if name.startswith(LOOKED_UP)}
    looked_up = {name: values for name, values in named.items() if name not in given}
    features = {name: _plain(values[0] if name in of_user else values) for name, values in given.items()}
    features |= {name: _plain(values[0]) for name, values in looked_up.items() if name in of_user}
    per_item = {name: _plain(values) for name, values in looked_up.items() if name not in of_user}
    items = features.pop("item_id")
    record = {
        "request_id": ranked.request_id, "time": ranked.time, "model": ranked.model, "version": ranked.version,
        "encoders": dict(zip(modalities, (version.decode() for version in found["encoder_version"].tolist()))),
        "index": dict(zip(modalities, found["watermark"].tolist())),
        "features": features, "items": items, "scores": found["score"],
    }  # fmt: skip
    record |= {"item_features": per_item} if per_item else {}
    return record | ({"sample_rate": ranked.sample_rate} if ranked.sample_rate < 1.0 else {})


def _plain(values: typing.Any) -> typing.Any:
    """Returns what JSON is written of: numbers as arrays, strings as text, those that are none as fingerprints."""
    if not isinstance(values, np.ndarray):
        return _text(values) if isinstance(values, (bytes, str)) else values.item()
    if values.dtype.kind not in "OSU":
        return np.ascontiguousarray(values) if values.ndim else values.item()
    return [_plain(value) for value in values] if values.ndim > 1 else [_text(value) for value in values.tolist()]


def _text(value: bytes | str) -> str | int:
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:  # no text is this id; its fingerprint is
        return int(fingerprints.fingerprint([value])[0])
