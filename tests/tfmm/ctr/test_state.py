"""A state that is trained further: tables that grow, and a training in two parts that is one."""

import dataclasses
import functools
import pathlib
import shutil
import typing

import keras
import numpy as np
import pytest

from tfmm import artifacts, preprocessing
from tfmm import config as config_lib
from tfmm.config import FLOAT16, FLOAT32
from tfmm.ctr import lineage
from tfmm.ctr import state as state_lib
from tfmm.ctr import train as train_lib
from tfmm.ctr.continuing import continue_over
from tfmm.index import item_vectors
from tfmm.training import checkpoint as checkpoint_lib
from tfmm.training import examples as examples_lib
from tfmm.training import precision, sources

CONFIG = config_lib.CTRConfig(
    batch_size=64, learning_rate=1e-2, attention_units=(8,), units=(16,), block_rows=256, segments=4, decay_from=1.0
)
MAKE = config_lib.MAKEConfig(epochs=0, attention_units=(8,), units=(16, 8, 4))
METHODS = (config_lib.Method("simtier", {"num_tiers": 8}), config_lib.Method("make"))


@dataclasses.dataclass
class Road:
    """What a training of the small shop needs."""

    shop: object
    tables: dict
    columns: dict

    def fresh(self):
        keras.utils.set_random_seed(0)
        preprocessor = preprocessing.load(self.shop.features, self.shop.vocabularies)
        rows, methods = sources.InMemory(self.columns), METHODS if self.tables else ()
        return train_lib.fresh_state(
            CONFIG, self.shop.features, preprocessor, self.tables, methods, None, MAKE, rows
        )

    def rows(self, start, end):
        return sources.InMemory({name: values[start:end] for name, values in self.columns.items()})

    def saved(self, state, folder):
        state.note_span(1, self.columns["item_id"])
        training = {"trained_through": {"timestamp": 1, "row": 1}, "encoder_versions": {}, "make": None}
        return state_lib.save(state, folder, self.shop.vocabularies, training=training, seen={})

    def load(self, folder, vocabulary_dir=None):
        keras.utils.set_random_seed(1)  # what a load draws does not come from there
        return state_lib.load(folder, CONFIG, vocabulary_dir or self.shop.vocabularies, self.tables)


@pytest.fixture(scope="module", params=[(), ("image", "text")], ids=["id", "multimodal"])
def road(shop, request):
    tables = item_vectors.load_vectors(shop.snapshot, request.param) if request.param else {}
    preprocessor = preprocessing.load(shop.features, shop.vocabularies)
    source = sources.open_source(examples_lib.example_files(shop.train), shop.features, tables, preprocessor)
    columns = source.gather(np.arange(2048)) | {n: source.column(n)[:2048] for n in ("user_id", "item_id")}
    return Road(shop, tables, columns)


class Trained(typing.NamedTuple):
    """A state after the first 1024 rows: its folder, and what it holds."""

    folder: pathlib.Path
    arrays: dict
    steps: int


@pytest.fixture(scope="module")
def trained(road, tmp_path_factory):
    """Returns a function that trains a state over the first 1024 rows in a precision, once; read-only."""

    @functools.cache
    def train(name):
        folder = tmp_path_factory.mktemp("state")
        with precision.policy(name):
            state, _ = continue_over(road.fresh(), CONFIG, road.rows(0, 1024))
            if name == FLOAT16:
                state.optimizer.scale.assign(4.0)
            road.saved(state, folder)
        return Trained(folder, arrays(state), state.steps)

    return train


def arrays(state):
    return {
        f"{group}/{i}": checkpoint_lib.array_of(one)
        for group, variables in state.variables.items()
        for i, one in enumerate(variables)
    }


def grown(shop, folder, number):
    """Vocabularies with as many new items and users."""
    found = preprocessing.vocabularies(shop.features, shop.vocabularies)
    new = {name: np.append(ids, np.arange(1, number + 1) * 1_000_003) for name, ids in found.items()}
    preprocessing.write(folder, new, {})
    return folder


def test_training_on_from_a_saved_state_is_one_training_over_all_rows(road, trained):
    """Order, moments, steps and what is drawn go on where they were: equal to the last digit."""
    whole, lines = continue_over(road.fresh(), dataclasses.replace(CONFIG, segments=8), road.rows(0, 2048))
    second, more = continue_over(road.load(trained(FLOAT32).folder), CONFIG, road.rows(1024, 2048))
    expected, found = arrays(whole), arrays(second)
    assert found.keys() == expected.keys() and len(lines) == 8 and len(more) == 4
    assert second.segments == whole.segments == 8 and second.steps == whole.steps == 32
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_a_thousand_new_ids_get_rows_of_their_own_and_old_rows_stay(road, trained, tmp_path):
    vocabulary = grown(road.shop, tmp_path / "vocabulary", 1000)
    state, again = (road.load(trained(FLOAT32).folder, vocabulary) for _ in range(2))
    before, after, restarted = trained(FLOAT32).arrays, arrays(state), arrays(again)
    tables = 0
    for name, old in before.items():
        new = after[name]
        np.testing.assert_array_equal(new, restarted[name])
        if new.shape != old.shape:
            assert len(new) == len(old) + 1000 and new.shape[1:] == old.shape[1:]
            tables += name.startswith("model/")
            if name.startswith("optimizer/"):
                assert not new[len(old) :].any()  # fresh moments
            else:
                assert len(np.unique(new, axis=0)) == len(new)
                assert new[len(old) :].std() == pytest.approx(0.01, rel=0.1)
                assert abs(new[len(old) :].mean()) < 0.001
            new = new[: len(old)]
        np.testing.assert_array_equal(new, old, err_msg=name)
    assert tables == 3  # users, items, categories
    continued, _ = continue_over(state, CONFIG, road.rows(1024, 1280))
    moved = arrays(continued)
    for name, old in after.items():
        if len(old.shape) and old.shape != before[name].shape:
            np.testing.assert_array_equal(moved[name][-1000:], old[-1000:])  # no row showed them


@pytest.mark.parametrize("first, second", [(FLOAT32, FLOAT16), (FLOAT16, FLOAT32), (FLOAT16, FLOAT16)])
def test_a_model_goes_on_in_another_precision(road, trained, first, second):
    """The moments are the state's; the scale of losses is where float16 goes on, and begins anew elsewhere."""
    folder, before, steps = trained(first)
    with precision.policy(second):
        again = road.load(folder)
        after = arrays(again)
        for name in before:
            if not name.startswith("loss_scale"):
                np.testing.assert_array_equal(after[name], before[name], err_msg=name)
        if second == FLOAT16:
            assert float(again.optimizer.scale) == (4.0 if first == FLOAT16 else precision.FIRST_SCALE)
        on, _ = continue_over(again, CONFIG, road.rows(1024, 1280))
        assert on.steps == steps + 4


def test_a_state_that_is_replaced_is_none_until_it_is_whole(road, tmp_path, monkeypatch):
    def killed(*_, **__):
        raise OSError("killed while it removes")

    road.saved(road.fresh(), tmp_path / "state")
    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(OSError, match="killed while it removes"):
        road.saved(road.fresh(), tmp_path / "state")
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError, match="must be the state of a model's training"):
        state_lib.read_manifest(tmp_path / "state")


def test_rows_that_no_span_trains_become_gaps(road, trained, tmp_path):
    on, _ = continue_over(road.load(trained(FLOAT32).folder), CONFIG, road.rows(1024, 1088))
    on.note_span(10, road.columns["item_id"][1024:1088])
    state_lib.save(on, tmp_path / "second", road.shop.vocabularies, seen={})
    found = state_lib.gaps(tmp_path / "second", before_us=10)
    shown = np.unique(road.columns["user_id_index"][1024:1088])
    users = preprocessing.load(road.shop.features, road.shop.vocabularies).sizes["user_id"] - 2
    assert found["user_id"] == pytest.approx(1 - len(shown) / users)
    assert state_lib.gaps(tmp_path / "second", before_us=1) == dict.fromkeys(found, 0.0)
    counts = state_lib.shown_before(tmp_path / "second")
    assert sum(counts.values()) == 2048 + 64  # as `saved` and `note_span` were told


def test_what_is_no_state_of_the_model_is_refused(road, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must be the state of a model's training.*Train in full once"):
        road.load(tmp_path)
    manifest = road.saved(road.fresh(), tmp_path / "state")
    other = tmp_path / "other"
    vocabularies = preprocessing.vocabularies(road.shop.features, road.shop.vocabularies)
    preprocessing.write(other, {name: ids[::-1] for name, ids in vocabularies.items()}, {})
    with pytest.raises(ValueError, match=r"must begin with that of .* since a known id keeps its row"):
        road.load(tmp_path / "state", other)
    shutil.copytree(tmp_path / "state", tmp_path / "older")
    names = {**manifest["names"], "model": [*manifest["names"]["model"][:-1], "ctr/head/gone"]}
    kept = {key: manifest[key] for key in ("model", "is_make_frozen", "segments", "training", "seen")}
    artifacts.write_manifest(tmp_path / "older", state_lib.KIND, None, names=names, **kept)
    with pytest.raises(ValueError, match=r"Received: others .*ctr/head/gone.* by another version of the model's code"):
        road.load(tmp_path / "older")
    with pytest.raises(ValueError, match=r"image: v2, not v1. Embed the catalog with those encoders"):
        lineage.require_encoders({"encoder_versions": {"image": "v1"}}, {"image": "v2"})
    with pytest.raises(ValueError, match="`rows` must hold at least one row"):
        continue_over(road.fresh(), CONFIG, road.rows(0, 0))
