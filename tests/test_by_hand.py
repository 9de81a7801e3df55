"""The stages run by hand, without TFX, on a catalog of titles whose ids are strings."""

import json
import pathlib
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tfmm import artifacts, presets, saved_model
from tfmm.assignments import override
from tfmm.data import schema
from tfmm.export import saved_model as export
from tfmm.marketplace import generator

pytest.importorskip("apache_beam", reason="Beam is not installed")

SMALL = [
    "marketplace.num_users=150",
    "marketplace.num_items=120",
    "marketplace.num_searches=400",
    "data.max_behaviors=8",
    "text.epochs=1",
    "make.epochs=1",
]
NAME = "run[v2]"  # that is no pattern
FOLDERS = "tables|encoders|index/|snapshot|models|evaluation|serving"
# This small, it is only run.
GATE = [
    "gate.min_auc=0.0",
    "gate.min_gauc=0.0",
    "gate.min_gain_over_id=-1.0",
    "gate.max_logloss_rise=9",
    "gate.max_calibration_rise=9",
    "gate.max_hidden_bias=1.0",
]


def with_string_ids(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies tables, every id turned to a string and pictures left out."""
    target.mkdir()
    for name in schema.TABLES:
        table = schema.read_table(source, name)
        for place, column in enumerate(table.column_names):
            if column.endswith("_id") or column == "category":
                prefix = "item" if column.endswith("item_id") else column
                texts = [None if value is None else f"{prefix}-{value}" for value in table[column].to_pylist()]
                table = table.set_column(place, column, pa.array(texts, pa.string()))
        pq.write_table(table.drop([c for c in table.column_names if "image" in c]), target / f"{name}.parquet")


@pytest.fixture(scope="module")
def run(tmp_path_factory, run_commands):
    """The folder in which every stage's command has run."""
    folder = tmp_path_factory.mktemp("by_hand") / NAME
    folder.mkdir()
    generator.generate(override(presets.small(), SMALL).marketplace, folder / "numbers")
    with_string_ids(folder / "numbers", folder / "tables")
    options = " --preset small " + " ".join(f"--set {assignment}" for assignment in (*SMALL, *GATE))
    commands = [
        "data check tables",
        "pretrain --data tables --output encoders" + options,
        "embed --data tables --encoders encoders --index index/items.sqlite --snapshot snapshot",
        "train --data tables --snapshot snapshot --output models",
        "train --data tables --snapshot snapshot --output models --head pre-ranking --set pre_ranking.epochs=1",
        "evaluate --models models --output evaluation --snapshot snapshot --encoders encoders --data tables",
        "dead-letters models snapshot index/items.sqlite",
        "export --models models --evaluation evaluation --output serving",
    ]
    named = [re.sub(f"(?<= )({FOLDERS})\\b", f"{NAME}/\\1", command) for command in commands]
    (folder / "stdout.txt").write_text(run_commands(folder.parent, *named))
    return folder


def test_each_stage_leaves_its_artifact(run):
    assert json.loads((run / "encoders" / "text" / "manifest.json").read_text())["modality"] == "text"
    assert not (run / "encoders" / "image").exists()
    report = json.loads((run / "evaluation" / "report.json").read_text())
    assert set(report["models"]) == {"id", "multimodal"}
    assert json.loads((run / "evaluation" / "verdict.json").read_text())["passed"] is True


def test_the_run_travels_beside_every_artifact(run):
    """Named once, it is what each later stage does."""
    declared = json.loads((run / "encoders" / "run.json").read_text())
    assert declared["marketplace"]["num_items"] == 120 and declared["gate"]["min_auc"] == 0.0
    for folder in ("snapshot", "models", "evaluation"):
        assert json.loads((run / folder / "run.json").read_text()) == declared, folder
    assert json.loads((run / "models" / "make" / "manifest.json").read_text())["config"]["epochs"] == 1
    (version,) = (run / "serving").iterdir()
    assert export.read_manifest(version)["config"]["candidate_buckets"] == [64]  # of the preset `small`


def test_the_pre_ranking_head_is_an_artifact_of_its_own_and_is_reported(run):
    head = artifacts.read_manifest(run / "models" / "pre_ranking" / "Format-TFMM", "pre_ranking")
    assert head["config"]["epochs"] == 1 and set(head["metrics"]) >= {"auc", "logloss"}
    assert json.loads((run / "models" / "pre_ranking" / "run.json").read_text())["pre_ranking"]["epochs"] == 1
    report = json.loads((run / "evaluation" / "report.json").read_text())
    assert set(report["pre_ranking"]) == {"multimodal"}
    assert "not judged: pre-ranking would keep all of the" in (run / "stdout.txt").read_text()


def test_export_ships_what_was_judged_byte_by_byte(run):
    (version,) = (run / "serving").iterdir()
    judged = run / "models" / "multimodal" / "Format-Serving"
    files = sorted(path.relative_to(judged) for path in judged.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(version) for path in version.rglob("*") if path.is_file())
    assert all((judged / file).read_bytes() == (version / file).read_bytes() for file in files)
    verdict = json.loads((run / "evaluation" / "verdict.json").read_text())
    assert verdict["judged"] == artifacts.digest(version)


def test_encoders_are_reported_beside_their_untrained_selves(run):
    facts = json.loads((run / "evaluation" / "report.json").read_text())["encoders"]
    assert set(facts) == {"text"}
    manifest = json.loads((run / "encoders" / "text" / "manifest.json").read_text())
    assert facts["text"]["acc_at_1"] == manifest["acc_at_1"]
    bank = manifest["memory_bank_size"]  # its pairs are searches
    assert bank == manifest["distinct_positives"] > 64
    found = facts["text"]["probe"]
    assert 0.0 < found["gauc_untrained"] < 1.0 and found["users"] > 0
    said = (run / "stdout.txt").read_text()
    assert f"{bank} distinct positives, a memory bank of {bank};" in said
    assert f"Acc@1 {manifest['acc_at_1']:.3f} (untrained {manifest['acc_at_1_untrained']:.3f}, chance" in said
    assert f"text probe, vectors alone: GAUC {found['gauc']:.4f}" in said
    assert facts["text"]["warnings"]
    assert all(warning in said for warning in facts["text"]["warnings"])


def test_verdict_is_said_first_and_pairs_and_rows_left_out_with_their_counts(run):
    said = (run / "stdout.txt").read_text()
    assert said.index("The gate passed the multimodal model.") < said.index("multimodal: auc")
    assert "multimodal - id: GAUC" in said or "multimodal - id: LogLoss" in said
    pairs = json.loads((run / "encoders" / "pairs" / "text" / "manifest.json").read_text())
    assert f"text pairs: {pairs['train']:,} to train on, {pairs['heldout']:,} held out" in said
    assert f"of {pairs['log_rows']:,} rows of behaviors are before the eval split" in said
    assert " eval, 0 rows left out" in said and "No dead letter found." in said


def test_exported_model_ranks_by_string_ids(run):
    (version,) = (run / "serving").iterdir()
    items = schema.read_table(run / "tables", "items")
    ids, categories = (items[name].to_pylist() for name in ("item_id", "category"))
    request = {
        "user_id": [schema.read_table(run / "tables", "impressions")["user_id"][0].as_py()],
        "behavior_item_ids": [ids[:3]],
        "behavior_categories": [categories[:3]],
        "item_id": [*ids[:4], "never-seen"],
        "category": [*categories[:4], ""],
    }
    with saved_model.load_session(version) as model:
        ids_alone = {name: value for name, value in request.items() if name in model.signatures["pre_rank"].inputs}
        assert "category" not in ids_alone, "the index holds it"
        light = model("pre_rank", ids_alone)["score"]
        assert light.shape == (5,) and np.isfinite(light).all() and np.ptp(light[:4]) > 0
        scores = model("rank", request)["score"]
        assert scores.shape == (5,) and np.isfinite(scores).all()
        assert np.ptp(scores[:4]) > 0
        pairs = {"user_id": request["user_id"] * 5, "item_id": request["item_id"], "category": request["category"],
                 "behavior_item_ids": request["behavior_item_ids"] * 5,
                 "behavior_categories": request["behavior_categories"] * 5}  # fmt: skip
        np.testing.assert_allclose(model("serving_default", pairs)["score"], scores, atol=1e-5)
