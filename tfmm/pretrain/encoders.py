"""The encoders that a run names: a small net and a bag of hashed tokens of our own, and what stands in other files."""

from __future__ import annotations

import itertools
import typing

import keras
import tensorflow as tf
from keras import ops

from tfmm.config import SCLConfig
from tfmm.pretrain import backbones, own_encoders, texts
from tfmm.pretrain.encoder import Encoder, Features, unit
from tfmm.pretrain.normalization import GlobalBatchNormalization
from tfmm.pretrain.oriented_gradients import OrientedGradients
from tfmm.pretrain.picture_encoder import PictureEncoder
from tfmm.pretrain.text_encoder import HashedTextEncoder
from tfmm.pretrain.text_transformer import TextTransformer

__all__ = ["KINDS", "Encoder", "Features", "ImageEncoder", "TextEncoder", "make_encoder"]

CELLS = 8  # a side, at least, that `oriented_gradients` parts a picture into


class ImageEncoder(PictureEncoder):
    """A small pre-activation ResNet with a flat head: where in the picture something is counts.

    `stages` of one basic block each, of `width`, 2 `width`, 4 `width` ... channels; then 1x1 convolution to
    `head_channels`, flatten, dense to D. With `oriented_gradients` the dense layer also reads, of `CELLS` by `CELLS`
    parts of the picture, which way their edges run and how their colors differ from the picture's mean.
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
        x = keras.layers.Flatten()(activate(conv(activate(x), self.config.head_channels, 1)))
        if self.config.oriented_gradients:
            cell = size // CELLS
            colors = keras.layers.AveragePooling2D(cell)(pixels)
            colors = colors - ops.mean(colors, axis=(1, 2, 3), keepdims=True)
            parts = [GlobalBatchNormalization(momentum=0.9)(part) for part in (OrientedGradients(cell)(pixels), colors)]
            x = keras.layers.Concatenate()([x, *map(keras.layers.Flatten(), parts)])
        x = keras.layers.Dense(self.config.dim, kernel_initializer=keras.initializers.GlorotUniform(next(seeds)))(x)
        return keras.Model([pixels], unit(x), name="image_encoder")


class TextEncoder(HashedTextEncoder):
    """The weighted sum of learned vectors of hashed words, word pairs and character n-grams."""

    def build_model(self) -> keras.Model:
        dim = self.config.dim
        tokens = keras.Input((None,), dtype="int32", name="tokens")
        weights = keras.Input((None,), name="weights")
        initializer = keras.initializers.RandomNormal(stddev=dim**-0.5, seed=self.config.seed)
        vectors = keras.layers.Embedding(
            self.config.text_buckets + 1, dim, embeddings_initializer=initializer, name="token_embedding"
        )(tokens)
        total = ops.einsum("bt,btd->bd", weights, vectors)
        return keras.Model([tokens, weights], unit(total), name="text_encoder")

    def prepare(self, contents: tf.Tensor) -> tuple[Features, tf.Tensor]:
        tokens, weights = texts.hash_texts(contents, self.config.text_buckets, self.config.text_ngrams)
        return (tokens, weights), tf.reduce_any(tokens > 0, axis=-1)


KINDS: dict[str, typing.Callable[[SCLConfig], Encoder]] = {
    "image": ImageEncoder,
    "text": TextEncoder,
    "text_transformer": TextTransformer,
}


def make_encoder(config: SCLConfig) -> Encoder:
    """Returns an encoder with fresh weights: that of `config.encoder`, or else of `config.modality`.

    Raises:
        ValueError: one of the user's own cannot be imported, or is no Encoder; weights that are not the net's.
    """
    name = config.encoder or config.modality
    if name in KINDS:
        return KINDS[name](config)
    if backbones.is_named(name):
        return backbones.make(config)
    encoder = own_encoders.make(config)
    if not isinstance(encoder, Encoder):
        raise ValueError(
            f"modality {config.modality!r}: `encoder` must return a tfmm.pretrain.encoders.Encoder. Received: "
            f"{type(encoder).__name__} from {name}. Derive it from Encoder, or declare the modality frozen=True."
        )
    return encoder
