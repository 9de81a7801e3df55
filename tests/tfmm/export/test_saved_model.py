"""The SavedModel of the click model, as TF Serving loads and calls it."""

import tempfile
import threading
import time

import numpy as np
import pytest
import tensorflow as tf

from tfmm import config as config_lib
from tfmm import fingerprints, preprocessing, saved_model
from tfmm.export import saved_model as export_lib
from tfmm.export import signatures
from tfmm.index import encode, snapshot

NEW_ITEM = 999_999
USER = ("user_id", "behavior_item_ids", "behavior_categories")


def raw_inputs(rows, seed=0, length=6):
    generator = np.random.default_rng(seed)
    valid = np.arange(length) < (np.arange(rows) % (length + 1))[:, None]
    return {
        "user_id": generator.integers(1, 60, rows),
        "item_id": generator.integers(1000, 1280, rows),
        "category": generator.integers(1, 6, rows),
        "behavior_item_ids": generator.integers(1000, 1280, (rows, length)) * valid,
        "behavior_categories": generator.integers(1, 6, (rows, length)) * valid,
    }


def for_one_user(raw):
    return {name: values[:1] if name in USER else values for name, values in raw.items()}


def tiled(raw):
    rows = len(raw["item_id"])
    return {name: np.repeat(v[:1], rows, 0) if name in USER else v for name, v in raw.items()}


def row_of(dim, seed=0):
    return encode.quantize(np.random.default_rng(seed).normal(size=(1, dim)))


def upsert(loaded, ids, dim=16, modality="image", sequence=10_000, encoder_version="v1", scale=None, seed=0):
    rows, scales = encode.quantize(np.random.default_rng(seed).normal(size=(len(ids), dim)))
    return loaded(
        "upsert_items",
        {
            "modality": np.array(modality, object),
            "item_ids": np.array(ids),
            "rows": rows,
            "scales": scales if scale is None else np.full(len(ids), scale, np.float32),
            "sequences": np.full(len(ids), sequence),
            "encoder_version": np.array(encoder_version, object),
        },
    )["statuses"].tolist()


def test_signatures_and_manifest(multimodal, loaded):
    assert sorted(name for name in loaded.signatures if not name.startswith("__")) == [
        "index_status", "rank", "rank_logged", "score_vectors", "serve_examples", "serve_examples_hidden",
        "serving_default", "upsert_items"]  # fmt: skip
    assert multimodal.manifest == export_lib.read_manifest(multimodal.version_dir)
    assert multimodal.manifest["index"]["image"]["encoder_version"] == "v1"
    found = {path.name for path in multimodal.version_dir.iterdir()}
    assert found <= {"saved_model.pb", "fingerprint.pb", "variables", "assets", "assets.extra"}
    assert [path.name for path in multimodal.version_dir.parent.iterdir()] == ["1"]  # nothing half-built stays


@pytest.mark.parametrize("rows", [0, 1, 5, 17, 50])
def test_any_batch_size_scores_as_row_by_row(loaded, rows):
    raw = raw_inputs(50)
    all_rows = loaded("serving_default", raw)
    some = loaded("serving_default", {name: values[:rows] for name, values in raw.items()})
    np.testing.assert_allclose(some["logit"], all_rows["logit"][:rows], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(some["score"], 1 / (1 + np.exp(-some["logit"])), atol=1e-5)


@pytest.mark.parametrize("candidates", [0, 7, 40])
def test_rank_equals_pointwise(loaded, candidates):
    raw = {name: values[: max(candidates, 1)] for name, values in raw_inputs(40).items()}
    raw |= {name: raw[name][:candidates] for name in ("item_id", "category")}
    expected = loaded("serving_default", tiled(raw))
    np.testing.assert_allclose(loaded("rank", for_one_user(raw))["logit"], expected["logit"], rtol=1e-5, atol=1e-5)


def test_longer_histories_count_their_newest_behaviors(loaded):
    raw = raw_inputs(9)
    older = np.full((9, 5), 1001)
    ids, categories = raw["behavior_item_ids"], raw["behavior_categories"]
    used = (ids > 0).sum(1)
    longer = {"behavior_item_ids": np.zeros((9, 11), int), "behavior_categories": np.zeros((9, 11), int)}
    full = np.minimum(used, 6) == 6
    for row in range(9):
        before = older[row] if full[row] else []
        values = np.concatenate([before, ids[row, : used[row]]])
        longer["behavior_item_ids"][row, : len(values)] = values
        values = np.concatenate([np.ones(len(before)), categories[row, : used[row]]])
        longer["behavior_categories"][row, : len(values)] = values
    assert full.any()
    expected = loaded("serving_default", raw)["logit"]
    np.testing.assert_allclose(loaded("serving_default", raw | longer)["logit"], expected, atol=1e-5)


def test_shorter_and_empty_histories_are_padded(loaded):
    raw = raw_inputs(5)
    raw |= {name: raw[name][:, :0] for name in USER[1:]}
    padded = raw | {name: np.zeros((5, 6), int) for name in USER[1:]}
    np.testing.assert_array_equal(loaded("serving_default", raw)["logit"], loaded("serving_default", padded)["logit"])


def test_upsert_changes_the_score_of_a_new_item_at_once(fresh):
    raw = raw_inputs(3) | {"item_id": np.full(3, NEW_ITEM)}
    before = fresh("serving_default", raw)["logit"]
    assert upsert(fresh, [NEW_ITEM]) == [0]
    after = fresh("serving_default", raw)["logit"]
    assert (np.abs(after - before) > 1e-3).all()
    assert upsert(fresh, [NEW_ITEM], sequence=9_999, seed=1) == [1]  # older
    assert upsert(fresh, [NEW_ITEM], encoder_version="v2", sequence=20_000, seed=1) == [3]
    np.testing.assert_array_equal(fresh("serving_default", raw)["logit"], after)
    assert upsert(fresh, [NEW_ITEM], scale=0.0, sequence=10_001) == [2]  # withdrawn
    np.testing.assert_array_equal(fresh("serving_default", raw)["logit"], before)


def test_upsert_of_nothing_changes_nothing(fresh):
    before = fresh("index_status", {})
    assert upsert(fresh, []) == []
    assert {k: v.tolist() for k, v in fresh("index_status", {}).items()} == {k: v.tolist() for k, v in before.items()}


def test_each_modality_has_its_own_table(fresh):
    newest = time.time_ns() // 1000
    assert upsert(fresh, [NEW_ITEM], dim=8, modality="text", sequence=newest) == [0]
    status = fresh("index_status", {})
    assert status["modality"].tolist() == [b"image", b"text"]
    assert status["watermark"][1] == newest > status["watermark"][0]
    assert status["capacity"].tolist() == [400, 400]
    with pytest.raises(tf.errors.InvalidArgumentError, match="`rows` of text must have 8 values"):
        upsert(fresh, [NEW_ITEM], dim=16, modality="text")
    with pytest.raises(tf.errors.InvalidArgumentError, match="`modality` must be one of"):
        upsert(fresh, [NEW_ITEM], modality="video")


def test_full_table_refuses_and_loses_nothing(fresh):
    before = fresh("index_status", {})["size"].tolist()
    with pytest.raises(tf.errors.OutOfRangeError, match="limit"):
        upsert(fresh, list(range(5_000, 5_400)))
    assert fresh("index_status", {})["size"].tolist() == before


def vectors_of(raw, folder):
    rows, inputs = snapshot.load_snapshot(folder), dict(raw)
    for modality in rows.modalities:
        for side, ids in (("target", raw["item_id"]), ("behavior", raw["behavior_item_ids"])):
            for part, values in zip(("rows", "scales", "mask"), rows[modality].lookup(ids)):
                inputs[f"{modality}_{side}_{part}"] = values
    return inputs


def test_vectors_of_the_caller_score_as_those_of_the_table(multimodal, loaded):
    raw = raw_inputs(21, length=4)
    pointwise = vectors_of(raw, multimodal.snapshot)
    np.testing.assert_allclose(
        loaded("score_vectors", pointwise)["logit"], loaded("serving_default", raw)["logit"], atol=1e-5
    )
    one = for_one_user(raw)
    np.testing.assert_allclose(
        loaded("score_vectors", vectors_of(one, multimodal.snapshot))["logit"],
        loaded("rank", one)["logit"],
        atol=1e-5,
    )
    with pytest.raises(tf.errors.InvalidArgumentError, match="as long as `item_id`"):
        loaded("score_vectors", pointwise | {"image_target_mask": np.ones(20, bool)})


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("category", np.ones(2, int)),
        ("user_id", np.ones(1, int)),
        ("behavior_categories", np.ones((3, 5), int)),
        ("behavior_item_ids", np.ones((2, 6), int)),
    ],
)
def test_lengths_that_differ_are_refused_by_name(loaded, name, values):
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"`{name}`|`behavior_categories`"):
        loaded("serving_default", raw_inputs(3) | {name: values})


def test_readers_see_whole_rows_while_writers_write(fresh):
    raw = raw_inputs(3) | {"item_id": np.full(3, NEW_ITEM)}
    allowed = []
    for seed in (0, 1):
        upsert(fresh, [NEW_ITEM], sequence=10_000 + seed, seed=seed)
        allowed.append(fresh("serving_default", raw)["logit"])
    stop = threading.Event()

    def write():
        sequence = 20_000
        while not stop.is_set():
            upsert(fresh, [NEW_ITEM], sequence=sequence, seed=sequence % 2)
            sequence += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(100):
            seen = fresh("serving_default", raw)["logit"]
            for row in range(3):
                assert min(abs(seen[row] - values[row]) for values in allowed) < 1e-6
    finally:
        stop.set()
        writer.join()


@pytest.mark.slow
def test_string_ids_are_fingerprinted_in_the_graph(export_model):
    strings = dict.fromkeys(("user_id", "item_id", "category"), "string")
    exported = export_model(id_types=strings)
    raw = raw_inputs(5)
    texts = {name: np.where(values == 0, "", values.astype(str)).astype(object) for name, values in raw.items()}
    numbers = {name: fingerprints.fingerprint(values) for name, values in texts.items()}
    feature = {
        name: [tf.train.Feature(int64_list=tf.train.Int64List(value=np.ravel(row))) for row in values]
        for name, values in numbers.items()
    }
    examples = [
        tf.train.Example(
            features=tf.train.Features(feature={name: rows[i] for name, rows in feature.items()})
        ).SerializeToString()
        for i in range(5)
    ]
    with saved_model.load_session(exported.version_dir) as loaded:
        texts = {name: np.char.encode(values.astype(str)).astype(object) for name, values in texts.items()}
        by_name = loaded("serving_default", texts)["logit"]
        by_example = loaded("serve_examples", {"examples": examples})["logit"]
        np.testing.assert_allclose(by_name, by_example, atol=1e-6)
        assert upsert(loaded, numbers["item_id"][:1]) == [0]
        assert loaded("serving_default", texts)["logit"][0] != by_name[0]


@pytest.mark.slow
def test_model_of_ids_alone_has_no_table_signatures(ids_alone):
    with saved_model.load_session(ids_alone.version_dir) as loaded:
        assert {"serving_default", "serve_examples", "rank"} <= set(loaded.signatures)
        assert not {"upsert_items", "index_status", "score_vectors", "serve_examples_hidden"} & set(loaded.signatures)
        raw = raw_inputs(5)
        expected = loaded("serving_default", tiled(raw))["logit"]
        np.testing.assert_allclose(loaded("rank", for_one_user(raw))["logit"], expected, atol=1e-5)


@pytest.mark.parametrize("hidden", [(), ("image",), ("text", "image")])
def test_hidden_vectors_score_as_if_the_index_had_none_for_the_target(loaded, multimodal, shop, examples, hidden):
    served = loaded("serve_examples_hidden", {"examples": examples[:30], "hidden": list(hidden)})["logit"]
    spec = {column.name: preprocessing.raw_spec(shop.features)[column.name] for column in shop.features.columns}
    raw = {name: values.numpy() for name, values in tf.io.parse_example(examples[:30], spec).items()}
    rows = snapshot.load_snapshot(shop.snapshot)
    for modality in ("image", "text"):
        for side, ids in (("target", raw["item_id"]), ("behavior", raw["behavior_item_ids"])):
            for part, values in zip(("rows", "scales", "mask"), rows[modality].lookup(ids)):
                raw[f"{modality}_{side}_{part}"] = values
        if modality in hidden:
            raw[f"{modality}_target_mask"] = np.zeros(30, bool)
    np.testing.assert_allclose(served, loaded("score_vectors", raw)["logit"], atol=1e-5)  # XLA sums in another order


def test_python_loads_it_as_well(multimodal, loaded, examples):
    module = tf.saved_model.load(str(multimodal.version_dir))
    outputs = module.signatures["serve_examples"](examples=tf.constant(examples[:9]))
    served = loaded("serve_examples", {"examples": examples[:9]})
    np.testing.assert_allclose(outputs["logit"], served["logit"], atol=1e-5)


def test_artifacts_that_do_not_fit_are_refused(multimodal, tmp_path):
    arguments = [multimodal.model_dir, multimodal.shop.vocabularies, multimodal.snapshot, {}]
    arguments += [config_lib.ExportConfig(), tmp_path / "1"]
    with pytest.raises(ValueError, match="`id_types` must give"):
        export_lib.export(*arguments)
    with pytest.raises(ValueError, match="`snapshot_dir` must be given"):
        export_lib.export(*arguments[:2], None, *arguments[3:])
    with pytest.raises(FileNotFoundError, match="Transform the examples first"):
        export_lib.export(arguments[0], tmp_path, *arguments[2:])
    preprocessing.write(tmp_path, dict.fromkeys(multimodal.shop.features.vocabularies, np.array([1])), {})
    with pytest.raises(ValueError, match="the one that the model was trained with"):
        export_lib.export(arguments[0], tmp_path, *arguments[2:])
    assert not (tmp_path / "1").exists()


def test_rows_stand_beside_the_version_and_go_with_an_export_that_fails(multimodal, tmp_path, monkeypatch):
    """One that is killed leaves nothing in the folder of temporary files, which may be small, and nobody cleans."""
    versions, temporary = tmp_path / "tfmm", tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))

    def fail(*_):
        found.extend(path.name for path in versions.rglob("*_rows"))
        found.extend(temporary.iterdir())
        raise OSError("no room")

    found = []
    monkeypatch.setattr(saved_model, "save", fail)
    with pytest.raises(OSError, match="no room"):
        export_lib.export(multimodal.model_dir, multimodal.shop.vocabularies, multimodal.snapshot,
                          multimodal.manifest["id_types"], config_lib.ExportConfig(), versions / "1")  # fmt: skip
    assert sorted(found) == ["image_rows", "text_rows"] and not list(versions.iterdir())


def test_larger_snapshot_gets_room(multimodal, tmp_path):
    from tfmm.ctr import model as model_lib

    model = model_lib.load_model(multimodal.model_dir)
    config = config_lib.ExportConfig(index_capacity=1)
    tables = export_lib._tables(model, multimodal.snapshot, config, tmp_path)
    rows = snapshot.load_snapshot(multimodal.snapshot)
    assert tables["image"].capacity >= 1.2 * len(rows["image"])


def test_vector_specs_name_every_part():
    specs = signatures.vector_specs("image", 4, "behavior", 1, None)
    assert specs["image_behavior_rows"].shape.as_list() == [1, None, 4]
    assert list(specs) == ["image_behavior_rows", "image_behavior_scales", "image_behavior_mask"]


@pytest.mark.parametrize("candidates", [0, 7, 40])
def test_rank_that_is_logged_scores_as_rank_and_tells_the_index(loaded, candidates):
    raw = for_one_user(raw_inputs(max(candidates, 1)))
    raw |= {name: raw[name][:candidates] for name in ("item_id", "category")}
    found = loaded(signatures.LOGGED[signatures.RANK], raw)
    for name, values in loaded(signatures.RANK, raw).items():
        np.testing.assert_array_equal(found[name], values)
    status = loaded(signatures.STATUS, {})
    for name in ("modality", "watermark", "encoder_version"):
        np.testing.assert_array_equal(found[name], status[name])
    assert not any(name.startswith(signatures.LOOKED_UP) for name in found)  # this index has no features of items


def test_a_change_is_in_the_scores_that_tell_its_sequence(fresh):
    raw = for_one_user(raw_inputs(7)) | {"item_id": np.arange(1000, 1007)}
    before = fresh(signatures.LOGGED[signatures.RANK], raw)
    sequence = time.time_ns() // 1000
    assert upsert(fresh, raw["item_id"], sequence=sequence, seed=9) == [0] * 7
    after = fresh(signatures.LOGGED[signatures.RANK], raw)
    assert dict(zip(after["modality"], after["watermark"]))[b"image"] == sequence
    assert (after["score"] != before["score"]).any()
    np.testing.assert_array_equal(after["score"], fresh(signatures.RANK, raw)["score"])


def test_a_model_of_ids_alone_has_no_index_to_tell(ids_alone):
    with saved_model.load_session(ids_alone.version_dir) as model:
        raw = for_one_user(raw_inputs(5))
        found = model(signatures.LOGGED[signatures.RANK], raw)
        np.testing.assert_array_equal(found["score"], model(signatures.RANK, raw)["score"])
        assert len(found["modality"]) == len(found["watermark"]) == 0
