"""The devices of a run: in the key of what is trained, and no obstacle to what is made of it."""

import dataclasses

import pytest

from tfmm import presets
from tfmm.assignments import override
from tfmm.stages import run_file

RUN = override(presets.small(), ["training.strategy=mirrored", "training.precision=mixed_bfloat16"])


@pytest.mark.parametrize("stage", ["encoders", "make", "id_model", "multimodal_model"])
def test_what_is_trained_depends_on_its_devices(stage):
    assert run_file.part(RUN, stage).training == RUN.training


@pytest.mark.parametrize("stage", ["pairs", "examples", "check", "judgement", "catalog"])
def test_nothing_else_is_made_anew_for_other_devices(stage):
    on_one = dataclasses.replace(RUN, training=presets.small().training)
    assert run_file.part(RUN, stage) == run_file.part(on_one, stage)


def test_a_click_model_is_trained_on_other_devices_than_its_encoders(tmp_path):
    run_file.write(RUN, tmp_path)
    taken = run_file.taken("catalog", tmp_path, None, ["training.strategy=one"])
    assert (taken.training.strategy, taken.training.precision) == ("one", "mixed_bfloat16")
    with pytest.raises(ValueError, match="would not be the same by this one"):
        run_file.taken("catalog", tmp_path, None, ["text.dim=16"])
