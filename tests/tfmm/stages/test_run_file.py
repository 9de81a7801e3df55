"""Tests of the run beside an artifact: what a later stage takes, and what it refuses."""

import dataclasses
import json

import pytest

from tfmm import config, presets, source
from tfmm.assignments import override
from tfmm.stages import run_file


def test_without_options_the_run_of_the_artifact_goes_on(tmp_path):
    run = override(presets.small(), ["pairs.max_pairs=7", "ctr.units=[3]"])
    run_file.write(run, tmp_path)
    assert run_file.taken("encoders", tmp_path, None) == run


def test_settings_of_later_stages_are_taken(tmp_path):
    run_file.write(presets.small(), tmp_path)
    taken = run_file.taken("models", tmp_path, None, ["gate.min_auc=0.7", "marketplace.num_users=3"])
    assert (taken.gate.min_auc, taken.ctr) == (0.7, presets.small().ctr)
    assert run_file.taken("catalog", tmp_path, None, ["ctr.units=[3]"]).ctr.units == (3,)
    assert run_file.taken("models", tmp_path, "small") == presets.small()


@pytest.mark.parametrize(
    ("stage", "assignment", "words"),
    [
        ("models", "ctr.units=[3]", r"ctr\.units: \[128, 64\], not \[3\]"),
        ("models", "text.epochs=9", r"text\.epochs: 4, not 9"),
        ("models", "export.candidate_buckets=[5]", r"export\.candidate_buckets: \[64\], not \[5\]"),
        ("models", "methods.simtier.num_tiers=9", r"methods\.simtier\.settings\.num_tiers: none, not 9"),
        ("catalog", "pairs.seed=3", r"pairs\.seed: 0, not 3"),
        ("encoders", "data.time_zone=Europe/Paris", r'data\.time_zone: "UTC", not "Europe/Paris"'),
    ],
)
def test_a_setting_that_the_artifact_depends_on_is_refused_by_name(tmp_path, stage, assignment, words):
    run_file.write(presets.small(), tmp_path)
    with pytest.raises(ValueError, match=rf"was made by another run.* Received: {words}\. Leave --run") as raised:
        run_file.taken(stage, tmp_path, None, [assignment])
    assert "\n" not in str(raised.value)


def test_another_run_is_refused_with_what_differs(tmp_path):
    run = presets.small()
    run_file.write(dataclasses.replace(run, methods=run.methods[:1]), tmp_path)
    with pytest.raises(ValueError, match=r"Received: methods\.make: none, not declared\."):
        run_file.taken("models", tmp_path, "small")
    with pytest.raises(ValueError, match=r"; and \d+ more\. Leave --run"):
        run_file.taken("models", tmp_path, "paper")


def test_an_artifact_of_an_earlier_version_asks_for_the_run(tmp_path):
    with pytest.raises(ValueError, match=r"must hold run\.json.* Name the run that it was made with: --run"):
        run_file.taken("encoders", tmp_path, None, default="quickstart")
    assert run_file.taken("encoders", tmp_path, "small", default="quickstart") == presets.small()


def test_where_nothing_was_made_yet_the_default_begins(tmp_path):
    taken = run_file.taken("encoders", tmp_path / "none", None, ["make.epochs=2"], "quickstart")
    assert taken == override(presets.quickstart(), ["make.epochs=2"])
    with pytest.raises(ValueError, match=r"must hold run\.json"):
        run_file.taken("models", tmp_path / "none", None)


def test_the_run_is_there_only_when_the_artifact_is_whole(tmp_path):
    run_file.write(presets.quickstart(), tmp_path)
    with pytest.raises(RuntimeError, match="stopped"), run_file.beside(presets.small(), tmp_path):
        raise RuntimeError("stopped")
    assert run_file.read(tmp_path) is None
    with run_file.beside(presets.small(), tmp_path):
        assert run_file.read(tmp_path) is None
    assert run_file.read(tmp_path) == presets.small()


def test_every_setting_is_read_by_a_stage_and_a_part_holds_no_other():
    fields = {field.name for field in dataclasses.fields(config.RunConfig)}
    read = {name for stage in run_file.STAGES.values() for name in stage.reads}
    assert read == fields - {"days", "keep"}  # of no artifact
    run = override(presets.rich(), ["gate.min_auc=0.7", "data.min_id_count=5", "image.dim=8"])
    part = run_file.part(run, "judgement")
    assert (part.gate, part.feature_set) == (run.gate, run.feature_set)
    assert (part.image, part.marketplace) == (config.RunConfig().image, config.RunConfig().marketplace)
    assert json.loads(json.dumps(config.to_dict(part)))["features"]


def test_what_stages_read_is_in_the_code_of_no_earlier_stage():
    """An edit of the click models' code keeps pairs, encoders and vectors in the cache."""
    for stage in ("pairs", "encoders", "catalog"):
        modules = source.imported_modules(f"tfmm.stages.{stage}")
        assert not {name for name in modules if name.startswith(("tfmm.ctr", "tfmm.make", "tfmm.export"))}, stage
