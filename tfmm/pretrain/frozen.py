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

import keras
import numpy as np
import tensorflow as tf

from tfmm import artifacts, own_classes, saved_model
from tfmm.config import SCLConfig
from tfmm.index import encode
from tfmm.pretrain import own_encoders
from tfmm.pretrain.content_form import ContentForm
from tfmm.pretrain.encoder import vector_settings
from tfmm.pretrain.encoders import make_encoder
from tfmm.scl_config import MAX_DIM

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


def make(config: SCLConfig) -> tuple[FrozenEncoder, int]:
    """Returns the encoder that `config.encoder` names, and the number of values D of its vectors.

    Raises:
        ValueError: the callable cannot be imported, what it returns has no `encode`, or the vectors have no usable
            shape.
    """
    what = f"modality {config.modality!r}: `encoder`"
    module = own_encoders.make(config) if own_classes.is_own(config.encoder) else make_encoder(config)
    if not callable(getattr(module, "encode", None)):
        raise ValueError(
            f"{what} must return an object with `encode`: string [B] -> float [B, D]. Received: "
            f"{type(module).__name__} from {config.encoder}."
        )
    encoder = FrozenEncoder(module)
    known = {id(v.value) if isinstance(v, keras.Variable) else id(v) for v in _variables(encoder)}
    used = encoder.encode.get_concrete_function().graph.variables
    if unknown := sorted(variable.name for variable in used if id(variable) not in known):
        raise ValueError(
            f"{what} must be a tf.Module that holds the variables of its `encode`, so that they are saved. Received: "
            f"{type(module).__name__} from {config.encoder}, of whose variables {len(unknown)} are not: "
            f"{', '.join(unknown)}."
        )
    shape = encoder.encode(tf.constant(_PROBE))["vector"].shape.as_list()
    if len(shape) != 2 or shape[0] != len(_PROBE) or not 0 < shape[1] <= MAX_DIM:
        raise ValueError(
            f"{what} must give [B, D] values with D in 1..{MAX_DIM}. Received: {shape} for {len(_PROBE)} content from "
            f"{config.encoder}. Project them to fewer."
        )
    return encoder, shape[1]


def version(config: SCLConfig) -> str:
    """Returns the version of the encoder that `config.encoder` names: what it must be made anew by.

    It is what the object's `version()` says, or else a hash of the settings, of its variables and of its source.

    Raises:
        ValueError: as `make`, or `version()` says nothing that a version can be.
    """
    return _version(*make(config), config)


def export(config: SCLConfig, output_dir: str | os.PathLike[str]) -> dict[str, typing.Any]:
    """Makes the encoder that `config.encoder` names and exports it.

    Args:
        config: with which the callable is called; its `modality` names the encoder.
        output_dir: receives `encoder/` (a SavedModel, as `train.train` writes it) and `manifest.json`.
    Returns:
        The manifest: encoder_version (see `version`), modality, dim, frozen.
    Raises:
        ValueError: as `make` and `version`.
    """
    encoder, dim = make(config)
    encoder_version = _version(encoder, dim, config)
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
        dim=dim,
        encoder_version=encoder_version,
        content_form=dataclasses.asdict(ContentForm(max_pixels=config.max_pixels)),
        frozen=True,
    )


def _version(encoder: FrozenEncoder, dim: int, config: SCLConfig) -> str:
    if callable(say := getattr(encoder.module, "version", None)):
        said = say()
        if not isinstance(said, str) or not said or said.startswith(encode.GIVEN):
            raise ValueError(
                f"`version()` of modality {config.modality!r}, {config.encoder}, must be a text that is not empty and "
                f"does not begin with {encode.GIVEN!r}, as versions of ready vectors do. Received: {said!r}."
            )
        return said
    digest = hashlib.sha256(json.dumps([vector_settings(config), dim], sort_keys=True).encode())
    digest.update(own_classes.source_digest([config.encoder]).encode())
    for variable in _variables(encoder):
        digest.update(np.ascontiguousarray(variable.numpy()).tobytes())
    return digest.hexdigest()[:16]


def _variables(encoder: FrozenEncoder) -> list[typing.Any]:
    found = {id(v): v for v in (*saved_model.keras_variables(encoder), *encoder.variables)}
    return list(found.values())
