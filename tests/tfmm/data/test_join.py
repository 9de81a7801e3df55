"""Tests of the join over partitions on disk: what it writes is what the Beam job writes, however it is cut."""

import dataclasses
import itertools
import json

import apache_beam
import numpy as np
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from tfmm import artifacts, presets
from tfmm.config import DataConfig
from tfmm.data import beam, examples, join, records, schema, shards, transform
from tfmm.features import Feature, FeatureSet, Sequence
from tfmm.marketplace import generator
from tfmm.preprocessing import raw_spec
from tfmm.training import examples as examples_lib

CONFIG = DataConfig(max_behaviors=5)
FEATURES = FeatureSet(
    features=(
        *FeatureSet().features,
        Feature("hour", "context", "time", source="impressions.timestamp"),
        Feature("age", "behavior", "number", scaling="quantiles", num_quantiles=5, source="behaviors.age"),
    ),
    sequences=(
        Sequence("acts", features=("item_id", "category", "age")),
        Sequence("clicks", actions=("click",), features=("item_id",), length=3),
    ),
).resolved(max_behaviors=5, min_count=2)


def of_beam(data, feature_set, folder):
    with apache_beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner"])) as root:
        beam.write(root, data, CONFIG, feature_set, folder, prefix="{split}")
    spec = raw_spec(feature_set)
    splits = {split: examples.read_columns(str(folder / f"{split}-*.gz"), spec) for split in ("train", "eval")}
    return {split: examples_lib.in_time_order(columns) for split, columns in splits.items()}


def of_join(data, feature_set, folder):
    join.write_examples(data, CONFIG, feature_set, folder)
    return {split: shards.read_columns(str(folder / f"{split}-*")) for split in ("train", "eval")}


def assert_equal(found, expected):
    for split in expected:
        assert found[split].keys() == expected[split].keys()
        for name, values in expected[split].items():
            np.testing.assert_array_equal(found[split][name], values, name)
            assert found[split][name].dtype == values.dtype, name


def test_rows_are_those_of_the_beam_job_in_time_order(small_marketplace, tmp_path):
    found, expected = (of(small_marketplace, FEATURES, tmp_path / of.__name__) for of in (of_join, of_beam))
    assert_equal(found, expected)
    assert (found["train"]["acts_item_id"] != 0).any() and np.isfinite(found["train"]["acts_age"]).any()


@pytest.mark.slow
def test_every_column_of_the_preset_rich_is_that_of_the_beam_job(tmp_path):
    run = presets.rich()
    small = dataclasses.replace(run.marketplace, num_items=300, num_users=100, num_days=4, new_items_per_day=10)
    generator.generate(small, tmp_path / "data")
    assert_equal(*(of(tmp_path / "data", run.feature_set, tmp_path / of.__name__) for of in (of_join, of_beam)))


@pytest.mark.parametrize("rows_per_partition, rows_per_shard", [(500, 10**9), (10**9, 700), (300, 400)])
def test_partitions_and_shards_change_nothing(
    small_marketplace, tmp_path, monkeypatch, rows_per_partition, rows_per_shard
):
    expected = of_join(small_marketplace, FEATURES, tmp_path / "whole")
    transform.fit(tmp_path / "whole", tmp_path / "vocabulary")
    monkeypatch.setattr(join, "ROWS_PER_PARTITION", rows_per_partition)
    monkeypatch.setattr(join, "ROWS_PER_SHARD", rows_per_shard)
    monkeypatch.setattr(shards, "PIECE", 129)
    monkeypatch.setattr(shards, "AGES", 100)
    assert_equal(of_join(small_marketplace, FEATURES, tmp_path / "cut"), expected)
    if rows_per_shard < 10**9:
        assert len(list((tmp_path / "cut").glob("train-*"))) > 3
    times = [np.load(path)["timestamp"] for path in sorted((tmp_path / "cut").glob("train-*"))]
    assert all(before.max() < after.min() for before, after in itertools.pairwise(times))
    transform.fit(tmp_path / "cut", tmp_path / "cut_vocabulary")
    for path in (tmp_path / "vocabulary").iterdir():
        if path.name != artifacts.MANIFEST:
            assert (tmp_path / "cut_vocabulary" / path.name).read_text() == path.read_text(), path.name
    assert not (tmp_path / "cut" / ".parts").exists()


def test_a_history_is_stored_once_however_many_rows_show_it(tables, tmp_path, at):
    rows = [{"user_id": 1, "item_id": 1 + m % 3, "timestamp": at(100 + m), "label": m % 2} for m in range(40)]
    acts = [{"user_id": 1, "item_id": 1 + m % 3, "timestamp": at(m), "action": "click"} for m in range(30)]
    stranger = [{"user_id": 2, "item_id": 1, "timestamp": at(1), "action": "click"}]
    items = [{"item_id": k, "category": 7} for k in (1, 2, 3)]
    features = FeatureSet().resolved(max_behaviors=20, min_count=1)
    folder = tables(items=items, impressions=rows, behaviors=acts + stranger)
    join.write_examples(folder, DataConfig(max_behaviors=20), features, tmp_path / "out")
    stored = np.load(tmp_path / "out" / "history-behavior.npy")
    assert len(stored) == 20  # the newest 20, which all rows see; nothing of a user without a row
    assert set(stored[shards.SHOWN]) == {32}  # each of the training rows


def test_files_that_end_early_and_other_artifacts_are_refused(small_marketplace, tmp_path):
    features = FeatureSet().resolved(max_behaviors=5, min_count=2)
    join.write_examples(small_marketplace, CONFIG, features, tmp_path / "out")
    path = next((tmp_path / "out").glob("train-*"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    with pytest.raises(ValueError, match=r"must be whole.*train-0.*Write the examples again"):
        shards.Shards([str(path)])
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="must be whole"):
        shards.Shards([str(path)])
    np.save(path, np.zeros(3, [("x", "<i4")]))
    with pytest.raises(ValueError, match=r"must hold rows of .*Received: \('x',\)"):
        shards.Shards([str(path)])
    (tmp_path / "out" / artifacts.MANIFEST).unlink()
    with pytest.raises(FileNotFoundError, match="did not finish"):
        shards.Shards([str(path)])
    with pytest.raises(ValueError, match="must lie in one folder"):
        shards.Shards([str(path), str(tmp_path / "other" / "train-0.npy")])


def test_writing_again_leaves_nothing_of_before(small_marketplace, tmp_path):
    features = FeatureSet().resolved(max_behaviors=5, min_count=2)
    (tmp_path / "train-00000-of-00009.npy").write_bytes(b"old")
    (tmp_path / ".parts").mkdir()
    (tmp_path / ".parts" / "impressions-0").write_bytes(b"half")
    join.write_examples(small_marketplace, CONFIG, features, tmp_path)
    first = {path.name: path.read_bytes() for path in tmp_path.glob("*.npy")}
    join.write_examples(small_marketplace, CONFIG, features, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.npy")} == first
    assert "train-00000-of-00009.npy" not in first
    rows = schema.read_table(small_marketplace, "impressions").num_rows
    manifest = json.loads((tmp_path / artifacts.MANIFEST).read_text())
    assert manifest["train"] + manifest["eval"] == rows and set(manifest["digests"]) == set(first)


def test_records_come_back_as_they_were_appended(tmp_path):
    dtype, generator_ = np.dtype([("a", "<i4"), ("b", "<f4", (2,))]), np.random.default_rng(0)
    pieces = []
    with records.Writer(tmp_path / "x.npy", dtype) as writer:
        for size in (0, 3, 70_000):
            piece = np.zeros(size, dtype)
            piece["a"], piece["b"] = generator_.integers(0, 9, size), generator_.random((size, 2))
            writer.append(piece)
            pieces.append(piece)
        assert not (tmp_path / "x.npy").exists()  # a file is whole or absent
    whole = np.concatenate(pieces)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), whole)
    found = records.Records(tmp_path / "x.npy")
    np.testing.assert_array_equal(np.concatenate(list(found.pieces(1000))), whole)
    with pytest.raises(RuntimeError, match="stop"), records.Writer(tmp_path / "y.npy", dtype) as writer:
        writer.append(whole)
        raise RuntimeError("stop")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.npy"]


def test_two_rows_of_one_item_without_a_word_which_is_newer_are_refused(tables, at, tmp_path):
    shown = [{"user_id": 1, "item_id": 1, "timestamp": at(n), "label": n % 2} for n in range(20)]
    rows = [{"item_id": item, "title": "t", "category": n} for n, item in enumerate((1, 2, 0, 0, None, 1), 1)]
    with pytest.raises(ValueError, match=r"`items.item_id` must be unique.*Received: 1 rows .* first rows 5\."):
        join.write_examples(tables(items=rows, impressions=shown), DataConfig(), FEATURES, tmp_path / "out")


def test_a_missing_shard_is_named(small_marketplace, tmp_path, monkeypatch):
    monkeypatch.setattr(join, "ROWS_PER_SHARD", 900)
    features = FeatureSet().resolved(max_behaviors=5, min_count=2)
    join.write_examples(small_marketplace, CONFIG, features, tmp_path)
    files = sorted(str(path) for path in tmp_path.glob("train-*"))
    assert shards.Shards(files).num_rows and len(files) > 2
    with pytest.raises(ValueError, match=r"must have the shards that its manifest names.*Differing: train-00001-of-"):
        shards.Shards([files[0], *files[2:]])


def test_examples_stay_where_a_declaration_is_refused(small_marketplace, tmp_path):
    features = FeatureSet().resolved(max_behaviors=5, min_count=2)
    join.write_examples(small_marketplace, CONFIG, features, tmp_path)
    np.save(tmp_path / "mine.npy", np.arange(3))
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    wrong = dataclasses.replace(
        features, features=(*features.features, Feature("mood", "context", source="impressions.mood"))
    )
    with pytest.raises(ValueError, match=r"(?s)must have what the run declares.*mood"):
        join.write_examples(small_marketplace, CONFIG, wrong, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first


def test_many_behaviors_of_few_impressions_are_cut_too(small_marketplace, tmp_path, monkeypatch):
    expected = of_join(small_marketplace, FEATURES, tmp_path / "whole")
    monkeypatch.setattr(join, "LOG_ROWS_PER_PARTITION", 300)
    assert_equal(of_join(small_marketplace, FEATURES, tmp_path / "cut"), expected)
