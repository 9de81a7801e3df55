"""Directions of edges: by hand, by a slow loop, and in an exported encoder."""

import dataclasses
import math

import numpy as np
import pytest
import tensorflow as tf

from tfmm import saved_model
from tfmm.config import SCLConfig
from tfmm.modalities import Modality
from tfmm.pretrain.encoders import make_encoder
from tfmm.pretrain.oriented_gradients import DIRECTIONS, OrientedGradients, oriented_gradients
from tfmm.testing import check_layer

IMAGE = SCLConfig(image_size=16, width=4, dim=8, oriented_gradients=True)


def test_a_slope_fills_its_direction_by_hand():
    """Rising by 0.1 a pixel to the right, 0.2 over two pixels; 16 pixels a cell: sqrt(3.2) over itself and 0.3."""
    slope = np.zeros((1, 12, 12, 3), np.float32)
    slope[..., 1] = 0.1 * np.arange(12)
    (inner,) = oriented_gradients(slope, 4).numpy()[:, 1, 1]
    expected = math.sqrt(3.2) / (math.sqrt(3.2) + 0.3)
    np.testing.assert_allclose(inner, [expected, *[0.0] * 7], atol=1e-6)
    (down,) = oriented_gradients(slope.transpose(0, 2, 1, 3), 4).numpy()[:, 1, 1]
    np.testing.assert_allclose(down, np.roll(inner, 2), atol=1e-6)
    (left,) = oriented_gradients(1.0 - slope, 4).numpy()[:, 1, 1]
    np.testing.assert_allclose(left, np.roll(inner, 4), atol=1e-6)


def test_equals_a_slow_loop():
    pixels, cell = np.random.default_rng(0).uniform(size=(2, 7, 7, 3)).astype(np.float32), 3
    around = np.pad(pixels, ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = np.zeros((2, 2, 2, DIRECTIONS))
    for b, y, x in np.ndindex(2, 6, 6):
        changes = [
            (around[b, y + 1, x + 2, c] - around[b, y + 1, x, c], around[b, y + 2, x + 1, c] - around[b, y, x + 1, c])
            for c in range(3)
        ]
        right, down = max(changes, key=lambda change: math.hypot(*change))
        place = math.atan2(down, right) / (2 * math.pi) * DIRECTIONS % DIRECTIONS
        for direction, share in ((int(place), 1 - place % 1), (int(place) + 1, place % 1)):
            expected[b, y // cell, x // cell, direction % DIRECTIONS] += share * math.hypot(right, down)
    expected = np.sqrt(expected)
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True) + 0.3
    np.testing.assert_allclose(oriented_gradients(pixels, cell), expected, rtol=1e-4, atol=1e-5)  # float32 angles


def test_a_blank_picture_has_no_directions():
    assert not oriented_gradients(np.zeros((1, 8, 8, 3), np.float32), 4).numpy().any()


def test_conformance():
    pixels = np.random.default_rng(0).uniform(size=(3, 8, 8, 3)).astype(np.float32)
    check_layer(OrientedGradients, {"cell": 2}, {"pixels": pixels})


@pytest.mark.parametrize("cell", [0, 2.5])
def test_cells_have_whole_pixels(cell):
    with pytest.raises(ValueError, match="`cell` must be a whole number of pixels"):
        OrientedGradients(cell)


def test_an_encoder_with_them_is_another_one_and_is_exported(tmp_path):
    encoder = make_encoder(IMAGE)
    assert encoder.version() != make_encoder(dataclasses.replace(IMAGE, oriented_gradients=False)).version()
    pictures = [tf.io.encode_png(np.full((20, 12, 3), value, np.uint8)).numpy() for value in (0, 90)] + [b"none"]
    encoder.export(tmp_path / "encoder")
    with saved_model.load_session(tmp_path / "encoder") as loaded:
        found = loaded("serving_default", {"content": pictures})["vector"]
    np.testing.assert_allclose(found, encoder.encode(tf.constant(pictures))["vector"], atol=1e-6)  # fused otherwise
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), [1.0, 1.0, 0.0], atol=1e-6)


def test_texts_have_no_edges():
    (fault,) = Modality("text", "text", settings={"oriented_gradients": True}).faults()
    assert "hold no oriented_gradients" in fault
