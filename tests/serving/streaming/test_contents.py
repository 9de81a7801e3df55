"""One content, two roads: what the batch job makes of it, the stream makes too."""

import dataclasses
import io
import struct
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from serving.streaming import embedding, event_log, events, ingestion
from tfmm import artifacts, fingerprints
from tfmm.config import SCLConfig
from tfmm.index import beam, encode, item_index
from tfmm.pretrain.encoders import make_encoder

TITLES = {"nfc": "Café STRASSE", "nfd": "Cafe\u0301 straße", "other": "Tee Gasse"}
MAX_PIXELS = 10_000


def picture(orientation=1, kind="JPEG"):
    pixels = np.random.default_rng(3).integers(0, 255, (4, 6, 3)).astype(np.uint8)
    scene = Image.fromarray(pixels).resize((60, 40))
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    stored = scene.transpose(Image.Transpose.ROTATE_90) if orientation == 6 else scene
    stored.save(file, kind, exif=exif)
    return file.getvalue()


def bomb(side=8000):
    chunk = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + bytes(100)


IMAGES = {"upright": picture(kind="PNG"), "turned": picture(6, "PNG"), "bomb": bomb()}


@pytest.fixture(scope="module")
def encoder_dirs(tmp_path_factory):
    """Encoders of both kinds, as pre-training exports them, without the training."""
    root, result = tmp_path_factory.mktemp("encoders"), {}
    for modality in ("image", "text"):
        config = SCLConfig(modality=modality, dim=16, image_size=16, width=4, max_pixels=MAX_PIXELS)
        encoder, folder = make_encoder(config), root / modality
        encoder.export(folder / "encoder")
        facts = {"encoder_version": encoder.version(), "content_form": dataclasses.asdict(encoder.form)}
        artifacts.write_manifest(folder, "encoder", config, modality=modality, dim=16, **facts)
        result[modality] = str(folder)
    return result


@pytest.fixture(scope="module")
def of_batch(encoder_dirs, tmp_path_factory):
    """The index after `tfmm embed`, and its dead letters."""
    folder = tmp_path_factory.mktemp("batch")
    titles = {**TITLES, **dict.fromkeys(IMAGES)}
    columns = {"item_id": list(titles), "title": list(titles.values()), "image": [IMAGES.get(name) for name in titles]}
    pq.write_table(pa.table({**columns, "image": pa.array(columns["image"], pa.binary())}), folder / "items.parquet")
    beam.embed_catalog(folder, encoder_dirs, folder / "index.sqlite", folder / "dead")
    (letters,) = (folder / "dead").iterdir()
    with item_index.ItemIndex(folder / "index.sqlite") as index:
        return rows_by_name(index, encoder_dirs), letters.read_text()


@pytest.fixture(scope="module")
def of_stream(encoder_dirs, tmp_path_factory):
    """The index after the same contents came as events, and its dead letters."""
    encoders = beam.load_encoders(encoder_dirs, {})
    payloads = [events.make_event(name, title=title) for name, title in TITLES.items()]
    payloads += [events.make_event(name, image=image) for name, image in IMAGES.items()]
    batch = embedding.EventBatch("log", [event_log.Event(place, one) for place, one in enumerate(payloads, 1)])
    with item_index.ItemIndex(tmp_path_factory.mktemp("stream") / "index.sqlite") as index:
        ingestion.ingest(batch, encoders, index)
        return rows_by_name(index, encoder_dirs), [reason for _, _, reason, _ in index.dead_letters()]


def rows_by_name(index, encoder_dirs):
    result = {}
    for modality, folder in encoder_dirs.items():
        rows = index.embeddings(modality, encode.load_encoder(folder).version)
        names = {int(fingerprints.fingerprint([name])[0]): name for name in (*TITLES, *IMAGES)}
        result |= {names[item]: row.tolist() for item, row in zip(rows.ids.tolist(), rows.rows)}
    return result


def test_both_roads_give_the_same_rows(of_batch, of_stream):
    assert of_batch[0] == of_stream[0]
    assert sorted(of_batch[0]) == sorted([*TITLES, "upright", "turned"])


def test_spellings_of_a_title_have_one_row(of_stream):
    rows, _ = of_stream
    assert rows["nfc"] == rows["nfd"] != rows["other"]


def test_turned_photo_has_the_row_of_itself_upright(of_stream):
    rows, _ = of_stream
    assert rows["turned"] == rows["upright"]


def test_picture_of_too_many_pixels_is_a_dead_letter_on_both_roads(of_batch, of_stream):
    reason = "image: must have at most 10,000 pixels, not 64,000,000; make the picture smaller"
    assert of_stream[1] == [reason]
    assert reason in of_batch[1]


def test_encoder_of_an_earlier_release_takes_contents_as_they_are(encoder_dirs, tmp_path):
    """Its rows stand in an index beside new ones: they must stay comparable to each other."""
    encoder = make_encoder(SCLConfig(modality="text", dim=16))
    encoder.export(tmp_path / "encoder")
    artifacts.write_manifest(tmp_path, "encoder", encoder.config, modality="text", dim=16, encoder_version="old")
    composed, decomposed = encode.load_encoder(tmp_path)([TITLES["nfc"], TITLES["nfd"]])
    assert composed @ decomposed < 0.9


def test_content_of_the_wrong_kind_is_named(encoder_dirs):
    text, vector = encode.load_encoder(encoder_dirs["text"]), encode.GivenVectors(2)
    items = [encode.Item(1, contents={"text": [1.0, 2.0], "vector": "a title"})]
    assert encode.embed(items, text)[1] == {0: "title: must be text or bytes, not a list of numbers"}
    assert encode.embed(items, vector)[1] == {0: "vector: must be a list of numbers, not text or bytes"}
