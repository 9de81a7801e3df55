"""Photos of a turned camera: EXIF orientation in the graph, against Pillow."""

import io
import struct

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from tfmm.config import SCLConfig
from tfmm.pretrain.encoders import make_encoder
from tfmm.pretrain.images import decode_images
from tfmm.pretrain.orientation import exif_orientation

ORIENTATIONS = range(1, 9)


@pytest.fixture(scope="module")
def scene():
    """A picture without symmetry, wider than high."""
    coarse = np.random.default_rng(0).integers(0, 255, (6, 9, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((90, 61), Image.Resampling.BICUBIC)


def held(scene, orientation, kind, endian=">"):
    """The file of a camera that was held as `orientation` says, and saw `scene`."""
    exif = Image.Exif()
    exif.endian = endian
    exif[0x010F], exif[0x0112], exif[0x0131] = "a maker", orientation, "a program"
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose: what brings the scene to the stored pixels
    stored = scene.transpose(Image.Transpose(turns[orientation])) if orientation in turns else scene
    file = io.BytesIO()
    stored.save(file, kind, exif=exif, **({"quality": 95, "subsampling": 0} if kind == "JPEG" else {}))
    seen = np.asarray(ImageOps.exif_transpose(Image.open(file)))
    assert seen.shape == np.asarray(scene).shape and (kind == "JPEG" or (seen == np.asarray(scene)).all())
    return file.getvalue()


@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_png_is_read_as_it_was_seen(scene, orientation, endian):
    files = [held(scene, 1, "PNG"), held(scene, orientation, "PNG", endian)]
    (upright, turned), valid = decode_images(tf.constant(files), 32)
    assert valid.numpy().all()
    np.testing.assert_array_equal(turned, upright)


@pytest.fixture(scope="module")
def encoder():
    return make_encoder(SCLConfig(image_size=32))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_phone_photo_has_the_vector_of_itself_upright(scene, encoder, orientation):
    """Without turning, cosines of orientations 3 and 6 were .83 and .77; a plain JPEG and the PNG have .998."""
    files = [held(scene, 1, "PNG"), held(scene, orientation, "JPEG")]
    upright, turned = encoder.encode(tf.constant(files))["vector"].numpy()
    assert upright @ turned > 0.998


def _exif(tiff):
    return b"\xff\xd8\xff\xe1" + struct.pack(">H", len(tiff) + 8) + b"Exif\0\0" + tiff + b"\xff\xda"


def _tiff(*entries, first=8):
    body = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHIHH", *entry, 0) for entry in entries)
    return b"II*\0" + struct.pack("<I", first) + body


@pytest.mark.parametrize(
    ("tiff", "expected"),
    [
        (_tiff((0x10F, 2, 1, 5), (0x112, 3, 1, 6)), 6),
        (_tiff((0x112, 3, 1, 0)), 1),
        (_tiff((0x112, 3, 1, 9)), 1),
        (_tiff((0x10F, 2, 1, 6)), 1),
        (_tiff(), 1),
        (_tiff((0x112, 3, 1, 6), first=2**32 - 1), 1),
        (_tiff((0x112, 3, 1, 6))[:15], 1),
        (b"II", 1),
        (b"", 1),
    ],
)
def test_orientation_by_hand(tiff, expected):
    assert exif_orientation(tf.constant(_exif(tiff))).numpy() == expected


def test_exif_of_another_image_in_the_file_says_nothing():
    motion_photo = b"\xff\xd8\xff\xda pixels" + _exif(_tiff((0x112, 3, 1, 6)))
    assert exif_orientation(tf.constant(motion_photo)).numpy() == 1


@hypothesis.settings(deadline=None, max_examples=200)
@hypothesis.given(st.binary(max_size=80))
def test_any_tiff_gives_an_orientation(tiff):
    assert exif_orientation(tf.constant(_exif(tiff))).numpy() in ORIENTATIONS
