"""What a simulation needs of its settings and its workdir, said at once, before anything starts."""

import dataclasses

import pytest
from click.testing import CliRunner

from serving.demo.trained import Trained
from serving.simulation import settings as settings_lib
from serving.simulation.settings import Settings
from tfmm import artifacts, cli, presets
from tfmm.export.saved_model import EXTRA
from tfmm.export.signatures import LOGGED
from tfmm.features import Sequence
from tfmm.stages import folders


@pytest.fixture
def trained(tmp_path):
    """Folders as a quickstart leaves them, as far as they are looked at."""
    version = tmp_path / "serving" / "tfmm" / "17"
    models = [tmp_path / "models" / name for name in ("id", "multimodal")]
    states, exports = ([model / name for model in models] for name in (folders.STATE, folders.SERVING))
    for folder in (*states, *exports, version, tmp_path / "tables", tmp_path / "encoders"):
        folder.mkdir(parents=True)
    for folder in (*exports, version):
        artifacts.write_manifest(folder / EXTRA, "saved_model", signatures=sorted(LOGGED.values()))
    for folder in exports:
        (folder / EXTRA / artifacts.MANIFEST).write_bytes((version / EXTRA / artifacts.MANIFEST).read_bytes())
    (tmp_path / "items.sqlite").touch()
    return Trained(
        tmp_path, presets.small(), tmp_path / "tables", tmp_path / "items.sqlite", tmp_path / "encoders", models[1],
        models[0], version,
    )  # fmt: skip


def test_a_trained_workdir_is_taken(trained):
    assert settings_lib.verify(trained) == presets.small()


def test_without_the_model_of_ids_alone_there_is_nothing_to_compare_with(trained):
    (trained.id_model / folders.STATE).rmdir()
    said = r"must hold the click model of ids alone, too. Received: no \S*models/id/Format-State. `tfmm quickstart"
    with pytest.raises(ValueError, match=said):
        settings_lib.verify(trained)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"marketplace": dataclasses.replace(presets.small().marketplace, rich=True)}, "must not be a rich one"),
        ({"marketplace": dataclasses.replace(presets.small().marketplace, new_items_per_day=0)}, "must be positive"),
        (
            {
                "features": presets.rich().features,
                "sequences": (Sequence("clicks", ("click",), 50, ("item_id", "age", "dwell")),),
            },
            "must bring items' features alone, .* Received: clicks_age, clicks_dwell",
        ),
    ],
)
def test_a_run_whose_visits_cannot_be_simulated_is_refused(trained, change, said):
    run = dataclasses.replace(presets.small(), **change)
    with pytest.raises(ValueError, match=f"No A/B can be simulated so:\n- .*{said}"):
        settings_lib.verify(dataclasses.replace(trained, run=run))


def test_without_a_model_the_command_says_how_one_is_made_and_writes_nothing(tmp_path):
    result = CliRunner().invoke(cli.main, ["simulate", str(tmp_path)])
    said = f"must hold a version in service. Received: none. `tfmm quickstart --workdir {tmp_path}` trains it"
    assert result.exit_code == 1 and said in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_place_for_results_that_is_not_there_is_refused_before_the_week(tmp_path):
    result = CliRunner().invoke(cli.main, ["simulate", str(tmp_path), "--json", str(tmp_path / "no" / "found.json")])
    assert result.exit_code == 1 and "`--json` must name a file in a folder that is there" in result.output


def test_settings_that_cannot_be_are_refused_all_at_once():
    said = r"`days` must be at least 1, not 0\n- `seed` must not be negative, not -1\n- `candidates` must be at least"
    with pytest.raises(ValueError, match=said):
        Settings(days=0, seed=-1, candidates=31)
    with pytest.raises(ValueError, match="`push_hours` must divide a day's 24, not 5"):
        Settings(push_hours=5)


@pytest.mark.parametrize("settings", [Settings(), Settings(slots=5, candidates=20), Settings(visits_per_day=1)])
@pytest.mark.parametrize("batch_size", [1, 7, 256, 512])
def test_a_period_is_whole_blocks_of_which_some_are_trained_before_the_candidate_is_judged(settings, batch_size):
    rules = settings.rules(batch_size)
    assert rules.slice_rows % batch_size == rules.judged_rows % batch_size == rules.slice_rows % settings.slots == 0
    assert 0 < rules.judged_rows < rules.slice_rows
    wanted = settings.visits_per_day * settings.push_hours / 24
    assert rules.slice_rows >= wanted * settings.slots
