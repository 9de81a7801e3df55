"""Mutated real images through the real road: into the index, or rejected with a reason."""

import gc
import io
import random

import numpy as np
import psutil
import pytest
import tensorflow as tf
from PIL import Image

from tfmm import artifacts
from tfmm.config import SCLConfig
from tfmm.index import encode
from tfmm.pretrain.encoders import make_encoder
from tfmm.pretrain.picture_header import num_pixels

BATCH = 50
MAX_PIXELS = 400_000
REASONS = (
    "image: cannot be decoded", f"image: must have at most {MAX_PIXELS:,} pixels, not ",
    "image: must have at most 100 scans, not ",
)  # fmt: skip


def originals():
    """Pictures as cameras and programs write them: every mode, filter and chunk that matters."""
    coarse = np.random.default_rng(0).integers(0, 255, (6, 9, 4)).astype(np.uint8)
    scene = Image.fromarray(coarse).resize((72, 48))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a maker"
    kinds = [
        ("RGB", "PNG", {"exif": exif}), ("RGBA", "PNG", {}), ("L", "PNG", {}), ("LA", "PNG", {}), ("P", "PNG", {}),
        ("RGB", "JPEG", {"exif": exif}), ("L", "JPEG", {}), ("RGB", "JPEG", {"progressive": True}),
        ("CMYK", "JPEG", {}), ("P", "GIF", {}), ("RGB", "BMP", {}),
    ]  # fmt: skip
    for mode, kind, how in kinds:
        file = io.BytesIO()
        scene.convert(mode).save(file, kind, **how)
        yield file.getvalue()


def mutate(content, rng, others):
    """Changes bytes, cuts, doubles or joins; headers are hit as often as all the rest."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        place = rng.randrange(min(len(data), rng.choice((64, 1 << 20)))) if data else 0
        act = rng.randrange(6)
        if act == 0 and data:
            data[place] = rng.randrange(256)
        elif act == 1 and data:
            data[place] ^= 1 << rng.randrange(8)
        elif act == 2:
            del data[place : place + rng.choice((1, 4, 100, 1 << 20))]
        elif act == 3:
            data[place:place] = data[place : place + rng.randrange(1, 40)]
        elif act == 4:
            data[place : place + 4] = rng.choice((bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff", b"eXIf", b"Exif"))
        else:
            other = rng.choice(others)
            data[place:] = other[min(place, len(other)) :]
    return bytes(data)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    config = SCLConfig(dim=8, image_size=16, width=4, max_pixels=MAX_PIXELS)
    made = make_encoder(config)
    made.export(folder / "encoder")
    facts = {"encoder_version": "v1", "content_form": {"max_pixels": MAX_PIXELS}}
    artifacts.write_manifest(folder, "encoder", config, modality="image", dim=8, **facts)
    return encode.load_encoder(folder)


def take(contents, encoder):
    """Embeds contents; returns how many were, after looking at each that was not."""
    items = [encode.Item(place, contents={"image": content}) for place, content in enumerate(contents, 1)]
    rows, rejected, missing = encode.embed(items, encoder)
    assert len(rows) + len(rejected) + missing == len(items)
    assert all(reason.startswith(REASONS) for reason in rejected.values()), set(rejected.values())
    assert (rows.scales > 0).all()
    return len(rows)


def pictures(count, seed=0):
    rng, whole = random.Random(seed), list(originals())
    return [mutate(rng.choice(whole), rng, whole) for _ in range(count)]


def test_originals_are_embedded(encoder):
    assert take(list(originals()), encoder) == len(list(originals()))


@pytest.mark.filterwarnings("ignore:.*corrupt.*")
def test_mutated_images_are_embedded_or_rejected_with_a_reason(encoder):
    contents = pictures(300)
    assert 30 < take(contents, encoder) < 300


def test_headers_tell_the_pixels_that_decoders_find():
    """The limit holds only where the header is read as the decoder reads it."""
    for content in pictures(300, seed=1):
        if 0 < num_pixels(content) <= MAX_PIXELS or num_pixels(content) == 0:
            try:
                height, width = tf.io.decode_image(content, expand_animations=False).shape[:2]
            except (tf.errors.InvalidArgumentError, tf.errors.UnknownError):
                continue
            assert height * width <= num_pixels(content)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore:.*corrupt.*")
def test_ten_thousand_mutated_images_leave_no_memory_behind(encoder):
    process, levels, embedded = psutil.Process(), [], 0
    for seed in range(200):
        embedded += take(pictures(BATCH, seed=1000 + seed), encoder)
        gc.collect()
        levels.append(process.memory_info().rss)
    assert 1000 < embedded < 10_000
    assert np.median(levels[-20:]) <= 1.05 * np.median(levels[20:40])
