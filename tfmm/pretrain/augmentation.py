"""Pictures varied at random by keras-cv's layers, the same for the same seed, whatever runs beside.

The layers draw from generators of their own, so that a training that was stopped would not go on as it was, nor two
workers of tf.data draw the same twice. Here what is drawn follows from the seed; the layers do what was drawn.
"""

from __future__ import annotations

import functools
import typing

import tensorflow as tf

from tfmm.pretrain.keras_cv_import import load_keras_cv
from tfmm.scl_config import SCLConfig

ASPECT = 4.0 / 3.0  # most of a crop's sides, width to height or height to width
HUE = 0.1  # share of `color_jitter`, in turns of the color circle
_STREAM = 1  # of the seed, so that its draws are not those of `images.augment_images`


class _Layers(typing.NamedTuple):
    crop: typing.Any
    brightness: typing.Any
    contrast: typing.Any
    saturation: typing.Any
    hue: typing.Any
    flip: typing.Any


@functools.cache
def layers(size: int) -> _Layers:
    """Returns keras-cv's layers for pictures of `size` pixels a side; imports keras-cv.

    They are nobody's attributes, so that no exported encoder holds them.

    Raises:
        MissingExtraError: keras-cv is not installed.
    """
    found = load_keras_cv().layers
    with tf.init_scope():
        return _Layers(
            found.RandomCropAndResize((size, size), (1.0, 1.0), (1.0, 1.0), seed=1, dtype="float32"),
            found.RandomBrightness(1.0, value_range=(0.0, 1.0), seed=1, dtype="float32"),
            found.RandomContrast(value_range=(0.0, 1.0), factor=0.5, seed=1, dtype="float32"),
            found.RandomSaturation(1.0, seed=1, dtype="float32"),
            found.RandomHue(1.0, value_range=(0.0, 1.0), seed=1, dtype="float32"),
            found.RandomFlip(seed=1, dtype="float32"),
        )


def vary(pixels: tf.Tensor, seed: tf.Tensor, config: SCLConfig) -> tf.Tensor:
    """Crops, recolors and mirrors each picture as the settings and the seed say; what is off leaves it as it is.

    - `crop`: a part of U(crop, 1) of the area, its sides in a proportion of 3/4 to 4/3, anywhere, brought to full size.
    - `color_jitter` j: brightness by U(-j, j), contrast and saturation times U(1 - j, 1 + j), hue by U(-j, j) / 10
      turns.
    - `flip`: left for right, in half of the pictures.

    Args:
        pixels: float32 [B, S, S, 3], one minus the color in [0, 1].
        seed: int [2]; the same seed gives the same pictures.
        config: the settings.
    Returns:
        float32 [B, S, S, 3] in [0, 1].
    """
    does, batch = layers(pixels.shape[1]), tf.shape(pixels)[0]
    draws = tf.random.stateless_uniform([9, batch], tf.random.experimental.stateless_fold_in(seed, _STREAM))
    colors = 1.0 - pixels
    if config.crop < 1.0:
        boxes = _boxes(config.crop, *tf.unstack(draws[:4]))
        cropped = lambda given: does.crop.augment_image(given[0], transformation=given[1][None])  # noqa: E731
        colors = tf.ensure_shape(tf.vectorized_map(cropped, (colors, boxes)), pixels.shape)
    if j := config.color_jitter:
        brightness, contrast, saturation, hue = tf.unstack(j * (2.0 * draws[4:8] - 1.0))
        colors = does.brightness.augment_images(colors, brightness[:, None, None, None])
        colors = does.contrast.augment_images(colors, 1.0 + contrast[:, None, None, None])
        # The layer takes s / (1 - s) times the saturation.
        colors = does.saturation.augment_images(colors, (1.0 + saturation) / (2.0 + saturation))
        colors = does.hue.augment_images(colors, HUE * hue)
    if config.flip:
        colors = does.flip.augment_images(colors, {"flip_horizontals": draws[8][:, None],
                                                   "flip_verticals": tf.zeros([batch, 1])})  # fmt: skip
    return tf.clip_by_value(1.0 - colors, 0.0, 1.0)


def _boxes(least: float, area: tf.Tensor, aspect: tf.Tensor, top: tf.Tensor, left: tf.Tensor) -> tf.Tensor:
    """Returns float32 [B, 4], top, left, bottom and right as shares of the sides, of draws [B] in [0, 1]."""
    area, aspect = least + (1.0 - least) * area, ASPECT ** (2.0 * aspect - 1.0)
    height, width = (tf.minimum(tf.sqrt(value), 1.0) for value in (area / aspect, area * aspect))
    top, left = top * (1.0 - height), left * (1.0 - width)
    return tf.stack([top, left, top + height, left + width], axis=1)
