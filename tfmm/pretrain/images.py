"""Images on their way into an encoder: decoding that survives bad files, and augmentation."""

from __future__ import annotations

import functools
import math
import typing

import tensorflow as tf

from tfmm.pretrain import orientation

READING = "upright"  # of pictures; part of an encoder's version, so that vectors of two readings are never compared


def decode_images(contents: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes PNG, JPEG, GIF or BMP files to squares of inverted pixels, so that padding (0) is white.

    Transparency is laid on white; an image that is not square is fitted inside and padded; a photo is turned as its
    EXIF orientation says. One bad file leaves the others alone: the rows are decoded inside a tf.data pipeline that
    drops what fails, which also works in a SavedModel served from C++. Two are decoded at a time, in up to 12 bytes a
    pixel each; `ContentForm` bounds the pixels.

    Args:
        contents: string [B], encoded files.
        size: int, pixels a side.
    Returns:
        uint8 [B, size, size, 3], 255 minus the color, zeros where undecodable; bool [B], True where decoded.
    """
    pixels, valid = _decoder(size)(tf.ensure_shape(contents, [None]))
    return pixels, valid


@functools.cache
def _decoder(size: int) -> typing.Any:
    """Returns `_decode` for a size, which TensorFlow traces once for all calls of a process."""
    return tf.function(lambda contents: _decode(contents, size), input_signature=[tf.TensorSpec([None], tf.string)])


def _decode(contents: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor]:
    count = tf.shape(contents, tf.int64)[0]
    blank = tf.zeros([size, size, 3], tf.uint8)
    rows = tf.data.Dataset.from_tensor_slices(contents).enumerate()
    decoded = rows.map(lambda row, content: (row, _decode_image(content, size)), num_parallel_calls=2)
    decoded = decoded.ignore_errors().concatenate(tf.data.Dataset.from_tensors((count, blank)))
    # The extra row keeps the pipeline from being empty; it is scattered behind the last one and cut off.
    indices, pixels = decoded.batch(count + 1).get_single_element()
    shape = tf.stack([count + 1, size, size, 3])
    pixels = tf.scatter_nd(indices[:, None], tf.cast(pixels, tf.int32), shape)[:-1]
    valid = tf.scatter_nd(indices[:, None], tf.ones_like(indices), [count + 1])[:-1] > 0
    return tf.ensure_shape(tf.cast(pixels, tf.uint8), [None, size, size, 3]), valid


def _decode_image(content: tf.Tensor, size: int) -> tf.Tensor:
    image = tf.io.decode_image(content, channels=0, expand_animations=False)  # uint8 [h, w, 1..4]
    shape = tf.shape(image)
    # Not resize_with_pad: without antialiasing a photograph turns to noise at these sizes.
    scale = tf.cast(size, tf.float32) / tf.cast(tf.maximum(shape[0], shape[1]), tf.float32)
    fitted = tf.clip_by_value(tf.cast(tf.round(tf.cast(shape[:2], tf.float32) * scale), tf.int32), 1, size)

    def shrink(values: tf.Tensor) -> tf.Tensor:  # to float32: what is large is held in one or two bytes a value
        is_fitted = tf.reduce_all(fitted == shape[:2])
        resize = lambda: tf.image.resize(values, fitted, antialias=True)  # noqa: E731
        return tf.cond(is_fitted, lambda: tf.cast(values, tf.float32), resize)

    def on_white() -> tf.Tensor:
        def channel(place: tf.Tensor) -> tf.Tensor:
            color, alpha = (tf.cast(values, tf.uint16) for values in (255 - image[:, :, place], image[:, :, -1]))
            return shrink((color * alpha)[:, :, None])[:, :, 0] / 255.0

        channels = tf.map_fn(channel, tf.range(shape[2] - 1), parallel_iterations=1, fn_output_signature=tf.float32)
        return tf.transpose(channels, [1, 2, 0])

    inverted = tf.cond(shape[2] % 2 == 0, on_white, lambda: shrink(255 - image))
    inverted = tf.broadcast_to(inverted, tf.concat([fitted, [3]], 0))
    inverted = orientation.turn_upright(inverted, orientation.exif_orientation(content))
    fitted = tf.shape(inverted)[:2]
    before = (size - fitted) // 2
    after = size - fitted - before
    inverted = tf.pad(inverted, [[before[0], after[0]], [before[1], after[1]], [0, 0]])
    inverted = tf.ensure_shape(inverted, [size, size, 3])
    return tf.cast(tf.round(tf.clip_by_value(inverted, 0.0, 255.0)), tf.uint8)


def augment_images(pixels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Turns, scales, shifts and recolors each image a little, as the seed says.

    Args:
        pixels: float32 [B, S, S, 3], inverted colors in [0, 1].
        seed: int [2]; the same seed gives the same images.
    Returns:
        float32 [B, S, S, 3] in [0, 1]: turned by up to 15 degrees, scaled by 0.8 to 1.25, shifted by up to 10
        % of the side, contrast by 0.8 to 1.25 and each channel by up to 0.05; what comes in from outside is
        white (0).
    """
    batch, side = tf.shape(pixels)[0], tf.cast(tf.shape(pixels)[1], tf.float32)
    draws = tf.random.stateless_uniform([8, batch], seed, -1.0, 1.0)
    angle, zoom = draws[0] * (15.0 * math.pi / 180.0), tf.exp(draws[1] * math.log(1.25))
    cos, sin, center = tf.cos(angle) / zoom, tf.sin(angle) / zoom, (side - 1.0) / 2.0
    shift_x, shift_y = center + draws[2] * 0.1 * side, center + draws[3] * 0.1 * side
    zeros = tf.zeros_like(angle)
    transforms = tf.stack(
        [
            cos,
            -sin,
            center - cos * shift_x + sin * shift_y,
            sin,
            cos,
            center - sin * shift_x - cos * shift_y,
            zeros,
            zeros,
        ],
        axis=1,
    )
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=pixels,
        transforms=transforms,
        output_shape=tf.shape(pixels)[1:3],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )
    contrast = tf.exp(draws[4] * math.log(1.25))[:, None, None, None]
    tint = 0.05 * tf.transpose(draws[5:8])[:, None, None, :]
    drawn = tf.cast(moved > 0.02, tf.float32)  # the white ground stays white
    return tf.clip_by_value(moved * contrast + tint * drawn, 0.0, 1.0)
