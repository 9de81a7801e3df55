"""What a run of the user's says is taken as it stands, and what goes wrong in it is said with its place."""

import dataclasses
import json
import sys
import traceback

import pytest

from tfmm import cli_options, config, presets, runs
from tfmm.assignments import override
from tfmm.config import Method, RunConfig
from tfmm.features import DEFAULT_FEATURES, Feature
from tfmm.modalities import Modality

HEAD = "import dataclasses\n\nfrom tfmm import presets\n\n\n"


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Returns a function that writes a module of the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    names = []

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        names.append(name)

    yield write
    for name in names:
        sys.modules.pop(name, None)


@pytest.mark.parametrize(("text", "words"), [
    ("def weekly(:\n    pass\n", r"\(faulty_runs\.py, line 1\): SyntaxError: "),
    ("1 / 0\n", r"\(faulty_runs\.py, line 1\): ZeroDivisionError: division by zero"),
    ("import no_such_thing\n", r"\(faulty_runs\.py, line 1\): ModuleNotFoundError: No module named 'no_such"),
    ("def weekly():\n    return {}['city']\n", r"\(faulty_runs\.py, line 2\): KeyError: 'city'"),
    ("def weekly(day):\n    pass\n", r"TypeError: weekly\(\) missing 1 required positional argument"),
    ("weekly = 3\n", r"TypeError: 'int' object is not callable"),
    (HEAD + "def weekly():\n    run = presets.small()\n    return dataclasses.replace(run, seeds=3)\n",
     r"\(faulty_runs\.py, line 8\): TypeError: .*'seeds'"),
    (HEAD + "def weekly():\n    run = presets.small()\n    return dataclasses.replace(run, features=())\n",
     r"(?s)\(faulty_runs\.py, line 8\).*`features` must declare 'user_id'"),
])  # fmt: skip
def test_what_goes_wrong_in_a_users_run_is_said_with_file_and_line(module, text, words):
    module("faulty_runs", text)
    with pytest.raises(ValueError, match=words) as raised:
        runs.load("faulty_runs:weekly")
    assert "faulty_runs:weekly" in str(raised.value)
    cause = raised.value.__cause__
    assert cause is not None and traceback.format_exception(cause)


def test_fault_of_a_class_is_said_with_its_place_too(module):
    module("faulty_encoders", "x = 1\nraise OSError('no weights here')\n")
    with pytest.raises(ValueError, match=r"OSError: no weights here \(faulty_encoders\.py, line 2\)"):
        runs.verify(RunConfig(modalities=(Modality("sound", "faulty_encoders:Sound"),)))


def test_declared_seeds_stand_unless_a_seed_is_given(module):
    text = HEAD + "def weekly():\n    run = presets.small().with_seed(3)\n    return dataclasses.replace(\n"
    module("seeded_runs", text + "        run, make=dataclasses.replace(run.make, seed=5))\n")
    declared = cli_options.load_config("seeded_runs:weekly", ())
    assert (declared.seed, declared.ctr.seed, declared.make.seed) == (3, 3, 5)
    given = cli_options.load_config("seeded_runs:weekly", ("make.seed=6",), 4)
    assert (given.seed, given.ctr.seed, given.make.seed) == (4, 4, 6)
    assert cli_options.load_config("small", ()) == presets.small()


def test_a_seed_reaches_the_settings_that_have_one():
    run = RunConfig(
        modalities=(Modality("sound", "team:Sound", settings={"seed": 3, "dim": 8}), Modality("clip", "vector")),
        methods=(Method("semantic_id", {"seed": 3}), Method("simtier", {"num_tiers": 4})),
        ctr=config.CTRConfig(model="team:Model", model_settings={"seed": 3}),
    ).with_seed(7)
    assert run.encoders(["sound"])["sound"].seed == 7 and run.modalities[1].settings == {}
    assert [method.settings for method in run.methods] == [{"seed": 7}, {"num_tiers": 4}]
    assert run.ctr.model_settings == {"seed": 7}


def test_quickstart_gives_no_seed_of_its_own(monkeypatch, tmp_path):
    from click.testing import CliRunner

    from tfmm import cli
    from tfmm.quickstart import run as quickstart_run

    seen = []
    monkeypatch.setattr(quickstart_run, "main", lambda workdir, data, settings: seen.append(settings) or 0)
    declared = presets.small().with_seed(3)
    (tmp_path / "run.json").write_text(json.dumps(config.to_dict(declared)))
    for more in ([], ["--seed", "4"]):
        found = CliRunner().invoke(cli.main, ["quickstart", "--run", str(tmp_path / "run.json"), *more])
        assert found.exit_code == 0, found.output
    assert seen == [declared, declared.with_seed(4)]


def test_override_reaches_a_method_by_its_dotted_name():
    name = "pkg.mod:Class"
    run = dataclasses.replace(RunConfig(), methods=(Method("simtier"), Method(name, {"scale": 1.0})))
    changed = override(run, [f"methods.{name}.scale=2.5", "methods.simtier.num_tiers=5"])
    assert [method.settings for method in changed.methods] == [{"num_tiers": 5}, {"scale": 2.5}]
    with pytest.raises(ValueError, match=r"must be one of \['simtier', 'pkg\.mod:Class'\]\. Received: 'mod:Class'"):
        override(run, ["methods.mod:Class.scale=2.5"])
    with pytest.raises(ValueError, match=r"must read methods\.name\.field=value"):
        override(run, ["methods.simtier=2.5"])


def test_overrides_of_one_command_hold_together():
    """What two features share is changed in both, though neither change alone could stand."""
    sharing = (Feature("brand", "item", dim=8), Feature("liked", "user", vocabulary="brand", dim=8))
    run = RunConfig(features=(*DEFAULT_FEATURES, *sharing))
    changed = override(run, ["features.brand.dim=16", "features.liked.dim=16", "features.liked.dim=4",
                             "features.brand.dim=4"])  # fmt: skip
    assert [changed.feature_set[name].dim for name in ("brand", "liked")] == [4, 4]
    with pytest.raises(ValueError, match="share 'brand', so `dim`"):
        override(run, ["features.brand.dim=16"])


def test_a_value_for_serving_may_be_of_another_type_or_none():
    run = RunConfig(features=(*DEFAULT_FEATURES, Feature("position", "context", "number", serving_value=1)))
    for text, value in (("2.5", 2.5), ("null", None), ("3", 3)):
        assert override(run, [f"features.position.serving_value={text}"]).feature_set["position"].serving_value == value
    with pytest.raises(ValueError, match="`serving_value` must be a finite number"):
        override(run, ["features.position.serving_value=first"])


@pytest.mark.parametrize(("text", "words"), [
    ('{"ctr": 3}', "`ctr` of RunConfig must be a table. Received: 3"),
    ('{"features": [3]}', "Feature must be a table of its fields. Received: 3"),
    ('{"methods": ["simtier"]}', "Method must be a table of its fields. Received: 'simtier'"),
    ('{"modalities": [{"name": "sound", "encoder": "vector", "settings": 3}]}', "`settings` of Modality must be a"),
    ('{"ctr": {"model_settings": 3}}', "`model_settings` of CTRConfig must be a table"),
    ('{"preset": ["small"]}', "`preset` must be one of"),
])  # fmt: skip
def test_value_of_another_form_is_refused_by_name(tmp_path, text, words):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=words):
        runs.load(str(tmp_path / "run.json"))
