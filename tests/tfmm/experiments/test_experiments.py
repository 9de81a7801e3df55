"""Experiments end to end on a marketplace of a few hundred rows."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from tfmm import cli, cli_experiments, presets
from tfmm.assignments import override
from tfmm.config import MAKEConfig, Method
from tfmm.ctr import integrations
from tfmm.ctr import model as model_lib
from tfmm.experiments import catalog, click_models, content_baselines, image_text, tuning
from tfmm.experiments.experiment import BOTH, ID, Basis, Found, Result, with_encoders
from tfmm.experiments.workspace import MADE, RANDOM, SCL, UNTRAINED, Workspace
from tfmm.features import Feature
from tfmm.index import snapshot
from tfmm.make import model as make_model
from tfmm.marketplace import generator
from tfmm.modalities import Modality
from tfmm.vectors import Vectors

SETTINGS = [
    "marketplace.num_items=60", "marketplace.new_items_per_day=4", "marketplace.num_users=60", "marketplace.num_days=2",
    "marketplace.impressions_per_user_day=9", "marketplace.num_searches=200", "text.epochs=1", "image.epochs=1",
    "make.epochs=1", "ctr.segments=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def run():
    return override(presets.small(), SETTINGS)


@pytest.fixture(scope="module")
def data(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    generator.generate(run.marketplace, folder)
    return folder


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("experiments")


@pytest.fixture(scope="module")
def workspace(output, data):
    return Workspace(output / "artifacts", data, say=lambda line: None)


def artifacts_of(output):
    return {path.parent: path.stat().st_mtime_ns for path in (output / "artifacts").glob(f"*/*/{MADE}")}


def carry_out(names, run, output, data, **more):
    lines = []
    found = catalog.run_all(names, run, output, data_dir=data, seeds=1, say=lines.append, **more)
    return found, lines


def test_a_figure_is_made_with_page_and_json_and_what_was_made_is_not_made_again(run, output, data, workspace):
    found, _ = carry_out(["fig6b"], run, output, data)
    result = json.loads((output / "fig6b" / "result.json").read_text())
    assert result["seeds"] == [0] and result["cells"] == 2 and not result["left_out"]
    assert sum(row["items"] for row in found["fig6b"].rows) == len(np.unique(workspace.held_out(run).column("item_id")))
    page = (output / "fig6b" / "index.html").read_text()
    assert "Rare items" in page and "<svg" in page
    made = artifacts_of(output)
    gone = next(folder for folder in made if folder.parent.name == "click_model")
    (gone / MADE).unlink()  # as after a kill
    carry_out(["fig6b"], run, output, data)
    again = artifacts_of(output)
    assert set(again) == set(made)
    assert [folder for folder in made if again[folder] != made[folder]] == [gone]


def test_serving_is_timed_once_a_model_and_leaves_no_copy(run, workspace, monkeypatch):
    cells = {cell.row: cell for cell in click_models._table3_cells(Basis(run, workspace))}
    facts = cells[ID].make(workspace)
    assert facts["serving_ms"] > 0.01
    (made,) = (workspace.folder / "serving").iterdir()
    assert sorted(path.name for path in made.iterdir()) == ["facts.json", MADE]
    monkeypatch.setattr(click_models.serving_time, "rank_ms", None)
    assert cells[ID].make(workspace)["serving_ms"] == facts["serving_ms"]
    found = Found(run, workspace)
    found.facts = {ID: [facts]}
    result = click_models._table3(found)
    assert result.columns["serving ms"] == "serving_ms" and result.rows[0]["serving_ms"] == facts["serving_ms"]
    assert any("of the exported SavedModel in a session" in note for note in result.notes)


@pytest.mark.slow
def test_a_fine_tuned_make_and_a_projection_learn_with_the_click_model(run, workspace):
    """Beside a frozen MAKE, which stays as it was pre-trained."""
    cells = {cell.row: cell for cell in click_models._figure6c_cells(Basis(run, workspace))}
    is_tuned = {f"1 epochs, {click_models.FINE_TUNED}": True, f"1 epochs, {click_models.PROJECTED}": False}
    both = click_models.with_methods(run, click_models.METHODS[BOTH])
    extractor = make_model.load_model(workspace.make_block(both, workspace.vectors(run)))
    for row, tuned in is_tuned.items():
        model = model_lib.load_model(pathlib.Path(cells[row].make(workspace)["folder"]) / "model")
        for name, block in model.make_blocks():
            before = extractor.blocks[name].get_weights()
            moved = max(np.abs(a - b).max() for a, b in zip(before, block.get_weights(), strict=True))
            assert (moved > 1e-4) == tuned, row
    gains = {row: 0.01 * n for n, row in enumerate(cells) if row != ID}
    rows = [{"name": ID}, *({"name": row, "gauc_gain": gain} for row, gain in gains.items())]
    line, bars = click_models._figures6c(rows)
    assert [epochs for epochs, _ in line.series[BOTH]] == list(click_models.MAKE_EPOCHS)
    assert [name for name, _ in bars.series[BOTH]] == ["0 epochs: trained jointly", "1 epochs", *is_tuned]


def test_the_projection_is_of_a_vector_and_missing_is_zero():
    layer = integrations.build(click_models.PROJECTION, MAKEConfig(), 4, "projection")
    rows = np.array([[2, 0, 0, 0], [0, 9, 0, 0]], np.int8)
    found = layer._project(Vectors(rows, np.array([0.5, 1 / 9], np.float32), np.array([True, False]))).numpy()
    np.testing.assert_allclose(found[0], 2.0 * layer.matrix.kernel.numpy()[0], rtol=1e-6)  # sqrt(4) long
    assert not found[1].any()


def test_another_setting_or_other_data_is_made_anew(run, output, data, workspace, tmp_path):
    made = workspace.examples(run)
    assert workspace.examples(override(run, ["ctr.batch_size=64"])) == made  # no setting of examples
    assert workspace.examples(override(run, ["data.min_id_count=3"])) != made
    shutil.copytree(data, tmp_path / "data")
    copied = Workspace(output / "artifacts", tmp_path / "data", say=lambda line: None)
    assert copied.examples(run) == made  # the same files
    pq.write_table(pq.read_table(data / "impressions.parquet").slice(1), tmp_path / "data" / "impressions.parquet")
    other = Workspace(output / "artifacts", tmp_path / "data", say=lambda line: None)
    assert other.examples(run) != made


def test_vectors_of_three_kinds_are_for_the_same_items_and_differ(run, workspace):
    kinds = {kind: snapshot.load_snapshot(workspace.vectors(run, kind)) for kind in (SCL, UNTRAINED, RANDOM)}
    for modality in ("image", "text"):
        tables = {kind: found[modality] for kind, found in kinds.items()}
        assert all(np.array_equal(table.ids, tables[SCL].ids) for table in tables.values())
        for table in tables.values():
            norms = np.linalg.norm(table.rows * table.scales[:, None], axis=1)
            np.testing.assert_allclose(norms[table.scales > 0], 1.0, rtol=1e-5)
        drawn = {kind: np.asarray(table.rows).tobytes() for kind, table in tables.items()}
        assert len(set(drawn.values())) == 3


def test_the_validation_split_has_no_row_of_the_held_out_ones(run, workspace):
    inside = tuning.validation(workspace, run)
    first = workspace.held_out(run).column("timestamp").min()
    assert inside.held_out(run).column("timestamp").max() < first
    everything = workspace.held_out(run).num_rows + workspace.training_rows(run).num_rows
    kept = inside.held_out(run).num_rows + inside.training_rows(run).num_rows
    assert kept == np.sum(workspace.training_rows(run).column("timestamp") < first) < everything


def linked(data, folder, **tables):
    """A data folder of links into another, as a lake has them; `tables` replace some."""
    folder.mkdir()
    for path in data.iterdir():
        if path.name not in tables and path.is_file():
            (folder / path.name).symlink_to(path)
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet")
    return folder


def test_the_validation_split_writes_nothing_through_the_links_of_a_data_folder(run, output, data, tmp_path):
    before = pq.read_table(data / "impressions.parquet")
    folder = linked(data, tmp_path / "links")
    inside = tuning.validation(Workspace(output / "artifacts", folder, say=lambda line: None), run)
    assert pq.read_table(data / "impressions.parquet").equals(before)
    assert len(pq.read_table(inside.data_dir / "impressions.parquet")) < len(before)
    assert not (inside.data_dir / "impressions.parquet").is_symlink()


def test_the_validation_split_follows_the_split_of_the_table_and_keeps_columns_of_folders(run, output, data, tmp_path):
    rows = pq.read_table(data / "impressions.parquet")
    split = np.where(np.arange(len(rows)) % 5 == 4, "eval", "train")
    folder = linked(data, tmp_path / "data", items=pq.read_table(data / "items.parquet"))
    (folder / "impressions.parquet").unlink()
    for city in ("Lyon", "Oslo"):
        of = np.arange(len(rows)) % 2 == (city == "Oslo")
        (folder / "impressions" / f"city={city}").mkdir(parents=True)
        part = rows.append_column("split", pa.array(split)).filter(pa.array(of))
        pq.write_table(part, folder / "impressions" / f"city={city}" / "0.parquet")
    declared = dataclasses.replace(run, features=(*run.features, Feature("city", "context")))
    inside = tuning.validation(Workspace(output / "artifacts", folder, say=lambda line: None), declared)
    kept = pq.read_table(inside.data_dir / "impressions.parquet")
    assert len(kept) == (split == "train").sum() and "split" not in kept.column_names
    assert set(kept["city"].to_pylist()) == {"Lyon", "Oslo"}
    assert inside.held_out(declared).num_rows > 0 < inside.training_rows(declared).num_rows


def test_encoders_are_tuned_on_no_item_that_is_held_out(run, workspace):
    for modality in ("image", "text"):
        folder = tuning.validation_pairs(workspace, run, modality) / modality
        outer = pq.read_table(workspace.pairs(run) / modality / "heldout.parquet")["positive_item_id"].to_pylist()
        inner = {name: pq.read_table(folder / f"{name}.parquet") for name in ("train", "heldout")}
        items = {name: set(table["positive_item_id"].to_pylist()) for name, table in inner.items()}
        assert items["train"] and items["heldout"]
        assert not items["train"] & items["heldout"] and not set(outer) & (items["train"] | items["heldout"])


@pytest.mark.parametrize("bank", ["ours", "paper"])
@pytest.mark.parametrize("name", catalog.EXPERIMENTS)
def test_cells_are_of_settings_that_hold_whatever_bank_the_run_has(run, workspace, name, bank):
    changed = with_encoders(run, bank=bank)
    cells = catalog.EXPERIMENTS[name].cells(Basis(changed, workspace))
    assert len({cell.row for cell in cells}) == len(cells) > 1


@pytest.mark.parametrize("name", [name for name in catalog.EXPERIMENTS if name != "tune"])
def test_what_is_left_of_an_experiment_without_most_of_its_cells_is_a_page(run, workspace, name):
    experiment = catalog.EXPERIMENTS[name]
    first = experiment.cells(Basis(run, workspace))[0]
    found = Found(run, workspace)
    found.facts[first.row] = [first.make(workspace)]
    assert isinstance(experiment.result(found), Result)


def test_settings_of_one_modality_reach_its_encoder_alone_declared_or_not(run):
    declared = (
        Modality("picture", "image", column="image", query_column="query_image", settings={"batch_size": 32}),
        Modality("title", "text", query_column="query_text"),
    )
    for changed in (run, dataclasses.replace(run, modalities=declared)):
        names = [one.name for one in changed.modalities] or ["image", "text"]
        tuned = with_encoders(changed, names[0], batch_size=17)
        sizes = {name: one.batch_size for name, one in tuned.encoders(names).items()}
        assert sizes[names[0]] == 17 and sizes[names[1]] == changed.encoders(names)[names[1]].batch_size


def test_the_source_of_an_own_method_is_part_of_a_key(run, workspace, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    source = "from tfmm.ctr import integrations\n\n\nclass Own(integrations.SimTier):\n    pass\n"
    (tmp_path / "own_method_of_experiments.py").write_text(source)
    own = dataclasses.replace(run, methods=(Method("own_method_of_experiments:Own"),))
    before = workspace._read_by("multimodal_model", own)
    (tmp_path / "own_method_of_experiments.py").write_text(source + "\n# changed\n")
    assert workspace._read_by("multimodal_model", own) != before


@pytest.mark.slow
def test_what_tune_chooses_is_what_the_tables_take(run, output, data, monkeypatch, tmp_path):
    monkeypatch.setattr(tuning, "MIN_ROWS", 10)
    monkeypatch.setattr(tuning, "CLICK_MODELS", (("ctr.learning_rate=0.001",), ("ctr.learning_rate=0.004",)))
    monkeypatch.setattr(tuning, "METHODS", {"simtier": ("simtier",)})
    monkeypatch.setattr(tuning, "ENCODERS", ({"batch_size": 32}, {"batch_size": 16}))
    found, _ = carry_out(["tune"], run, output, data)
    chosen = json.loads((output / "tune" / tuning.CHOSEN).read_text())
    best = {row["name"]: row for row in found["tune"].rows if row["best"]}
    assert set(chosen) == set(best) == {"ID", "simtier", "image encoder", "text encoder"}
    assert chosen["ID"] == best["ID"]["settings"].split()
    carry_out(["fig6b"], run, output, data, tuned_path=output / "tune" / tuning.CHOSEN)
    folder = pathlib.Path(json.loads((output / "fig6b" / "result.json").read_text())["folders"]["ID"][0])
    config = json.loads((folder / "model" / "manifest.json").read_text())["config"]
    assert f"ctr.learning_rate={config['learning_rate']}" in chosen["ID"]


def test_without_time_the_page_says_what_was_not_run(run, output, data):
    result, _ = carry_out(["fig6b"], run, output, data, budget_minutes=1e-9)
    assert "There was no time for 2 cells: ID, seed 0; simtier+make, seed 0." in result["fig6b"].notes


def test_pixels_and_words_find_what_is_equal(run, workspace):
    pairs = workspace.pairs(run)
    for modality, read in (("image", content_baselines.pixels), ("text", content_baselines.tf_idf)):
        found = read(workspace.learned(run)[modality], pairs / modality)
        assert 0.0 <= found["acc_at_1"] <= found["acc_at_5"] <= 1.0


def test_pictures_and_descriptions_teach_encoders_of_items_that_are_not_held_out(run, workspace):
    learned = workspace.learned(override(run, ["image.epochs=12", "text.epochs=12"]))
    found = image_text.fit(learned, workspace.data_dir, workspace.pairs(run), run.modality_set)
    again = image_text.fit(learned, workspace.data_dir, workspace.pairs(run), run.modality_set)
    assert found == again and set(found) == {"image", "text"}
    assert all(0.0 <= one["acc_at_1"] <= one["acc_at_5"] <= 1.0 for one in found.values())


def test_data_without_encoders_is_refused_where_encoders_are_asked_for(run, tmp_path, data):
    shutil.copytree(data, tmp_path / "data")
    items = pq.read_table(data / "items.parquet")
    vectors = pa.array(np.random.default_rng(0).normal(size=(len(items), 8)).astype("float32").tolist())
    pq.write_table(items.append_column("vector", vectors), tmp_path / "data" / "items.parquet")
    with pytest.raises(ValueError, match="Experiments on encoders need data that trains one"):
        carry_out(["table2"], run, tmp_path / "out", tmp_path / "data")


def test_the_command_names_experiments_that_there_are():
    assert set(cli_experiments.NAMES) == set(catalog.EXPERIMENTS)
    refused = CliRunner().invoke(cli.main, ["experiments", "table9"])
    assert refused.exit_code == 2 and "table9" in refused.output


@pytest.mark.slow
def test_all_experiments_go_through_and_say_what_they_found(run, output, data):
    found, _ = carry_out(list(catalog.ALL), run, output, data)
    for name, result in found.items():
        assert result.rows and (output / name / "index.html").exists(), name
    assert len(found["table3"].rows) == 11
    assert {row["name"] for row in found["table2"].rows} >= {"image: SCL", "text: TF-IDF", "image: untrained"}
