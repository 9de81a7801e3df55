"""Evaluations within epochs, and the best weights by pairs that neither train nor are reported."""

import dataclasses
import json

import keras
import numpy as np
import pytest

from tfmm.config import SCLConfig
from tfmm.modalities import Modality
from tfmm.pretrain import accuracy, best, evaluations, heldout
from tfmm.pretrain.encoders import make_encoder
from tfmm.pretrain.pair_table import NONE, ContentTable, PairTable, read_pairs
from tfmm.pretrain.train import batches, epoch_batches, fit, train

TEXT = SCLConfig(modality="text", text_buckets=512, dim=16, batch_size=10, epochs=3, memory_bank_size=25,
                 memory_bank_share=1.0)  # fmt: skip
CHOOSING = dataclasses.replace(TEXT, validation_fraction=0.3, evaluate_every=2, batch_size=7)


class Stop(Exception):
    """Stands for Ctrl-C."""


def stop_at(part):
    def progress(stage, done, total, **metrics):
        if "acc_at_1" in metrics and metrics["epoch"] == part:
            raise Stop

    return progress


def without_times(history):
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in history]


def arrays(batch):
    return [np.asarray(column) for part in batch for column in (part if isinstance(part, tuple) else (part,))]


def test_steps_see_the_same_batches_however_evaluations_part_them(text_pairs):
    pairs, encoder = read_pairs(text_pairs / "train.parquet"), make_encoder(TEXT)
    table = ContentTable(encoder, pairs.contents)
    config = dataclasses.replace(TEXT, augment=True)
    whole = [batch for epoch in range(3) for batch in epoch_batches(config, pairs, table, 10, epoch)]
    cut = [(0, 3), (3, 9), (9, 12)]  # within an epoch, over three, to the end
    parted = [batch for first, last in cut for batch in batches(config, pairs, table, 10, first, last)]
    assert len(whole) == len(parted) == 12
    for one, other in zip(whole, parted):
        for ours, theirs in zip(arrays(one), arrays(other)):
            np.testing.assert_array_equal(ours, theirs)


def test_evaluating_within_epochs_changes_no_weight_and_tells_steps(text_pairs):
    per_epoch = fit(TEXT, text_pairs)
    often = fit(dataclasses.replace(TEXT, evaluate_every=5), text_pairs)
    assert often.encoder.version() == per_epoch.encoder.version()
    assert [line["step"] for line in often.history] == [5, 10, 12]
    assert [line["epoch"] for line in often.history] == [5 / 4, 10 / 4, 3]
    assert [line["step"] for line in per_epoch.history] == [4, 8, 12]
    assert often.history[-1]["acc_at_1"] == per_epoch.history[-1]["acc_at_1"] == per_epoch.facts["acc_at_1"]
    told = often.facts["evaluations"]
    assert list(told[0]) == ["step", "loss", "temperature", "acc_at_1", "acc_at_5"]
    assert [line["temperature"] for line in told] == [line["temperature"] for line in often.history]


def test_no_item_that_is_kept_back_takes_part_in_training(text_pairs):
    pairs = read_pairs(text_pairs / "train.parquet")
    pairs = dataclasses.replace(pairs, negative=np.roll(pairs.positive, 1), query=np.roll(pairs.positive, 2))
    left, back = heldout.keep_back(pairs, 0.25, seed=0)
    assert not set(left.item_ids) & set(back.item_ids) and len(back) > 2
    shown = set(left.query) | set(left.positive) | set(left.negative[left.negative != NONE])
    assert not shown & set(back.positive)
    other, _ = heldout.keep_back(pairs, 0.25, seed=1)
    assert set(other.item_ids) != set(left.item_ids)
    with pytest.raises(ValueError, match=r"`validation_fraction` must leave at least two pairs.*makes"):
        heldout.keep_back(pairs, 0.001, seed=0)


def test_a_content_that_is_kept_back_is_in_no_training_pair_of_another_item(text_pairs):
    """Each content is that of two items, of which the draw often keeps back one alone."""
    pairs = read_pairs(text_pairs / "train.parquet")
    twins = dataclasses.replace(pairs, item_ids=pairs.item_ids + 1)
    names = ("query", "positive", "negative", "item_ids")
    both = [np.concatenate([getattr(pairs, name), getattr(twins, name)]) for name in names]
    left, back = heldout.keep_back(PairTable(pairs.contents, *both), 0.25, seed=0)
    assert len(left) > 2 and len(back) > 2
    assert not set(left.positive) & set(back.positive)


def test_the_best_is_chosen_by_what_is_kept_back_and_not_by_what_is_reported(text_pairs, monkeypatch):
    """Held-out accuracies that fall do not count; validation accuracies do, ties by Acc@5, then the earlier."""
    size = make_held(text_pairs)
    found = iter([(0.2, 0.5), (0.3, 0.5), (0.3, 0.6), (0.3, 0.6), (0.1, 0.9)] + [(0.0, 0.0)] * 9)
    real = accuracy.at_n

    def at_n(ranks):
        return real(ranks) if len(ranks) == size else dict(zip(("acc_at_1", "acc_at_5"), next(found)))

    monkeypatch.setattr(evaluations.accuracy, "at_n", at_n)
    fitted = fit(dataclasses.replace(CHOOSING, exported="best"), text_pairs)
    assert fitted.facts["kept"] == {"last": fitted.facts["steps"], "best": 6}
    assert [line["validation_acc_at_1"] for line in fitted.history][:5] == [0.2, 0.3, 0.3, 0.3, 0.1]
    assert fitted.facts["validation_pairs"] + fitted.facts["train_pairs"] == 40


def make_held(folder):
    return len(read_pairs(folder / "heldout.parquet"))


def test_either_weights_are_exported_and_both_are_kept(text_pairs, tmp_path):
    versions = {}
    for name in ("last", "best"):
        config = dataclasses.replace(CHOOSING, exported=name, epochs=4, learning_rate=0.5)
        manifest = train(config, text_pairs, tmp_path / name, checkpoint_dir=tmp_path / "checkpoints")
        versions[name] = manifest["encoder_version"]
        for kept in ("last", "best"):
            encoder = make_encoder(config)
            encoder.model.load_weights(tmp_path / name / f"{kept}.weights.h5")
            assert (encoder.version() == manifest["encoder_version"]) == (kept == name)
        judged = {line["step"]: line["acc_at_1"] for line in manifest["evaluations"]}
        assert manifest["acc_at_1"] == judged[manifest["kept"][name]]
        assert manifest["evaluations"] == [
            {key: line[key] for key in evaluations.TOLD}
            for line in json.loads((tmp_path / name / "history.json").read_text())
        ]
    assert versions["last"] != versions["best"]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1  # the second one trained nothing


def test_a_run_that_was_stopped_goes_on_to_the_same_best(text_pairs, tmp_path):
    config = dataclasses.replace(CHOOSING, exported="best", learning_rate=0.1)
    straight = fit(config, text_pairs)
    with pytest.raises(Stop):
        fit(config, text_pairs, checkpoint_dir=tmp_path, progress=stop_at(4))
    resumed = fit(config, text_pairs, checkpoint_dir=tmp_path)
    assert resumed.encoder.version() == straight.encoder.version()
    assert resumed.facts["kept"] == straight.facts["kept"]
    assert without_times(resumed.history) == without_times(straight.history)


def test_an_artifact_without_validation_has_no_weights_of_one_before(text_pairs, tmp_path):
    train(dataclasses.replace(CHOOSING, epochs=1), text_pairs, tmp_path)
    assert (tmp_path / "best.weights.h5").is_file()
    manifest = train(dataclasses.replace(TEXT, epochs=1), text_pairs, tmp_path)
    assert not list(tmp_path.glob("*.weights.h5")) and "kept" not in manifest


def test_best_weights_are_those_of_their_evaluation():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    kept = best.Best(model)
    for value, acc in ((1.0, 0.2), (2.0, 0.4), (3.0, 0.4)):
        model.set_weights([np.full((2, 1), value), np.zeros(1)])
        kept.note({"acc_at_1": acc, "acc_at_5": 0.5}, int(value))
    assert kept.step == 2 and kept.weights()[0].tolist() == [[2.0], [2.0]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"exported": "best"}, "`validation_fraction` must be positive where `exported` is best"),
        ({"exported": "first"}, "`exported` must be one of last, best"),
        ({"evaluate_every": -1}, "`evaluate_every` must not be negative"),
        ({"validation_fraction": 1.0}, "`validation_fraction` must lie in"),
        ({"augmented": "all"}, "`augmented` must be one of queries, positives, both"),
        ({"crop": 0.0}, "`crop` must lie in"),
        ({"color_jitter": 1.0}, "`color_jitter` must lie in"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SCLConfig(**settings)
    assert any(message in fault for fault in Modality("image", "image", settings=settings).faults())


def test_settings_of_training_alone_make_no_other_version():
    config = SCLConfig(modality="text", text_buckets=64, dim=8)
    changed = dataclasses.replace(
        config, evaluate_every=3, validation_fraction=0.1, exported="best", augmented="queries"
    )
    assert make_encoder(config).version() == make_encoder(changed).version()
