"""A team's own columns, sequences and modalities on the whole road, from two files of theirs: tables and one run."""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("tfx", reason="TFX is not installed")

from serving import client as ranking
from tfmm import runs
from tfmm.export import saved_model
from tfmm.quickstart import processes, requests
from tfmm.stages import folders

# The only file that a team writes beside its tables.
TEAM = '''
import dataclasses

from tfmm import presets
from tfmm.assignments import override
from tfmm.config import Method
from tfmm.features import Feature, Sequence
from tfmm.modalities import Modality

TINY = ["text.epochs=1", "image.epochs=1", "make.epochs=1", "gate.min_auc=0.0", "gate.min_gauc=0.0",
        "gate.min_gain_over_id=-1.0", "gate.max_logloss=9", "gate.max_hidden_bias=99",
        "export.batch_buckets=[512]", "export.jit_compile=false"]


def run():
    small = presets.small()
    carried = ("item_id", "category", "brand", "price", "age")
    declared = dataclasses.replace(
        small,
        features=(
            *small.features,
            Feature("age_group", "user", dim=4),
            Feature("city", "user", num_buckets=100, dim=4),
            Feature("income", "user", "number", scaling="log"),
            Feature("brand", "item", dim=4),
            Feature("price", "item", "number", scaling="quantiles", num_quantiles=8, dim=4),
            Feature("tags", "item", "ids", max_values=3, dim=4),
            Feature("device", "context", dim=4),
            Feature("hour", "context", "time", source="impressions.timestamp", dim=4),
            Feature("position", "context", "number", scaling="log", serving_value=1),
            Feature("age", "behavior", "number", source="behaviors.age", scaling="log"),
        ),
        sequences=(
            Sequence("clicks", ("click",), 50, carried),
            Sequence("purchases", ("purchase",), 200, carried),
        ),
        modalities=(
            Modality("image", "image", query_column="query_image"),
            Modality("text", "text", column="title", query_column="query_text"),
            Modality("own", "vector", column="own_vector"),
        ),
        methods=(Method("simtier", {"num_tiers": 10}), Method("make"), Method("simscore")),
    )
    return override(declared, TINY)
'''
MARKETPLACE = (
    "data marketplace tables --preset small --set marketplace.rich=true --set marketplace.num_users=120 "
    "--set marketplace.num_items=150 --set marketplace.num_searches=600 --set marketplace.num_days=3"
)
MODALITIES = {"image", "own", "text"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, run_commands):
    """The folder in which the road has run: check, examples, Transform, training, gate, server, stream, report."""
    folder = tmp_path_factory.mktemp("own_columns")
    run_commands(folder, MARKETPLACE)
    path = folder / "tables" / "items.parquet"
    items, draw = pq.read_table(path), np.random.default_rng(0)
    vectors = [None if n % 10 == 0 else row.tolist() for n, row in enumerate(draw.normal(size=(len(items), 6)))]
    pq.write_table(items.append_column("own_vector", pa.array(vectors, pa.list_(pa.float32()))), path)
    (folder / "team.py").write_text(TEAM)
    said = run_commands(
        folder,
        "run show --data tables --run team:run",
        "data check tables --run team:run",
        "quickstart --data tables --workdir work --run team:run",
    )
    (folder / "stdout.txt").write_text(said)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_whole_road_runs_on_what_was_declared(folder):
    said = (folder / "stdout.txt").read_text()
    assert "tables has what is declared." in said and "No fault found." in said
    assert not re.search(r"not used: .*(price|brand|city|device|own_vector)", said)
    summary = json.loads((folder / "work" / "summary.json").read_text())
    assert summary["gate"]["passed"] is True and set(summary["encoders"]) == MODALITIES
    assert set(summary["data"]) >= {"users", "items", "impressions", "behaviors", "searches"}
    assert summary["grpc_predict_ms"] > 0 and summary["rest_predict_ms"] > 0  # one score by both protocols
    assert summary["new_item_delay_s"] > 0
    assert (folder / "work" / "report.html").stat().st_size > 10_000
    assert {path.name for path in (folder / "work" / "encoders").iterdir() if path.is_dir()} == {"image", "text"}


@pytest.fixture
def client(folder, tmp_path):
    """A client of a server with the pushed model."""
    command = ["serving.model_server", "--model_name=tfmm", f"--model_base_path={folder / 'work' / 'serving' / 'tfmm'}"]
    command += ["--port=0", "--rest_api_port=0", f"--ready_file={tmp_path / 'server.json'}"]
    with processes.Child(
        "The model server", command, tmp_path / "server.log", ready_file=tmp_path / "server.json"
    ) as server:
        ports = server.wait_ready()
        addresses = f"127.0.0.1:{ports['grpc_port']}", f"http://127.0.0.1:{ports['rest_port']}"
        with ranking.RankingClient(*addresses, "tfmm") as client:
            yield client


def another(values, feature):
    """Other values of the same feature, as many."""
    if isinstance(values, list):
        return [another(value, feature) for value in values]
    if feature.kind == "number":
        return 3.0 * (values or 0.0) + 7.0
    if feature.kind == "time":
        return values + 5 * 3600 * 10**6
    return "another" if isinstance(values, str) else (values or 0) + 1


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_declared_input_is_asked_for_and_changes_the_score_by_both_protocols(folder, client):
    declared = runs.load(str(folder / "work" / "run.json")).feature_set
    assert "position" not in {column.feature.name for column in declared.served}  # known in training only
    user = requests.busiest_user(folder / "tables", declared, "UTC")
    candidates = requests.first_items(folder / "tables", declared, 40, "UTC")
    assert all(user[sequence.item_ids] for sequence in declared.sequences)
    scores = client.rank(user, candidates)
    assert scores.shape == (40,) and np.ptp(scores) > 0
    np.testing.assert_allclose(client.rank_rest(user, candidates), scores, atol=1e-5)
    asked = {**user, **candidates}
    assert set(asked) == {column.name for column in declared.served}
    for column in declared.served:
        changed = another(asked[column.name], column.feature)
        sides = [{**side, column.name: changed} if column.name in side else side for side in (user, candidates)]
        assert np.abs(client.rank(*sides) - scores).max() > 0, column.name


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_vectors_of_each_modality_are_served(folder):
    (version,) = (folder / "work" / "serving" / "tfmm").iterdir()
    index = saved_model.read_manifest(version)["index"]
    assert {name: facts["dim"] for name, facts in index.items()} == {"image": 32, "own": 6, "text": 32}
    model = json.loads((folder / "work" / "models" / "multimodal" / folders.TRAINED / "manifest.json").read_text())
    assert [method["name"] for method in model["methods"]] == ["simtier", "make", "simscore"]
    assert model["make_config"]["epochs"] == 1
