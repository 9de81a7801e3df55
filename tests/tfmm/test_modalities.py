"""Tests of declared modalities: what they read, and what is wrong with them, all at once."""

import dataclasses

import pytest

from tfmm import config, modalities
from tfmm.assignments import override
from tfmm.config import RunConfig, SCLConfig
from tfmm.features import Feature, Sequence
from tfmm.modalities import DEFAULT, Modality, ModalitySet

TEXT = Modality("text", "text", column="title", query_column="query_text")
AUDIO = Modality("audio", "team:Audio", column="sound", settings={"dim": 12})


def refused(*declared):
    with pytest.raises(ValueError, match="must hold together") as error:
        ModalitySet(declared)
    return str(error.value)


def test_undeclared_vectors_stand_alone_and_declared_ones_beside_others():
    has_all = {"image", "title", "vector"}.__contains__
    assert ModalitySet().present(has_all) == ("vector",)
    assert ModalitySet().present({"image", "title"}.__contains__) == ("image", "text")
    assert ModalitySet(DEFAULT).present(has_all) == ("image", "text", "vector")


def test_columns_are_those_of_the_declaration():
    declared = ModalitySet((TEXT, AUDIO, Modality("clip", "vector")))
    assert {name: kind for name, (kind, _) in declared.columns("items").items()} == {
        "title": "string", "sound": "content", "clip": "vector"}  # fmt: skip
    assert list(declared.columns("searches")) == ["query_text"]
    assert declared.columns("users") == {}


@pytest.mark.parametrize("swap", [False, True])
def test_an_own_encoder_may_read_a_column_of_ours(swap):
    both = (TEXT, Modality("ends", "team:Ends", column="title", frozen=True))
    assert ModalitySet(both[::-1] if swap else both).columns("items")["title"][0] == "string"


def test_all_faults_are_told_at_once():
    said = refused(
        Modality("Image", "image"),
        Modality("sound", "sounds"),
        Modality("text", "text", frozen=True),
        Modality("clip", "vector", query_column="query_image", settings={"dim": 3}),
        Modality("wide", "team:Wide", settings={"dim": 1041}),
        Modality("odd", "team:Odd", settings={"depth": 3, "modality": "x"}),
        Modality("clip", "vector"),
        Modality("words", "text", column="picture"),
        Modality("photo", "image", column="picture"),
        Modality("item_features", "vector"),
    )
    for fault in (
        "modality 'Image': `name` must be lower case letters",
        "modality 'item_features': `name` must not be one of nothing, all, ",
        "modality 'sound': `encoder` must be one of image, text, vector, text_transformer, resnet18_v2, ",
        "modality 'text': only an encoder of your own or with weights of a file can be `frozen`; text learns",
        "modality 'clip': `query_column` is for encoders that are trained",
        "modality 'clip': ready vectors have no `settings`, not dim",
        "modality 'wide': `dim` must lie in 1..1040",
        "modality 'odd': `settings` must be among",
        "not depth, modality",
        "names of modalities must differ; 'clip' stands 2 times",
        "modalities 'words' and 'photo' read items.picture, which is one column and cannot be both text and image",
    ):
        assert fault in said


def test_faults_of_features_and_modalities_are_told_together():
    with pytest.raises(ValueError, match=r"'target'(.|\n)*'sounds'"):
        RunConfig(sequences=(Sequence("target"),), modalities=(Modality("sound", "sounds"),))


def test_inputs_of_the_model_have_names_of_their_own():
    sequences = (Sequence("a_b"), Sequence("b"))
    declared = (Modality("x", "vector"), Modality("x_a", "vector"))
    with pytest.raises(ValueError, match=r"a name of its own\. Received twice: x_a_b_rows"):
        RunConfig(sequences=sequences, modalities=declared)


def test_settings_of_encoders_come_from_the_run_and_the_modality():
    cover = Modality("cover", "image", settings={"dim": 16})
    run = RunConfig(modalities=(TEXT, AUDIO, cover, Modality("clip", "vector")), image=SCLConfig(width=4))
    run = run.with_seed(7)
    found = run.encoders(["text", "audio", "cover", "clip"])
    assert found["text"] == run.text
    assert found["audio"] == SCLConfig(modality="audio", encoder="team:Audio", dim=12, seed=7)
    assert found["cover"] == dataclasses.replace(run.image, modality="cover", encoder="image", dim=16)
    assert "clip" not in found
    assert RunConfig().encoders(["image", "text"]) == {"image": RunConfig().image, "text": RunConfig().text}


def test_a_run_with_modalities_survives_json_and_overrides():
    run = RunConfig(modalities=(TEXT, AUDIO))
    assert config.from_dict(RunConfig, config.to_dict(run)) == run
    assert config.from_dict(ModalitySet, config.to_dict(run.modality_set)) == run.modality_set
    changed = override(run, ["modalities.audio.dim=20", "modalities.text.column=name"])
    assert changed.encoders(["audio"])["audio"].dim == 20 and changed.modality_set["text"].content == "name"
    with pytest.raises(ValueError, match="modality 'audio': `settings` must be among"):
        override(run, ["modalities.audio.depth=20"])


def test_events_name_the_default_contents_as_the_catalog_does():
    assert [modalities.event_field(name) for name in ("text", "image", "vector")] == ["title", "image", "vector"]


@pytest.mark.parametrize("name", ["all", "nothing", "pairs", "checkpoints", "dead_letter"])
def test_names_that_folders_and_reports_use_are_not_those_of_modalities(name):
    assert f"modality {name!r}: `name` must not be one of" in refused(Modality(name, "vector"))


def test_inputs_of_undeclared_modalities_have_names_of_their_own_too():
    columns = (*RunConfig().features, Feature("image_target_mask", "user", "number"))
    with pytest.raises(ValueError, match=r"a name of its own\. Received twice: image_target_mask"):
        RunConfig(features=columns)


def test_a_setting_that_its_encoder_never_reads_is_refused():
    with pytest.raises(ValueError, match="'title': `settings` of the text encoder hold no width"):
        ModalitySet((Modality("title", "text", settings={"width": 3, "dim": 8}),))
