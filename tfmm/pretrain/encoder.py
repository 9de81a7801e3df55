"""What every item encoder is: one content in, one unit vector out; the same graph in training and in service."""

from __future__ import annotations

import hashlib
import json
import os
import typing

import keras
import numpy as np
import tensorflow as tf

from tfmm import config as config_lib
from tfmm import own_classes, saved_model
from tfmm.config import SCLConfig
from tfmm.pretrain import images
from tfmm.pretrain.content_form import ContentForm
from tfmm.scl_config import LATER, TRAINING_ALONE

Features = tuple[tf.Tensor, ...]


class Encoder(tf.Module):
    """Encodes raw content: `prepare` decodes, `finish` makes features, the Keras `model` makes vectors.

    One of a user's own is a subclass that has `build_model`, `prepare`, where it needs them `finish` and `augment`, and
    takes the config alone. `prepare` must take any bytes.

    Args:
        config: its modality, sizes and seed shape the encoder.
    """

    def __init__(self, config: SCLConfig) -> None:
        super().__init__()
        self.config = config
        self.model = self.build_model()

    @property
    def form(self) -> ContentForm:
        """The form of contents that `prepare` and `encode` take."""
        return ContentForm(max_pixels=self.config.max_pixels)

    def admit(self, contents: typing.Iterable[bytes | str]) -> list[bytes]:
        """Returns contents in the encoder's form, none of those that it refuses: b"" cannot be used."""
        return [b"" if self.form.refusal(content) else self.form(content) for content in contents]

    def build_model(self) -> keras.Model:
        """Returns a new Keras model: features -> float32 [B, D], L2-normalized; seeded weights."""
        raise NotImplementedError

    def prepare(self, contents: tf.Tensor) -> tuple[Features, tf.Tensor]:
        """Returns decoded contents, compact enough to keep, and bool [B], True where one can be used.

        Runs in graphs. A content is a row of each tensor; tensors [B, T] of any T up to 256 are padded with 0.
        """
        raise NotImplementedError

    def finish(self, prepared: Features) -> Features:
        """Returns what the model takes."""
        return prepared

    def augment(self, features: Features, seed: tf.Tensor) -> Features:
        """Returns the features, varied at random as seed int [2] and the config say; called where it is augmented."""
        raise NotImplementedError

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="content")])
    def encode(self, content: tf.Tensor) -> dict[str, tf.Tensor]:
        """Encodes string [B].

        Returns:
            {"vector": float32 [B, D], of length 1; zeros where the content cannot be used}.
        """
        prepared, valid = self.prepare(content)
        # One blank row more: TensorFlow's fused normalization fails on a batch of none.
        padded = [tf.pad(column, [[0, 1]] + [[0, 0]] * (column.shape.rank - 1)) for column in prepared]
        vector = self.model(list(self.finish(tuple(padded))), training=False)[:-1]
        return {"vector": tf.where(valid[:, None], vector, tf.zeros_like(vector))}

    def settings_of_vectors(self) -> dict[str, typing.Any]:
        """Returns the settings that change a vector; of a user's own encoder all, and its source."""
        settings, encoder = vector_settings(self.config), self.config.encoder
        if own_classes.is_own(encoder):
            return {**settings, "source": own_classes.source_digest([encoder])}
        names = ("modality", "dim", "image_size", "width", "text_buckets", *(("encoder",) if encoder else ()))
        return {name: settings[name] for name in (*names, *not_as_ever(self.config))}

    def version(self) -> str:
        """Returns 16 hex digits that change with any weight, setting or reading of contents that changes a vector.

        One of a user's own may read any setting, so that all count, and its source with them.
        """
        settings = self.settings_of_vectors() | {"text_form": self.form.text, "pictures": images.READING}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for weight in self.model.get_weights():
            digest.update(np.ascontiguousarray(weight).tobytes())
        return digest.hexdigest()[:16]

    def export(self, output_dir: str | os.PathLike[str]) -> None:
        """Writes a SavedModel: `serving_default` from `content` string [B] to `vector` float32 [B, D]."""
        saved_model.save(self, {"serving_default": self.encode}, output_dir)


def vector_settings(config: SCLConfig) -> dict[str, typing.Any]:
    """Returns the settings that an encoder of a user's own may read to make a vector: all but of training alone."""
    left_out = {*TRAINING_ALONE, *LATER} - {*not_as_ever(config)}
    return {name: value for name, value in config_lib.to_dict(config).items() if name not in left_out}


def not_as_ever(config: SCLConfig) -> tuple[str, ...]:
    """Returns those of `LATER` that are not the default; where all are, versions stay as they were before."""
    default = SCLConfig()
    return tuple(name for name in LATER if getattr(config, name) != getattr(default, name))


def unit(vectors: typing.Any) -> typing.Any:
    """Returns vectors [B, D] of length 1, by a layer of the model."""
    return keras.layers.UnitNormalization(name="vector", dtype="float32")(vectors)  # a length of 1 whatever the policy
