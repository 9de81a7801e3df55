"""What makes another version of an encoder of a user's own: its source, what that imports, its settings, its seed."""

import dataclasses
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tfmm.config import SCLConfig
from tfmm.pretrain import encoder, train
from tfmm.pretrain.encoders import make_encoder

TEAM = '''
import keras
import tensorflow as tf

from tfmm.pretrain.encoders import Encoder

import sound_parts


class Sound(Encoder):
    """Its layers have no seeds of their own."""

    def build_model(self):
        features = keras.Input((4,))
        vector = keras.layers.Dense(self.config.dim)(keras.layers.Dense(6, "relu")(features))
        return keras.Model([features], keras.layers.UnitNormalization()(vector))

    def prepare(self, contents):
        floats = sound_parts.GAIN * tf.io.decode_raw(contents, tf.float32, fixed_length=16)
        return (floats,), tf.strings.length(contents) == 16


class Still(tf.Module):
    def __init__(self, config):
        super().__init__()
        self.gain = sound_parts.GAIN * config.temperature
        self.dense = keras.layers.Dense(3)
        self.dense.build((None, 1))

    def encode(self, contents):
        return self.gain * self.dense(tf.cast(tf.strings.length(contents), tf.float32)[:, None])


class Plain:
    """No tf.Module, so that nothing says which variables it has."""

    def __init__(self, config):
        self.still = [Still(config)]

    def encode(self, contents):
        return self.still[0].encode(contents)


class Named:
    def __init__(self, config):
        pass

    def version(self):
        return sound_parts.VERSION

    def encode(self, contents):
        return tf.cast(tf.strings.length(contents), tf.float32)[:, None]
'''
PARTS = "GAIN = 1.0\nVERSION = 'mine-1'\n"
SOUND = SCLConfig(modality="sound", encoder="sound_team:Sound", dim=5)
STILL = SCLConfig(modality="still", encoder="sound_team:Still", frozen=True)


@pytest.fixture
def team(tmp_path, monkeypatch):
    """Returns a function that writes the helper file of the team anew, as an edit between two runs does."""
    (tmp_path / "sound_team.py").write_text(TEAM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(parts=PARTS):
        (tmp_path / "sound_parts.py").write_text(parts)
        for name in ("sound_team", "sound_parts"):
            sys.modules.pop(name, None)

    write()
    yield write
    for name in ("sound_team", "sound_parts"):
        sys.modules.pop(name, None)


def frozen_version(config, tmp_path):
    return train.train(config, tmp_path / "no pairs", tmp_path / "encoder")["encoder_version"]


def test_own_encoder_is_the_same_each_time_and_another_with_another_seed(team):
    first, again = make_encoder(SOUND), make_encoder(SOUND)
    for ours, theirs in zip(first.model.get_weights(), again.model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert first.version() == again.version() != make_encoder(dataclasses.replace(SOUND, seed=1)).version()


def test_frozen_encoder_with_weights_of_chance_is_the_same_each_time(team, tmp_path):
    assert frozen_version(STILL, tmp_path) == frozen_version(STILL, tmp_path)


def test_edit_of_a_helper_makes_another_version(team, tmp_path):
    before = make_encoder(SOUND).version(), frozen_version(STILL, tmp_path)
    team(PARTS + "# the same vectors, but who knows\n")
    after = make_encoder(SOUND).version(), frozen_version(STILL, tmp_path)
    assert before[0] != after[0] and before[1] != after[1]


def test_every_setting_of_an_own_encoder_counts(team, tmp_path):
    """It may read any of them: here one that only training of ours does."""
    assert frozen_version(STILL, tmp_path) != frozen_version(dataclasses.replace(STILL, temperature=0.5), tmp_path)
    sound = dataclasses.replace(SOUND, temperature=0.5)
    assert make_encoder(SOUND).version() != make_encoder(sound).version()


AS_EVER = (
    "modality encoder frozen weights pixel_mean pixel_std dim image_size max_pixels width stages head_channels "
    "text_buckets text_words text_layers text_heads batch_size epochs max_pairs_seen learning_rate clip_norm "
    "accumulate warm_up_steps final_learning_rate weight_decay bank memory_bank_size memory_bank_share "
    "lone_positive_bank momentum temperature in_batch_negatives triplet_weight triplet_margin augment "
    "token_dropout seed"
)


def test_setting_that_came_later_leaves_versions_as_they_were(team):
    """A new field belongs into `LATER` or `TRAINING_ALONE`: else the catalogs of all own encoders are embedded anew."""
    assert " ".join(encoder.vector_settings(SOUND)) == AS_EVER
    later = dataclasses.replace(SOUND, text_ngrams=(2, 3))
    assert set(encoder.vector_settings(later)) == {*AS_EVER.split(), "text_ngrams"}
    assert make_encoder(SOUND).version() != make_encoder(later).version()


def test_checkpoint_of_another_helper_is_not_gone_on_from(team, tmp_path):
    sounds = [row.tobytes() for row in np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)]
    for name, rows in (("train", sounds[:8]), ("heldout", sounds[8:])):
        columns = {"query": rows, "positive": rows, "positive_item_id": list(range(len(rows)))}
        table = pa.table(columns).append_column("negative", pa.nulls(len(rows), pa.binary()))
        pq.write_table(table, tmp_path / f"{name}.parquet")
    counts = []
    for parts in (PARTS, PARTS, PARTS + "# edited\n"):
        team(parts)
        config = dataclasses.replace(SOUND, epochs=1, batch_size=4)
        train.fit(config, tmp_path, checkpoint_dir=tmp_path / "checkpoints")
        counts.append(len(list((tmp_path / "checkpoints").iterdir())))
    assert counts == [1, 1, 2]


@pytest.mark.parametrize("version", ["''", "'given:1'", "None"])
def test_version_that_nothing_can_go_by_is_refused(team, tmp_path, version):
    team(f"GAIN = 1.0\nVERSION = {version}\n")
    named = SCLConfig(modality="named", encoder="sound_team:Named", frozen=True)
    with pytest.raises(ValueError, match=r"`version\(\)` of .*sound_team:Named, must be a text"):
        frozen_version(named, tmp_path)


def test_frozen_encoder_whose_variables_nothing_knows_is_refused(team, tmp_path):
    plain = SCLConfig(modality="plain", encoder="sound_team:Plain", frozen=True)
    with pytest.raises(ValueError, match=r"modality 'plain': `encoder` must be a tf\.Module .* 2 are not: dense"):
        frozen_version(plain, tmp_path)
