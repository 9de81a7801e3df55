"""What is seen of an encoder beside Acc@N: siblings, categories, and a sheet of pairs."""

import base64
import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from tfmm.config import SCLConfig
from tfmm.evaluate import encoders as evaluate_encoders
from tfmm.metrics import alignment, uniformity
from tfmm.pretrain import contact_sheet, in_words, looking
from tfmm.pretrain.encoders import make_encoder
from tfmm.pretrain.heldout import Heldout, Vectors
from tfmm.pretrain.pair_table import PairTable
from tfmm.pretrain.train import fit, train

TEXT = SCLConfig(modality="text", text_buckets=512, dim=16, batch_size=10, epochs=2)
IMAGE = SCLConfig(image_size=16, width=4, dim=8, batch_size=16, epochs=1, memory_bank_size=0)


def on_circle(*degrees):
    turned = np.radians(degrees)
    return np.stack([np.cos(turned), np.sin(turned)], axis=1).astype(np.float32)


def test_siblings_are_the_items_nearest_to_each_other_before_training():
    """Four items at 0, 10, 100 and 140 degrees; item 7 is the positive of two pairs."""
    ids = np.array([7, 3, 9, 7, 5])
    positives = on_circle(0, 10, 100, 0, 140)
    near = looking.siblings(positives, ids, 2)  # of 3, 5, 7, 9 in ascending order
    assert near.tolist() == [[2, 3], [3, 0], [0, 3], [1, 0]]
    vectors = Vectors(on_circle(6, 6, 100, 2, 120), positives)
    # At 6 degrees 10 is nearer than 0: item 3 wins. The last query lies half-way between 9 and 5: a tie is lost.
    assert looking.sibling_ranks(vectors, ids, near).tolist() == [2, 1, 1, 1, 2]


def test_ranks_among_all_others_are_those_of_acc_at_1():
    rng = np.random.default_rng(0)
    ids = rng.permutation(30)
    vectors = Vectors(*(rng.normal(size=(30, 8)).astype(np.float32) for _ in range(2)))
    near = looking.siblings(vectors.positives, ids, 29)
    ranks = looking.sibling_ranks(vectors, ids, near)
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in vectors]
    cosines = unit[0] @ unit[1].T
    np.testing.assert_array_equal(ranks, (cosines >= np.diag(cosines)[:, None] - 1e-6).sum(axis=1))


def test_accuracy_by_category_leaves_none_out():
    ranks = np.array([1, 2, 1, 9, 1])
    found = looking.by_category(ranks, np.array(["7", "7", "7", None, "b"], object), np.array([1, 1, 2, 3, 4]))
    assert found["7"] == {"pairs": 3, "items": 2, "acc_at_1": 2 / 3, "acc_at_5": 1.0}
    assert found[""]["acc_at_1"] == 0.0 and found["b"]["pairs"] == 1
    many = looking.by_category(np.ones(50), np.arange(50).astype(str).astype(object), np.arange(50))
    assert len(many) == looking.MAX_CATEGORIES + 1 and many[looking.REST]["pairs"] == 30
    assert sum(of["pairs"] for of in many.values()) == 50


@pytest.fixture(scope="module")
def with_categories(text_pairs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("categories")
    for name in ("train", "heldout"):
        table = pq.read_table(text_pairs / f"{name}.parquet")
        if name == "heldout":
            said = pa.array(["mugs" if item % 3 else None for item in table["positive_item_id"].to_pylist()])
            table = table.append_column("positive_category", said)
        pq.write_table(table, folder / f"{name}.parquet")
    return folder


def test_manifest_report_and_words_tell_what_is_seen(with_categories, tmp_path):
    manifest = train(TEXT, with_categories, tmp_path)
    fitted = fit(TEXT, with_categories)
    heldout = Heldout(fitted.encoder, with_categories / "heldout.parquet")
    vectors = heldout.vectors()
    assert manifest["alignment"] == alignment(*vectors) < manifest["alignment_untrained"]
    _, first = np.unique(heldout.pairs.item_ids, return_index=True)
    assert manifest["uniformity"] == uniformity(vectors.positives[first]) < 0.0
    assert manifest["siblings"] == 9 and manifest["acc_at_1_siblings_chance"] == 0.1
    assert manifest["acc_at_1"] <= manifest["acc_at_1_siblings"] <= 1.0
    categories = manifest["categories"]
    assert list(categories) == ["mugs", ""]
    mean = sum(of["acc_at_1"] * of["pairs"] for of in categories.values()) / manifest["heldout_pairs"]
    assert mean == pytest.approx(manifest["acc_at_1"])
    lines = in_words.encoder_lines(manifest)
    assert any("among 9 siblings that are nearly the same Acc@1" in line for line in lines)
    assert any("Acc@1 by category: mugs" in line for line in lines)
    told = {name: manifest[name] for name in evaluate_encoders.FROM_MANIFEST if name in manifest}
    assert {"alignment", "uniformity_untrained", "siblings", "acc_at_1_siblings", "categories"} <= set(told)
    json.dumps(manifest, allow_nan=False)


def test_pairs_that_say_no_category_have_none(text_pairs):
    assert "categories" not in fit(dataclasses.replace(TEXT, epochs=1), text_pairs).facts


def test_a_sheet_shows_pictures_small_and_marks_hits(image_pairs, tmp_path):
    train(IMAGE, image_pairs, tmp_path)
    text = (tmp_path / contact_sheet.FILE).read_text()
    rows = json.loads(text)
    assert len(rows) == contact_sheet.NUM_ROWS and len(text) < 250_000
    for row in rows:
        assert len(row["found"]) == contact_sheet.NUM_FOUND
        cosines = [card["similarity"] for card in row["found"]]
        assert cosines == sorted(cosines, reverse=True)
        hits = [place for place, card in enumerate(row["found"], 1) if card["is_hit"]]
        assert hits == ([row["rank"]] if row["rank"] <= contact_sheet.NUM_FOUND else [])
        for card in (row["query"], row["positive"], *row["found"]):
            picture = tf.io.decode_jpeg(base64.b64decode(card["image"]))
            assert picture.shape == (contact_sheet.SIDE, contact_sheet.SIDE, 3)
            assert picture.numpy().mean() > 128  # colors as they are, on white
    assert any(row["negative"] for row in rows) and any(row["negative"] is None for row in rows)
    again = fit(IMAGE, image_pairs).sheet
    assert [row["query"] for row in again] == [row["query"] for row in rows]


def test_a_sheet_cuts_texts_and_tells_other_contents_by_their_size(text_pairs, tmp_path):
    encoder = make_encoder(TEXT)
    heldout = Heldout(encoder, text_pairs / "heldout.parquet")
    contents = [b"x" * 1000, b"\xff\xfe" * 100, *heldout.pairs.contents[2:]]
    object.__setattr__(heldout.pairs, "contents", contents)
    cards = contact_sheet._cards(contents[:3])
    assert cards[0] == {"text": "x" * 199 + "…"} and cards[1] == {"text": "200 bytes"}
    rows = contact_sheet.make(heldout, heldout.vectors(), heldout.ranks(), seed=0)
    assert len({json.dumps(row["positive"]) for row in rows}) == contact_sheet.NUM_ROWS


def test_uniformity_is_of_items_drawn_of_all_and_not_of_the_smallest_ids(monkeypatch):
    """Items of small ids lie in one place, the others at right angles to each other."""
    monkeypatch.setattr(looking, "MAX_UNIFORM", 8)
    rows = np.concatenate([np.repeat(np.eye(25)[:1], 8, axis=0), np.eye(25)[1:]]).astype(np.float32)
    pairs = PairTable([], *(np.zeros(len(rows), np.int64) for _ in range(3)), item_ids=np.arange(len(rows)))
    held = Heldout.__new__(Heldout)
    held.pairs = pairs
    vectors = Vectors(rows, rows)
    told = [looking.look(held, vectors, vectors, np.ones(len(rows), np.int64))["uniformity"] for _ in range(2)]
    assert told[0] == told[1] < uniformity(rows[:8]) - 1.0
