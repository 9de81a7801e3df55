"""Item encoders: one image or text in, one unit vector out; the same graph in training and in service."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import typing

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfmm import config as config_lib
from tfmm import own_classes, saved_model
from tfmm.config import SCLConfig
from tfmm.pretrain import images, own_encoders, texts
from tfmm.pretrain.content_form import NFKC_CASEFOLD, ContentForm
from tfmm.pretrain.normalization import GlobalBatchNormalization

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
        """Returns the features, varied at random as seed int [2] says."""
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

    def version(self) -> str:
        """Returns 16 hex digits that change with any weight, setting or reading of contents that changes a vector.

        One of a user's own may read any setting, so that all count, and its source with them.
        """
        settings, encoder = config_lib.to_dict(self.config), self.config.encoder
        is_own = own_classes.is_own(encoder)
        if not is_own:
            ours = ("modality", "dim", "image_size", "width", "text_buckets", *(("encoder",) if encoder else ()))
            settings = {name: settings[name] for name in ours}
        settings |= {"text_form": self.form.text, "pictures": images.READING}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        if is_own:
            digest.update(own_classes.source_digest([encoder]).encode())
        for weight in self.model.get_weights():
            digest.update(np.ascontiguousarray(weight).tobytes())
        return digest.hexdigest()[:16]

    def export(self, output_dir: str | os.PathLike[str]) -> None:
        """Writes a SavedModel: `serving_default` from `content` string [B] to `vector` float32 [B, D]."""
        saved_model.save(self, {"serving_default": self.encode}, output_dir)


def _unit(vectors: typing.Any) -> typing.Any:
    return keras.layers.UnitNormalization(name="vector", dtype="float32")(vectors)  # a length of 1 whatever the policy


class ImageEncoder(Encoder):
    """A small pre-activation ResNet with a flat head: where in the picture something is counts.

    `stages` of one basic block each, of `width`, 2 `width`, 4 `width` ... channels; then 1x1 convolution to
    `head_channels`, flatten, dense to D.
    """

    def build_model(self) -> keras.Model:
        seeds = itertools.count(self.config.seed * 1000)

        def conv(x, channels, kernel, strides=1):
            initializer = keras.initializers.HeNormal(seed=next(seeds))
            return keras.layers.Conv2D(
                channels, kernel, strides, "same", use_bias=False, kernel_initializer=initializer
            )(x)

        def activate(x):
            # The moving mean must follow within one epoch of a small catalog.
            return keras.layers.ReLU()(GlobalBatchNormalization(momentum=0.9)(x))

        size, width = self.config.image_size, self.config.width
        pixels = keras.Input((size, size, 3), name="pixels")
        x = conv(pixels, width, 3, 2)
        for stage in range(self.config.stages):
            channels, strides = width * 2**stage, 1 if stage == 0 else 2
            y = activate(x)
            shortcut = x if x.shape[-1] == channels and strides == 1 else conv(y, channels, 1, strides)
            x = keras.layers.Add()([shortcut, conv(activate(conv(y, channels, 3, strides)), channels, 3)])
        x = activate(conv(activate(x), self.config.head_channels, 1))
        x = keras.layers.Dense(self.config.dim, kernel_initializer=keras.initializers.GlorotUniform(next(seeds)))(
            keras.layers.Flatten()(x)
        )
        return keras.Model([pixels], _unit(x), name="image_encoder")

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def prepare(self, contents: tf.Tensor) -> tuple[Features, tf.Tensor]:
        pixels, valid = images.decode_images(contents, self.config.image_size)
        return (pixels,), valid

    def finish(self, prepared: Features) -> Features:
        return (tf.cast(prepared[0], tf.float32) / 255.0,)

    def augment(self, features: Features, seed: tf.Tensor) -> Features:
        return (images.augment_images(features[0], seed),)


class TextEncoder(Encoder):
    """The weighted sum of learned vectors of hashed words, word pairs and character n-grams."""

    @property
    def form(self) -> ContentForm:
        return ContentForm(NFKC_CASEFOLD, self.config.max_pixels)

    def build_model(self) -> keras.Model:
        dim = self.config.dim
        tokens = keras.Input((None,), dtype="int32", name="tokens")
        weights = keras.Input((None,), name="weights")
        initializer = keras.initializers.RandomNormal(stddev=dim**-0.5, seed=self.config.seed)
        vectors = keras.layers.Embedding(
            self.config.text_buckets + 1, dim, embeddings_initializer=initializer, name="token_embedding"
        )(tokens)
        total = ops.einsum("bt,btd->bd", weights, vectors)
        return keras.Model([tokens, weights], _unit(total), name="text_encoder")

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def prepare(self, contents: tf.Tensor) -> tuple[Features, tf.Tensor]:
        tokens, weights = texts.hash_texts(contents, self.config.text_buckets)
        return (tokens, weights), tf.reduce_any(tokens > 0, axis=-1)

    def augment(self, features: Features, seed: tf.Tensor) -> Features:
        tokens, weights = features
        kept = tf.random.stateless_uniform(tf.shape(weights), seed) >= self.config.token_dropout
        return tokens, weights * tf.cast(kept, tf.float32)


KINDS: dict[str, typing.Callable[[SCLConfig], Encoder]] = {"image": ImageEncoder, "text": TextEncoder}


def make_encoder(config: SCLConfig) -> Encoder:
    """Returns an encoder with fresh weights: that of `config.encoder`, or else of `config.modality`.

    Raises:
        ValueError: one of the user's own cannot be imported, or is no Encoder.
    """
    name = config.encoder or config.modality
    if name in KINDS:
        return KINDS[name](config)
    encoder = own_encoders.make(config)
    if not isinstance(encoder, Encoder):
        raise ValueError(
            f"modality {config.modality!r}: `encoder` must return a tfmm.pretrain.encoders.Encoder. Received: "
            f"{type(encoder).__name__} from {name}. Derive it from Encoder, or declare the modality frozen=True."
        )
    return encoder
