import dataclasses

import pytest

from tfmm import config, modalities, presets
from tfmm.assignments import override


@pytest.mark.parametrize("preset", presets.PRESETS.values())
def test_round_trip_through_json_types(preset):
    run = preset()
    assert config.from_dict(config.RunConfig, config.to_dict(run)) == run


def test_override_sets_one_field_and_keeps_the_rest():
    run = override(config.RunConfig(), ["make.epochs=6", "ctr.units=[32, 16]"])
    assert run.make.epochs == 6
    assert run.ctr.units == (32, 16)
    assert dataclasses.replace(run.make, epochs=4) == config.MAKEConfig()


def test_override_accepts_a_whole_number_for_a_float():
    assert override(config.RunConfig(), ["image.triplet_weight=0"]).image.triplet_weight == 0.0


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("make.epochs", "must read stage.field=value"),
        ("epochs=3", "must read stage.field=value"),
        ("makes.epochs=3", "stage must be one of"),
        ("make.epoch=3", "`make` has the fields"),
        ("make.epochs=many", "`make.epochs` must be a int"),
        ("make.epochs=true", "`make.epochs` must be a int"),
        ("make.epochs=-1", "`epochs` must not be negative"),
        ("seed.x=1", "stage must be one of"),
    ],
)
def test_override_refuses(assignment, message):
    with pytest.raises(ValueError, match=message):
        override(config.RunConfig(), [assignment])


def test_override_finds_features_sequences_and_methods_by_name():
    run = config.RunConfig()
    changes = ["features.user_id.dim=32", "sequences.behavior.length=9", "methods.simtier.num_tiers=5"]
    run = override(run, changes)
    assert (run.feature_set["user_id"].dim, run.feature_set.sequences[0].length) == (32, 9)
    assert run.methods[0].settings == {"num_tiers": 5}
    for assignment, message in (
        ("features.brand.dim=3", r"`features` must be one of \['user_id', 'item_id', 'category'\]"),
        ("features.dim=3", r"must read features\.name\.field=value"),
        ("features.user_id.size=3", r"`features\.user_id` has the fields"),
        ("features.user_id.dim=0", "`dim` must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            override(run, [assignment])


def test_from_dict_refuses_an_unknown_field():
    with pytest.raises(ValueError, match="MAKEConfig has the fields"):
        config.from_dict(config.MAKEConfig, {"epoch": 1})


def test_with_seed_reaches_every_stage_that_has_one():
    run = config.RunConfig().with_seed(7)
    assert run.seed == run.marketplace.seed == run.image.seed == run.make.seed == run.ctr.seed == 7


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (config.SCLConfig, {"modality": "sound"}, "`modality` must be"),
        (config.SCLConfig, {"temperature": 0.0}, "`temperature` must lie in"),
        (config.SCLConfig, {"dim": 2000}, "`dim` must lie in"),
        (config.CTRConfig, {"hidden_behaviors_fraction": 1.5}, "`hidden_behaviors_fraction` must lie in 0..1"),
        (config.CTRConfig, {"hidden_weight": -0.1}, "`hidden_weight` must not be negative"),
        (config.CTRConfig, {"decay_from": -0.1}, "`decay_from` must lie in 0..1"),
        (config.MarketplaceConfig, {"missing_image_fraction": 1.0}, r"`missing_image_fraction` must lie in \[0, 1\)"),
        (config.GateConfig, {"max_hidden_bias": 0.0}, "`max_hidden_bias` must be positive"),
        (config.MAKEConfig, {"units": (8, 8)}, "three hidden layers"),
        (config.DataConfig, {"eval_fraction": 1.0}, "`eval_fraction` must lie"),
        (config.DataConfig, {"time_zone": "Mars/Olympus"}, "`time_zone` must be a name of the IANA"),
        (config.DataConfig, {"time_zone": "../etc"}, "`time_zone` must be a name of the IANA"),
        (config.ExportConfig, {"batch_buckets": (8, 4)}, "ascending positive sizes"),
        (config.CTRConfig, {"batch_size": 0}, "`batch_size` must be at least 1"),
        (config.RunConfig, {"methods": (config.Method("make"), config.Method("make"))}, "must name each method once"),
        (config.CTRConfig, {"units": ()}, "at least one hidden layer"),
        (config.CTRConfig, {"learning_rate": -1.0}, "`learning_rate` must be positive"),
        (config.MAKEConfig, {"batch_size": -1}, "`batch_size` must be at least 1"),
        (config.MAKEConfig, {"attention_units": (0,)}, "sizes of at least 1"),
        (config.GateConfig, {"min_auc": 7.0}, "`min_auc` must lie in 0..1"),
        (config.RunConfig, {"image": config.SCLConfig(modality="text")}, "`image.modality` must be 'image'"),
        (config.MarketplaceConfig, {"num_users": 0}, "`num_users` must be at least 1"),
    ],
)
def test_constructor_refuses(kind, values, message):
    with pytest.raises(ValueError, match=message):
        kind(**values)


def test_most_pixels_of_a_column_are_those_that_all_its_encoders_take():
    run = override(config.RunConfig(), ["image.max_pixels=700"])
    assert run.max_pixels == {"image": 700, "query_image": 700}
    photo = modalities.Modality("photo", "image", column="image", settings={"max_pixels": 90})
    assert dataclasses.replace(run, modalities=(*run.modality_set.known, photo)).max_pixels["image"] == 90


@pytest.mark.parametrize("assignment", ["text.image_size=64", "text.width=3", "image.text_buckets=9"])
def test_a_setting_that_its_encoder_never_reads_is_refused(assignment):
    with pytest.raises(ValueError, match=r"must be a setting that the encoder reads\. Received: '\w+'"):
        override(config.RunConfig(), [assignment])
