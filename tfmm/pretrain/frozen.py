"""Encoders of a user's own that are used as they are: exported as trained ones are, so that later stages see no
difference.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import typing

import numpy as np
import tensorflow as tf

from tfmm import artifacts, saved_model
from tfmm.config import SCLConfig
from tfmm.modalities import MAX_DIM
from tfmm.pretrain import own_encoders
from tfmm.pretrain.content_form import ContentForm
from tfmm.pretrain.encoders import source_of

_PROBE = [b"probe"]


class FrozenEncoder(tf.Module):
    """Holds an object of the user's whose `encode` takes string [B].

    Args:
        module: its `encode` returns float [B, D], or {"vector": float [B, D]}, of any length; zeros where a content
            cannot be used. It must take any bytes.
    """

    def __init__(self, module: typing.Any) -> None:
        super().__init__()
        self.module = module

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="content")])
    def encode(self, content: tf.Tensor) -> dict[str, tf.Tensor]:
        """Encodes string [B] to {"vector": float32 [B, D]}."""
        found = self.module.encode(content)
        vector = found["vector"] if isinstance(found, typing.Mapping) else found
        return {"vector": tf.cast(vector, tf.float32)}


def export(config: SCLConfig, output_dir: str | os.PathLike[str]) -> dict[str, typing.Any]:
    """Makes the encoder that `config.encoder` names and exports it.

    Its version is what the object's `version()` says, or else a hash of its variables and of its module's source.

    Args:
        config: with which the callable is called; its `modality` names the encoder.
        output_dir: receives `encoder/` (a SavedModel, as `train.train` writes it) and `manifest.json`.
    Returns:
        The manifest: encoder_version, modality, dim, frozen.
    Raises:
        ValueError: the callable cannot be imported, what it returns has no `encode`, or the vectors have no usable
            shape.
    """
    what = f"modality {config.modality!r}: `encoder`"
    module = own_encoders.make(config)
    if not callable(getattr(module, "encode", None)):
        raise ValueError(
            f"{what} must return an object with `encode`: string [B] -> float [B, D]. Received: "
            f"{type(module).__name__} from {config.encoder}."
        )
    encoder = FrozenEncoder(module)
    shape = encoder.encode(tf.constant(_PROBE))["vector"].shape.as_list()
    if len(shape) != 2 or shape[0] != len(_PROBE) or not 0 < shape[1] <= MAX_DIM:
        raise ValueError(
            f"{what} must give [B, D] values with D in 1..{MAX_DIM}. Received: {shape} for {len(_PROBE)} content from "
            f"{config.encoder}. Project them to fewer."
        )
    output_dir = pathlib.Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / artifacts.MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(output_dir / "encoder", ignore_errors=True)
    saved_model.save(encoder, {"serving_default": encoder.encode}, output_dir / "encoder")
    return artifacts.write_manifest(
        output_dir,
        "encoder",
        config,
        modality=config.modality,
        dim=shape[1],
        encoder_version=_version(encoder, config, shape[1]),
        content_form=dataclasses.asdict(ContentForm(max_pixels=config.max_pixels)),
        frozen=True,
    )


def _version(encoder: FrozenEncoder, config: SCLConfig, dim: int) -> str:
    if callable(version := getattr(encoder.module, "version", None)):
        return str(version())
    digest = hashlib.sha256(json.dumps([config.modality, config.encoder, dim]).encode())
    digest.update(source_of(config.encoder))
    variables = {id(v): v for v in (*saved_model.keras_variables(encoder), *encoder.variables)}
    for variable in variables.values():
        digest.update(np.ascontiguousarray(variable.numpy()).tobytes())
    return digest.hexdigest()[:16]
