"""Image decoding in the graph, and augmentation."""

import numpy as np
import pytest
import tensorflow as tf

from tfmm.pretrain.images import augment_images, decode_images


def png(pixels):
    return tf.io.encode_png(tf.constant(pixels, tf.uint8)).numpy()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_every_png_kind_becomes_inverted_color(channels):
    pixels = np.full((8, 8, channels), 200)
    if channels in (2, 4):
        pixels[..., -1] = 255
    decoded, valid = decode_images(tf.constant([png(pixels)]), 8)
    assert valid.numpy().tolist() == [True]
    np.testing.assert_array_equal(decoded[0], np.full((8, 8, 3), 55))


def test_transparency_is_laid_on_white():
    pixels = np.zeros((8, 8, 4))
    pixels[:4, :, 3] = 255  # the upper half black, the lower half clear
    decoded, _ = decode_images(tf.constant([png(pixels)]), 8)
    np.testing.assert_array_equal(decoded[0, :4], 255)
    np.testing.assert_array_equal(decoded[0, 4:], 0)


def test_wide_image_is_fitted_and_padded_with_white():
    decoded, _ = decode_images(tf.constant([png(np.zeros((8, 32, 3)))]), 16)
    rows = decoded.numpy()[0].max(axis=(1, 2))
    assert rows[:6].max() == 0 and rows[10:].max() == 0 and rows[6:10].min() == 255


@pytest.mark.filterwarnings("ignore:.*corrupt.*")
def test_bad_files_are_zero_and_leave_the_others_alone():
    good = png(np.zeros((8, 8, 3)))
    jpeg = tf.io.encode_jpeg(tf.zeros([8, 8, 3], tf.uint8)).numpy()
    contents = [b"", good, b"no image", good[: len(good) // 2], jpeg]
    decoded, valid = decode_images(tf.constant(contents), 8)
    assert valid.numpy().tolist() == [False, True, False, False, True]
    assert decoded.numpy()[[0, 2, 3]].max() == 0
    assert decoded.numpy()[[1, 4]].min() == 255


def test_only_bad_files_and_no_files():
    decoded, valid = decode_images(tf.constant([b"x", b"y"]), 8)
    assert decoded.shape == (2, 8, 8, 3) and not valid.numpy().any()
    decoded, valid = decode_images(tf.constant([], tf.string), 8)
    assert decoded.shape == (0, 8, 8, 3) and valid.shape == (0,)


def test_augmentation_follows_its_seed_and_stays_in_range():
    pixels = tf.constant(np.random.default_rng(0).uniform(0, 1, (6, 12, 12, 3)), tf.float32)
    once, again, other = (augment_images(pixels, tf.constant(seed)) for seed in ([1, 2], [1, 2], [1, 3]))
    np.testing.assert_array_equal(once, again)
    assert np.abs(once - other).max() > 0.1
    assert once.numpy().min() >= 0.0 and once.numpy().max() <= 1.0


def test_augmentation_moves_the_drawing_little():
    pixels = np.zeros((64, 24, 24, 3), np.float32)
    pixels[:, 9:15, 9:15] = 0.8
    moved = augment_images(tf.constant(pixels), tf.constant([0, 1])).numpy()
    rows = np.arange(24)[None, :, None]
    mass = moved.mean(-1)
    centers = (mass * rows).sum((1, 2)) / mass.sum((1, 2))
    assert np.abs(centers - 11.5).max() < 4.5 and np.abs(centers.mean() - 11.5) < 0.5
    sizes = (moved.max(-1) > 0.1).sum((1, 2))  # 36 pixels, by 0.8^2 to 1.25^2, and the blurred edge
    assert sizes.min() > 15 and sizes.max() < 110
