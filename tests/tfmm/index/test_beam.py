"""Tests of the catalog's embedding."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tfmm import dead_letters, fingerprints
from tfmm.index import beam, encode, item_features, item_index, snapshot
from tfmm.modalities import Modality, ModalitySet

VECTOR = pa.list_(pa.float32())


def categories(index):
    """The items' categories by item id, as the index has them."""
    (layout,) = item_features.layouts(index)
    found = index.embeddings("item_features", layout.version)
    return dict(zip(found.ids.tolist(), layout.unpack(found.rows)["category"].tolist()))


def test_catalog_is_embedded_and_faults_are_counted_apart(catalog, encoder_dirs, tmp_path):
    counts = beam.embed_catalog(catalog, encoder_dirs, tmp_path / "index.sqlite", tmp_path / "dead")
    assert counts == {
        "image": {"embedded": 7, "changed": 7, "rejected": 1, "missing": 2},
        "text": {"embedded": 10, "changed": 10, "rejected": 0, "missing": 0},
    }
    (line,) = [line for path in (tmp_path / "dead").iterdir() for line in path.read_text().splitlines()]
    assert json.loads(line) == {
        "item_id": int(fingerprints.fingerprint(["item-1"])[0]),
        "modality": "image",
        "reason": "image: cannot be decoded, or is blank",
        "content": "bad bytes",
    }
    with item_index.ItemIndex(tmp_path / "index.sqlite") as index:
        taken = snapshot.take_snapshot(index)
        ids = fingerprints.fingerprint([f"item-{n}" for n in range(10)])
        shoes = int(fingerprints.fingerprint(["shoes"])[0])
        assert categories(index) == dict(zip(ids.tolist(), [shoes] * 9 + [0]))
    rows, scales, mask = taken["image"].lookup(ids)
    np.testing.assert_array_equal(mask, [False, False, *[True] * 7, False])
    wanted = encode.quantize(encode.load_encoder(encoder_dirs["image"])([f"image {n}" for n in range(7)]))
    np.testing.assert_array_equal(rows[2:9], wanted[0])
    np.testing.assert_array_equal(scales[2:9], wanted[1])


def test_a_partitioned_catalog_gives_the_index_of_a_flat_one(tmp_path):
    rows = {"item_id": [1, 2, 3, 4], "category": [5, 5, 6, 6], "vector": [[1.0, 0.0], [0.0, 1.0], None, [3.0, 4.0]]}
    table = pa.table(rows, pa.schema([("item_id", pa.int64()), ("category", pa.int64()), ("vector", VECTOR)]))
    for name in ("flat/items", "parts/items.parquet/category=5", "parts/items.parquet/category=6/dt=1"):
        (tmp_path / name).mkdir(parents=True)
    pq.write_table(table, tmp_path / "flat" / "items" / "part-0.parquet")
    for folder, part in (("category=5", table[:2]), ("category=6/dt=1", table[2:])):
        pq.write_table(part.drop(["category"]), tmp_path / "parts" / "items.parquet" / folder / "part-0.parquet")
    ids, found = np.array([1, 2, 3, 4]), []
    for name in ("flat", "parts"):
        counts = beam.embed_catalog(tmp_path / name, {}, tmp_path / f"{name}.sqlite")
        assert counts == {"vector": {"embedded": 3, "changed": 3, "rejected": 0, "missing": 1}}
        with item_index.ItemIndex(tmp_path / f"{name}.sqlite") as index:
            assert categories(index) == {1: 5, 2: 5, 3: 6, 4: 6}
            found.append(snapshot.take_snapshot(index)["vector"].lookup(ids))
    for flat, parts in zip(*found):
        np.testing.assert_array_equal(parts, flat)


def test_second_run_changes_nothing(catalog, encoder_dirs, tmp_path):
    beam.embed_catalog(catalog, encoder_dirs, tmp_path / "index.sqlite")
    counts = beam.embed_catalog(catalog, encoder_dirs, tmp_path / "index.sqlite")
    assert counts["image"]["changed"] == counts["text"]["changed"] == 0
    assert counts["text"]["embedded"] == 10


def test_items_bring_their_own_vectors(tmp_path):
    data_dir = tmp_path / "data" / "items"
    data_dir.mkdir(parents=True)
    vectors = [[3.0, -4.0], None, [1.0, 0.0], [1.0, 2.0, 3.0], [0.0, 0.0]]
    pq.write_table(
        pa.table({"item_id": [1, 2, 3, 4, 5], "vector": pa.array(vectors, pa.list_(pa.float32()))}),
        data_dir / "part-0.parquet",
    )
    counts = beam.embed_catalog(tmp_path / "data", {}, tmp_path / "index.sqlite", tmp_path / "dead")
    assert counts == {"vector": {"embedded": 2, "changed": 2, "rejected": 2, "missing": 1}}
    reasons = {
        json.loads(line)["item_id"]: json.loads(line)["reason"]
        for path in (tmp_path / "dead").iterdir()
        for line in path.read_text().splitlines()
    }
    assert reasons == {4: "vector: must give 2 finite values", 5: "vector: is all zeros"}
    with item_index.ItemIndex(tmp_path / "index.sqlite") as index:
        table = snapshot.take_snapshot(index)["vector"]
    assert table.encoder_version.startswith("given:")
    assert table.ids.tolist() == [1, 3]
    assert table.rows.tolist() == [[95, -127], [127, 0]]


def write_vectors(data_dir, ids, vectors, **options):
    data_dir.mkdir()
    table = pa.table({"item_id": ids, "vector": pa.array(vectors, pa.list_(pa.float32()))})
    pq.write_table(table, data_dir / "items.parquet", **options)


@pytest.mark.parametrize("ids", [[1, None, 0, 4], ["a", None, "", "d"]])
def test_rows_without_an_id_are_dead_letters(ids, tmp_path):
    write_vectors(tmp_path / "data", ids, [[1.0, 0.0]] * 4)
    counts = beam.embed_catalog(tmp_path / "data", {}, tmp_path / "index.sqlite", tmp_path / "dead")
    assert counts == {"vector": {"embedded": 2, "changed": 2, "rejected": 2, "missing": 0}}
    lines = [line for path in (tmp_path / "dead").iterdir() for line in path.read_text().splitlines()]
    reason = {"item_id": 0, "modality": "vector", "reason": "item_id: must be neither null, 0 nor empty",
              "content": "[1.0, 0.0]"}  # fmt: skip
    assert [json.loads(line) for line in lines] == [reason] * 2


def test_bad_row_of_the_catalog_does_not_end_the_job(encoder_dirs, tmp_path):
    (tmp_path / "data").mkdir()
    titles = [b"red shoe", b"\xff\xfe", b"a" * 20_000, b"\0", b"blue shoe"]
    ids = [b"a", b"b\xff", b"c", b"c\0", b"e"]
    columns = {name: pa.array(values, pa.binary()).view(pa.string()) for name, values in
               (("item_id", ids), ("title", titles), ("category", ids))}  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "data" / "items.parquet")
    counts = beam.embed_catalog(
        tmp_path / "data", {"text": encoder_dirs["text"]}, tmp_path / "index.sqlite", tmp_path / "dead"
    )
    assert counts == {"text": {"embedded": 4, "changed": 4, "rejected": 1, "missing": 0}}
    (line,) = [line for path in (tmp_path / "dead").iterdir() for line in path.read_text().splitlines()]
    assert json.loads(line)["reason"] == "title: must be at most 16384 bytes of UTF-8, not 20000; shorten it"
    with item_index.ItemIndex(tmp_path / "index.sqlite") as index:
        found = index.embeddings("text", "v1")
    wanted = encode.quantize(encode.load_encoder(encoder_dirs["text"])([titles[n] for n in (0, 1, 3, 4)]))[0]
    rows = dict(zip(fingerprints.fingerprint([ids[n] for n in (0, 1, 3, 4)]).tolist(), wanted.tolist()))
    assert dict(zip(found.ids.tolist(), found.rows.tolist())) == rows and len(rows) == 4


def test_vectors_with_nulls_inside_are_dead_letters(tmp_path):
    write_vectors(tmp_path / "data", [1, 2, 3], [[1.0, 0.0], [None, 1.0], [0.0, 1.0]])
    counts = beam.embed_catalog(tmp_path / "data", {}, tmp_path / "index.sqlite")
    assert counts == {"vector": {"embedded": 2, "changed": 2, "rejected": 1, "missing": 0}}


def test_most_frequent_length_of_vectors_counts(tmp_path):
    vectors = [[1.0, 2.0, 3.0], [1.0, 0.0], None, [], [], [], [0.0, 1.0]]
    write_vectors(tmp_path / "data", range(1, 8), vectors, row_group_size=3)
    assert beam.vector_dims(tmp_path / "data") == {"vector": 2}
    counts = beam.embed_catalog(tmp_path / "data", {}, tmp_path / "index.sqlite")
    assert counts == {"vector": {"embedded": 2, "changed": 2, "rejected": 1, "missing": 4}}


def test_an_encoder_of_another_modality_is_refused(catalog, encoder_dirs, tmp_path):
    with pytest.raises(ValueError, match="holds an encoder of 'text'"):
        beam.embed_catalog(catalog, {"image": encoder_dirs["text"]}, tmp_path / "index.sqlite")


def test_nothing_to_embed_is_refused(catalog, tmp_path):
    with pytest.raises(ValueError, match="must name an encoder"):
        beam.embed_catalog(catalog, {}, tmp_path / "index.sqlite")


def test_declared_vectors_stand_side_by_side(catalog, encoder_dirs, tmp_path):
    """Texts, and two columns of ready vectors of two lengths; the pictures are in no declaration."""
    path = catalog / "items.parquet"
    items = pq.read_table(path)
    clips = [None, *([float(n), 1.0, 0.0] for n in range(9))]
    items = items.append_column("clip_vector", pa.array(clips, pa.list_(pa.float64())))
    items = items.append_column("brand", pa.array([[1.0, float(n)] for n in range(10)]))
    pq.write_table(items, path)
    declared = ModalitySet(
        (
            Modality("text", "text", column="title"),
            Modality("clip", "vector", column="clip_vector"),
            Modality("brand", "vector"),
        )
    )
    index_path = tmp_path / "index.sqlite"
    counts = beam.embed_catalog(catalog, {"text": encoder_dirs["text"]}, index_path, modality_set=declared)
    assert {name: (found["embedded"], found["missing"]) for name, found in counts.items()} == {
        "text": (10, 0), "clip": (9, 1), "brand": (10, 0)}  # fmt: skip
    with item_index.ItemIndex(index_path) as index:
        active = index.active_encoders()
        assert {name: entry.dim for name, entry in active.items()} == {"text": 6, "clip": 3, "brand": 2}
        rows = index.embeddings("clip", active["clip"].encoder_version)
    ids = fingerprints.fingerprint([f"item-{n}" for n in range(1, 10)])
    assert set(rows.ids.tolist()) == set(ids.tolist())
    expected, _ = encode.quantize(clips[1:])
    np.testing.assert_array_equal(rows.rows[np.argsort(rows.ids)], expected[np.argsort(ids)])


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        (None, None),
        (b"null", "null"),
        (b"\xff\xfe", "base64://4="),
        ([1.0, None], "[1.0, null]"),
        ("\u00e9" * 8, "\u00e9" * 8),
        (("\u00e9" * 8).encode(), "\u00e9" * 8),  # characters count, and none is cut
        (("\u00e9" * 9).encode(), "\u00e9" * 8 + "... (18 bytes)"),
        ("\u00e9" * 9, "\u00e9" * 8 + "... (18 bytes)"),
        ([1.0] * 4, "[1.0, 1.... (20 bytes)"),
    ],
)
def test_a_dead_letter_keeps_its_content_as_it_came_and_says_where_it_is_cut(content, kept, monkeypatch):
    monkeypatch.setattr(beam, "MAX_CONTENT", 8 if content not in (b"\xff\xfe", [1.0, None]) else 11)
    line = beam._to_json(encode.Rejected(7, "text", "why", content))
    assert json.loads(line) == {"item_id": 7, "modality": "text", "reason": "why", "content": kept}


def test_a_row_without_id_and_title_is_no_title_named_null(encoder_dirs, tmp_path):
    (tmp_path / "data").mkdir()
    columns = {"item_id": ["", None, "c"], "title": [None, "null", "red shoe"]}
    pq.write_table(pa.table(columns), tmp_path / "data" / "items.parquet")
    folders = {"text": encoder_dirs["text"]}
    beam.embed_catalog(tmp_path / "data", folders, tmp_path / "index.sqlite", tmp_path / "dead")
    found = [letter.content for letter in dead_letters.read(*(tmp_path / "dead").iterdir())]
    assert sorted(found, key=str) == [None, "null"]
