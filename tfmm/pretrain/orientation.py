"""How a camera was held: the EXIF orientation of an encoded image, read in the graph.

An exported encoder reads it itself, so that training, the batch job, the stream and a server in C++ see one picture.
"""

from __future__ import annotations

import tensorflow as tf

UPRIGHT = 1
_TAG = 0x0112
_MAX_BYTES = 1 << 16  # of a TIFF header and its first directory: a JPEG segment holds no more
_ENTRY = 12  # bytes of a directory's entry: tag 2, type 2, count 4, value 4
_JPEG, _PNG = b"Exif\0\0", b"eXIf"  # what stands before the TIFF header
_SCAN = b"\xff\xda"  # where a JPEG's pixels begin; what comes later belongs to another image


def exif_orientation(content: tf.Tensor) -> tf.Tensor:
    """Returns the EXIF orientation of a JPEG or PNG, int64 [] in 1..8; 1, upright, where it says nothing usable.

    Args:
        content: string [], an encoded file, or any bytes.
    """
    is_png = tf.strings.substr(content, 0, 4) == b"\x89PNG"
    parts = tf.strings.split(content, tf.where(is_png, _PNG, _JPEG), maxsplit=1)
    is_scanned = tf.logical_not(is_png) & (tf.size(tf.strings.split(parts[0], _SCAN, maxsplit=1)) > 1)
    has_exif = (tf.size(parts) > 1) & tf.logical_not(is_scanned)
    return tf.cond(has_exif, lambda: _from_tiff(parts[-1]), lambda: tf.constant(UPRIGHT, tf.int64))


def _from_tiff(header: tf.Tensor) -> tf.Tensor:
    """Reads the tag from a TIFF header and the first directory behind it, string []."""
    data = tf.cast(tf.io.decode_raw(tf.strings.substr(header, 0, _MAX_BYTES), tf.uint8), tf.int64)
    size = tf.size(data, tf.int64)
    data = tf.pad(data, [[0, _ENTRY]])
    is_big_endian = data[0] == ord("M")

    def number(values: tf.Tensor) -> tf.Tensor:  # int64 [..., bytes] -> int64 [...]
        values = tf.where(is_big_endian, tf.reverse(values, [-1]), values)
        return tf.reduce_sum(values * 256 ** tf.range(tf.shape(values, tf.int64)[-1]), axis=-1)

    first = tf.minimum(number(data[4:8]), size)
    count = tf.minimum(number(data[first : first + 2]), (size - first) // _ENTRY)
    entries = tf.reshape(data[first + 2 : first + 2 + count * _ENTRY], [-1, _ENTRY])
    found = tf.boolean_mask(number(entries[:, 8:10]), number(entries[:, :2]) == _TAG)  # a SHORT stands at the left
    value = tf.concat([found, [UPRIGHT]], 0)[0]
    return tf.where((value >= 1) & (value <= 8), value, tf.constant(UPRIGHT, tf.int64))


def turn_upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Returns an image, any [H, W, channels], as it was seen: its sides exchanged for orientations 5 to 8."""

    def is_one_of(*values: int) -> tf.Tensor:
        return tf.reduce_any(orientation == tf.constant(values, tf.int64))

    image = tf.cond(orientation >= 5, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
    image = tf.cond(is_one_of(2, 3, 6, 7), lambda: tf.reverse(image, [1]), lambda: image)
    return tf.cond(is_one_of(3, 4, 7, 8), lambda: tf.reverse(image, [0]), lambda: image)
