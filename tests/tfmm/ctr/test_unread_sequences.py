"""Sequences that no method reads: refused where they contradict the methods, and never MAKE trained for nothing."""

import dataclasses
import json

import pytest

from tfmm import artifacts, presets, runs
from tfmm import config as config_lib
from tfmm.config import Method, RunConfig
from tfmm.ctr import integrations
from tfmm.ctr import model as model_lib
from tfmm.ctr import train as train_lib
from tfmm.features import Feature, Sequence
from tfmm.make import train as make_train

SIMTIER = (Method("simtier"),)


def run_of(*sequences, methods=config_lib.DEFAULT_METHODS):
    return dataclasses.replace(presets.small(), sequences=sequences, methods=methods)


def test_run_without_a_sequence_is_refused():
    with pytest.raises(ValueError, match=r"`sequences` must declare at least one: .* Received: none"):
        RunConfig(sequences=())


@pytest.mark.parametrize(("switch", "method"), [("make", "make"), ("simtier", "simtier")])
def test_method_that_reads_no_sequence_is_refused(switch, method):
    unread = [Sequence(name, **{switch: False}) for name in ("clicks", "purchases")]
    with pytest.raises(ValueError, match=rf"the method '{method}' reads no sequence: each says `{switch}=False`"):
        runs.verify(run_of(*unread))
    runs.verify(run_of(*unread, methods=tuple(m for m in config_lib.DEFAULT_METHODS if m.name != method)))
    runs.verify(run_of(unread[0], Sequence("purchases")))


def test_method_inside_an_attention_that_reads_nothing_is_refused():
    unread = [Sequence(name, din=False) for name in ("clicks", "purchases")]
    for name in ("simscore", "vector", "semantic_id"):
        if name == "simscore":  # the others give more than that
            with pytest.raises(ValueError, match=r"'simscore' works inside the attention, .* each says `din=False`"):
                runs.verify(run_of(*unread, methods=(Method("make"), Method(name))))
        else:
            runs.verify(run_of(*unread, methods=(Method("make"), Method(name))))
    runs.verify(run_of(unread[0], Sequence("purchases"), methods=(Method("simscore"),)))


@pytest.mark.parametrize("after", [(), ("simscore",)])
def test_search_for_no_method_is_refused(after):
    methods = tuple(map(Method, ("simtier", "behavior_search", *after)))
    with pytest.raises(ValueError, match=r"'behavior_search' chooses behaviors for the methods after it, and there is"):
        runs.verify(run_of(Sequence("clicks"), methods=methods))
    runs.verify(run_of(Sequence("clicks"), methods=(*methods, Method("sa_ta"))))


@pytest.mark.parametrize("is_read", [True, False])  # by the sequence's word; here no method is MAKE
def test_make_that_no_method_reads_is_not_trained(shop, tmp_path, is_read):
    sequence = dataclasses.replace(shop.features.sequences[0], make=is_read)
    features = dataclasses.replace(shop.features, sequences=(sequence,))
    make_train.train(
        config_lib.MAKEConfig(), shop.train, shop.eval, shop.snapshot, tmp_path / "make", features,
        sequences=integrations.make_sequences(SIMTIER, features), progress=lambda *_, **__: pytest.fail("it trains"),
    )  # fmt: skip
    manifest = artifacts.read_manifest(tmp_path / "make", "make", ("dims", "sequences"))
    assert (manifest["dims"], manifest["sequences"], manifest["metrics"]) == ({}, [], {})
    assert json.loads((tmp_path / "make" / "history.json").read_text()) == []
    train_lib.train(
        config_lib.CTRConfig(batch_size=1024), shop.train, shop.eval, shop.vocabularies, tmp_path / "model", features,
        modalities=("image",), methods=SIMTIER, snapshot_dir=shop.snapshot, make_dir=tmp_path / "make",
    )  # fmt: skip
    assert model_lib.load_model(tmp_path / "model").make_blocks() == []
    assert artifacts.read_manifest(tmp_path / "model")["parents"] == [artifacts.read_manifest(shop.snapshot)["id"]]


def test_make_is_trained_on_the_sequences_that_it_reads(shop, tmp_path):
    config = config_lib.MAKEConfig(epochs=1, batch_size=1024, attention_units=(4,), units=(8, 4, 4))
    found = make_train.train(
        config, shop.train, shop.eval, shop.snapshot, tmp_path, shop.features, sequences=("behavior",)
    )
    assert found["sequences"] == ["behavior"] and set(found["dims"]) == {"image", "text"}


def test_column_that_rides_along_where_make_does_not_read_is_no_fault(shop, tmp_path):
    """It was: without that sequence, the column stood in none."""
    columns = (*shop.features.features, Feature("dwell", "behavior", "number"))
    sequences = (*shop.features.sequences, Sequence("carts", length=6, features=("item_id", "dwell"), make=False))
    features = dataclasses.replace(shop.features, features=columns, sequences=sequences)
    config = config_lib.MAKEConfig(epochs=1, batch_size=1024, attention_units=(4,), units=(8, 4, 4))
    found = make_train.train(config, shop.train, shop.eval, shop.snapshot, tmp_path, features)
    assert found["sequences"] == ["behavior"]
