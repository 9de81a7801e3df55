"""The stage: files in, a manifest and an encoder out; stopping it anywhere changes nothing."""

import dataclasses
import json
import pathlib

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from tfmm import artifacts, saved_model
from tfmm.config import SCLConfig
from tfmm.pretrain import pair_table
from tfmm.pretrain import train as train_lib
from tfmm.pretrain.encoders import make_encoder
from tfmm.pretrain.pair_table import ContentTable, read_pairs
from tfmm.pretrain.train import Heldout, epoch_batches, fit, train

IMAGE = SCLConfig(modality="image", image_size=16, width=4, stages=2, head_channels=4, dim=8, batch_size=16, epochs=2,
                  memory_bank_size=40, memory_bank_share=2.0)
TEXT = SCLConfig(modality="text", text_buckets=512, dim=16, batch_size=10, epochs=3, memory_bank_size=25,
                 memory_bank_share=1.0)


class Stop(Exception):
    """Stands for Ctrl-C."""


def stop_after(epochs):
    def progress(stage, done, total, **metrics):
        if "acc_at_1" in metrics and metrics["epoch"] + 1 == epochs:
            raise Stop

    return progress


def without_times(history):
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in history]


def test_text_end_to_end(text_pairs, tmp_path):
    config = dataclasses.replace(TEXT, epochs=6)
    reports = []
    manifest = train(config, text_pairs, tmp_path / "out", progress=lambda *a, **m: reports.append((a, m)))
    assert manifest == artifacts.read_manifest(tmp_path / "out", "encoder")
    assert (manifest["modality"], manifest["dim"], manifest["train_pairs"], manifest["heldout_items"]) == (
        "text",
        16,
        40,
        20,
    )
    assert manifest["acc_at_5"] >= manifest["acc_at_1"] > 0.3
    assert manifest["acc_at_1_chance"] == 1 / 20 and manifest["acc_at_5_chance"] == 5 / 20
    assert 0.0 <= manifest["acc_at_1_untrained"] <= manifest["acc_at_5_untrained"] <= 1.0
    sizes = {"distinct_positives": 40, "positives_per_query": 1.0, "queries_among_positives": 0.0,
             "memory_bank_size": 25, "batch_size": 10, "epochs": 6, "pairs_per_epoch": 40, "steps": 24}  # fmt: skip
    assert {name: manifest[name] for name in sizes} == sizes
    assert reports[0] == (("pretrain_text", 0, 24), sizes)
    assert reports[-1][0] == ("pretrain_text", 24, 24)
    history = json.loads((tmp_path / "out" / "history.json").read_text())
    assert [entry["epoch"] for entry in history] == list(range(6))
    assert history[-1]["acc_at_1"] == manifest["acc_at_1"]
    with saved_model.load_session(tmp_path / "out" / "encoder") as encoder:
        vector = encoder("serving_default", {"content": ["red mug 🍎".encode(), b""]})["vector"]
    np.testing.assert_allclose(np.linalg.norm(vector, axis=1), [1.0, 0.0], atol=1e-6)


def test_resumed_images_equal_uninterrupted_ones_bit_for_bit(image_pairs, tmp_path):
    """Encoder, momentum encoder, bank, temperature and optimizer: on one machine not one bit differs."""
    straight = fit(IMAGE, image_pairs, checkpoint_dir=tmp_path / "a")
    with pytest.raises(Stop):
        fit(IMAGE, image_pairs, checkpoint_dir=tmp_path / "b", progress=stop_after(1))
    resumed = fit(IMAGE, image_pairs, checkpoint_dir=tmp_path / "b")
    assert resumed.encoder.version() == straight.encoder.version()
    assert without_times(resumed.history) == without_times(straight.history)
    states = [np.load(next((tmp_path / folder).glob("*/state.npz"))) for folder in "ab"]
    names = set(states[0].files) - {"__meta__"}
    groups = {"encoder", "key_encoder", "info_nce", "memory_bank", "optimizer"}
    assert {name.split("/")[0] for name in names} == groups
    for name in names:
        np.testing.assert_array_equal(states[0][name], states[1][name], err_msg=name)


def test_stopped_run_leaves_no_manifest(text_pairs, tmp_path):
    with pytest.raises(Stop):
        train(TEXT, text_pairs, tmp_path / "out", progress=stop_after(1))
    with pytest.raises(FileNotFoundError, match="did not finish"):
        artifacts.read_manifest(tmp_path / "out")


def test_same_seed_same_encoder_other_seed_another(text_pairs):
    configs = [dataclasses.replace(TEXT, epochs=1, seed=seed) for seed in (0, 0, 1)]
    versions = [fit(config, text_pairs).encoder.version() for config in configs]
    assert versions[0] == versions[1] != versions[2]


def test_another_config_does_not_resume(text_pairs, tmp_path):
    config = dataclasses.replace(TEXT, epochs=1)
    changed = dataclasses.replace(config, temperature=0.2)
    fit(config, text_pairs, checkpoint_dir=tmp_path)
    other = fit(changed, text_pairs, checkpoint_dir=tmp_path)
    assert other.encoder.version() == fit(changed, text_pairs).encoder.version()
    assert len(list(tmp_path.iterdir())) == 2


def test_the_settings_in_effect_follow_the_pairs(text_pairs, tmp_path):
    """40 distinct positives: the bank by their share is off, and the budget ends training within the first epoch."""
    config = SCLConfig(modality="text", text_buckets=512, dim=16, batch_size=8, epochs=3, max_pairs_seen=30,
                       lone_positive_bank=0)  # fmt: skip
    fitted = fit(config, text_pairs, checkpoint_dir=tmp_path)
    names = ("memory_bank_size", "distinct_positives", "batch_size", "epochs", "pairs_per_epoch", "steps")
    assert [fitted.facts[name] for name in names] == [0, 40, 8, 1, 24, 3]
    assert [entry["steps"] for entry in fitted.history] == [3]
    groups = {name.split("/")[0] for name in np.load(next(tmp_path.glob("*/state.npz"))).files}
    assert "memory_bank" not in groups


def test_another_rule_for_the_settings_in_effect_does_not_resume(text_pairs, tmp_path, monkeypatch):
    """A checkpoint of another batch size would go on as if its steps were these."""
    config = SCLConfig(modality="text", text_buckets=512, dim=16, batch_size=16, epochs=1)
    fit(config, text_pairs, checkpoint_dir=tmp_path)
    real = train_lib.make_plan
    monkeypatch.setattr(
        train_lib, "make_plan", lambda *given: dataclasses.replace(real(*given), batch_size=4, pairs_per_epoch=40)
    )
    assert fit(config, text_pairs, checkpoint_dir=tmp_path).facts["batch_size"] == 4
    assert len(list(tmp_path.iterdir())) == 2


def test_a_budget_within_an_epoch_takes_other_pairs_under_another_seed(text_pairs):
    pairs, encoder = read_pairs(text_pairs / "train.parquet"), make_encoder(TEXT)
    table = ContentTable(encoder, pairs.contents)
    seen = []
    for seed in (0, 0, 1):
        config = dataclasses.replace(TEXT, max_pairs_seen=20, seed=seed)
        seen.append(np.concatenate([b.item_ids for b in epoch_batches(config, pairs, table, 10, 0)]))
    assert len(seen[0]) == len(set(seen[0])) == 20
    np.testing.assert_array_equal(seen[0], seen[1])
    assert set(seen[0]) != set(seen[2])


def spoil(folder, into, column, rows):
    for name in ("train", "heldout"):
        table = pq.read_table(folder / f"{name}.parquet")
        values = table[column].to_pylist()
        for row in rows:
            values[row] = b"spoiled %d" % row
        table = table.set_column(table.column_names.index(column), column, [values])
        pq.write_table(table, into / f"{name}.parquet")


def test_undecodable_pairs_are_left_out_and_counted(image_pairs, tmp_path):
    spoil(image_pairs, tmp_path, "query", rows=[0, 3])
    facts = fit(dataclasses.replace(IMAGE, epochs=1), tmp_path).facts
    assert [facts[name] for name in ("train_pairs", "heldout_pairs", "unusable_contents")] == [46, 22, 4]


def test_undecodable_negative_leaves_the_pair(image_pairs, tmp_path):
    spoil(image_pairs, tmp_path, "negative", rows=[0])
    pairs = read_pairs(tmp_path / "train.parquet")
    table = ContentTable(make_encoder(IMAGE), pairs.contents)
    kept = pairs.without(~table.valid)
    assert len(kept) == len(pairs) == 48
    assert kept.negative[0] == pair_table.NONE != pairs.negative[0]


def test_missing_files_and_columns_are_named(text_pairs, tmp_path):
    with pytest.raises(ValueError, match=r"`pairs_dir` must hold train.parquet.*Missing"):
        fit(TEXT, tmp_path)
    pq.write_table(
        pq.read_table(text_pairs / "train.parquet").drop(["positive_item_id"]),
        tmp_path / "train.parquet",
    )
    with pytest.raises(ValueError, match=r"must have the columns.*positive_item_id"):
        fit(TEXT, tmp_path)


def test_too_few_pairs_are_refused(text_pairs, tmp_path):
    pq.write_table(pq.read_table(text_pairs / "train.parquet").slice(0, 1), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="at least two pairs"):
        fit(TEXT, tmp_path)


def test_contents_beyond_the_memory_limit_are_decoded_in_each_batch(image_pairs):
    """Both ways give the same batches."""
    pairs, encoder = read_pairs(image_pairs / "train.parquet"), make_encoder(IMAGE)
    kept, raw = (
        ContentTable(encoder, pairs.contents),
        ContentTable(encoder, pairs.contents, max_prepared_bytes=1000),
    )
    assert kept.is_prepared and not raw.is_prepared
    for one, other in zip(epoch_batches(IMAGE, pairs, kept, 16, 1), epoch_batches(IMAGE, pairs, raw, 16, 1)):
        for a, b in zip(tf.nest.flatten(one), tf.nest.flatten(other)):
            np.testing.assert_array_equal(a, b)


def test_epochs_differ_and_each_pair_comes_once(text_pairs):
    pairs, encoder = read_pairs(text_pairs / "train.parquet"), make_encoder(TEXT)
    table = ContentTable(encoder, pairs.contents)
    order = [np.concatenate([b.item_ids for b in epoch_batches(TEXT, pairs, table, 10, epoch)]) for epoch in (0, 0, 1)]
    np.testing.assert_array_equal(order[0], order[1])
    assert (order[0] != order[2]).any()
    assert sorted(order[0]) == sorted(order[2]) == sorted(pairs.item_ids)


def test_rows_without_a_hard_negative_repeat_their_positive(image_pairs):
    config = dataclasses.replace(IMAGE, augment=False)
    pairs, encoder = read_pairs(image_pairs / "train.parquet"), make_encoder(config)
    batch = next(iter(epoch_batches(config, pairs, ContentTable(encoder, pairs.contents), 48, 0)))
    same = tf.reduce_all(batch.negative[0] == batch.positive[0], axis=(1, 2, 3)).numpy()
    np.testing.assert_array_equal(same, ~batch.has_negative.numpy())
    np.testing.assert_array_equal(batch.has_negative, batch.item_ids.numpy() % 2 == 1)


def test_heldout_accuracy_counts_an_item_once(text_pairs, tmp_path):
    """Two queries bought item 7: S holds it once, under its first title."""
    source = pq.read_table(text_pairs / "heldout.parquet")
    rows = source.slice(0, 4).to_pydict()
    rows["positive_item_id"] = [7, 7, 8, 9]
    rows["positive"][1] = rows["positive"][0]
    rows["query"] = [rows["positive"][0]] * 2 + rows["positive"][2:]
    pq.write_table(type(source).from_pydict(rows, schema=source.schema), tmp_path / "heldout.parquet")
    heldout = Heldout(make_encoder(TEXT), pathlib.Path(tmp_path) / "heldout.parquet")
    assert heldout.num_items == 3
    assert heldout.ranks().tolist() == [1] * len(heldout.pairs)
