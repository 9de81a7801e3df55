"""What a header says, against what decoders find."""

import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfmm.pretrain.content_form import ContentForm
from tfmm.pretrain.picture_header import MAX_SCANS, num_pixels, num_scans


def saved(kind, size=(30, 20), **how):
    file = io.BytesIO()
    Image.fromarray(np.zeros((size[1], size[0], 3), np.uint8)).save(file, kind, **how)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        saved("PNG"),
        saved("JPEG"),
        saved("JPEG", progressive=True),
        saved("JPEG", comment=b"\xff\xc0 no frame", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0"),
        saved("GIF"),
        saved("BMP"),
        saved("JPEG")[:2] + b"\xff\xff" + saved("JPEG")[2:],  # fill bytes
    ],
)
def test_pixels_are_those_of_the_decoder(content):
    assert tf.io.decode_image(content, expand_animations=False).shape[:2] == [20, 30]
    if content.startswith(b"GIF"):
        assert num_pixels(content) == 2 * 600  # the screen and its frame
    else:
        assert num_pixels(content) == 600


def test_all_frames_of_a_gif_count():
    frames = [Image.fromarray(np.full((20, 30), n, np.uint8)) for n in (0, 99, 200)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    assert num_pixels(file.getvalue()) == 4 * 600


def test_frame_of_a_cut_off_gif_counts():
    small = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0)
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x08\x05"
    assert num_pixels(small + frame) == 1 + 65535**2


@pytest.mark.parametrize("content", [b"", b"BM", b"BM and more than that of words", b"\xff\xd8\xff", b"GIF89a",
                                     b"\xff\xd8\xff\xe1", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xd9"])  # fmt: skip
def test_what_tells_no_size_has_none(content):
    assert num_pixels(content) == 0


def test_bomb_is_known_by_its_header():
    chunk = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    assert num_pixels(bomb) == 3_600_000_000


@pytest.mark.parametrize(
    ("content", "scans"),
    [
        (saved("JPEG"), 1),
        (saved("JPEG", (300, 200), progressive=True, quality=95), 10),  # libjpeg's script
        (saved("JPEG", comment=b"\xff\xda" * 200, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0"), 1),
        (saved("JPEG") + b"\xff\xda\0\2" * 200, 1),  # a film behind a photo
        (saved("JPEG")[:2] + b"\xff\xff" + saved("JPEG")[2:], 1),
        (saved("PNG") + b"\xff\xda" * 200, 0),
        (b"\xff\xd8\xff\xda", 1),
        (b"\xff\xd8\xff", 0),
        (b"", 0),
    ],
    ids=range(9),
)
def test_scans_are_those_of_the_picture_alone(content, scans):
    assert num_scans(content) == scans and ContentForm().refusal(content) is None


def test_jpeg_of_many_scans_is_refused_unopened():
    """Each scan may have a dozen bytes and costs as many pixels as there are: 3,000 of 9 million took a minute."""
    picture = saved("JPEG", progressive=True)
    last = picture[picture.rindex(b"\xff\xda") : -2]
    assert ContentForm().refusal(picture[:-2] + last * (MAX_SCANS - num_scans(picture)) + picture[-2:]) is None
    bomb = picture[:-2] + last * 3_000 + picture[-2:]
    assert ContentForm().refusal(bomb).startswith("must have at most 100 scans, not more;") and num_scans(bomb) == 101
