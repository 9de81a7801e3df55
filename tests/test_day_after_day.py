"""Models that go on from the ones before, over a folder that grows by appended files, by the commands."""

import json
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tfmm import artifacts, preprocessing
from tfmm import config as config_lib
from tfmm.assignments import override
from tfmm.config import MarketplaceConfig
from tfmm.ctr import state as state_lib
from tfmm.export import saved_model
from tfmm.features import FeatureSet
from tfmm.marketplace import day_by_day, generator
from tfmm.stages import continued, run_file
from tfmm.training import checkpoint

pytest.importorskip("apache_beam", reason="Beam is not installed")

SETTINGS = ("data.max_behaviors=8", "text.epochs=1", "make.epochs=1", "ctr.segments=2",
            "ctr.block_rows=256", "ctr.batch_size=128", "export.index_capacity=2048",
            "export.jit_compile=false")  # fmt: skip
RUN = " --run small " + " ".join(f"--set {assignment}" for assignment in SETTINGS)
DAYS, DAY_US = 2, 86_400_000_000


@pytest.fixture(scope="module")
def shop(tmp_path_factory, run_commands):
    """A folder with two days of a shop, encoders, and a snapshot and models per day; read-only."""
    folder = tmp_path_factory.mktemp("shop")
    config = MarketplaceConfig(
        num_items=150, new_items_per_day=30, num_users=200, num_days=3, num_searches=300, image_size=16
    )
    generator.generate(config, folder / "marketplace")
    for table, picture in (("items", "image"), ("searches", "query_image")):  # titles alone take half the time
        path = folder / "marketplace" / f"{table}.parquet"
        pq.write_table(pq.read_table(path).drop([picture]), path)
    said = {}
    for day in range(DAYS):
        day_by_day.append_day(folder / "marketplace", folder / "tables", day)
        commands = [
            f"embed --data tables --encoders encoders --index index.sqlite --snapshot snapshot-{day}",
            f"train --data tables --snapshot snapshot-{day} --output models-{day}"
            + (f" --continue-from models-{day - 1}" if day else ""),
        ]
        if day == 0:
            commands.append("train --data tables --snapshot snapshot-0 --output models-0 --head pre-ranking"
                            " --set pre_ranking.epochs=1")
            commands.insert(0, f"pretrain --data tables --output encoders{RUN}")
        said[day] = run_commands(folder, *commands)
    return folder, said


def state_of(folder, day, name="multimodal"):
    """The facts of a state, its variables by place and name, and its vocabularies."""
    place = folder / f"models-{day}" / name / "Format-State"
    manifest = state_lib.read_manifest(place)
    arrays, _ = checkpoint.read(place / "variables")
    values = {f"{i}: {n}": arrays[f"model/{i}"] for i, n in enumerate(manifest["names"]["model"])}
    features = config_lib.from_dict(FeatureSet, manifest["model"]["feature_set"])
    return manifest, values, preprocessing.vocabularies(features, place / "vocabulary")


def instants(folder):
    return np.sort(pq.read_table(folder / "tables" / "impressions")["timestamp"].cast("int64").to_numpy())


@pytest.mark.timeout(1800)
def test_each_model_trains_on_what_came_after_its_parent_and_nothing_twice(shop):
    folder, _ = shop
    at, after, trained = instants(folder), np.iinfo(np.int64).min, 0
    for day in range(DAYS):
        facts = state_of(folder, day)[0]["training"]
        rows = pq.read_table(folder / "marketplace" / "impressions.parquet")["timestamp"].cast("int64").to_numpy()
        known = np.sort(rows[(rows > after) & (rows < generator.WEEK_START_US + (day + 1) * DAY_US)])
        through = facts["trained_through"]["timestamp"]
        assert facts["span"]["number"] == day + 1
        assert facts["span"]["rows"] == (known <= through).sum() and facts["span"]["first"] == known[0]
        assert facts["lag"]["rows"] == (known > through).sum() == pytest.approx(0.2 * len(known), abs=2)
        assert facts["lag"]["seconds"] == pytest.approx((known[-1] - through) / 1e6)
        trained += facts["span"]["rows"]
        assert facts["rows"] == trained
        after = through
    assert trained == (at <= after).sum()


def test_each_model_names_its_parent_its_encoders_and_its_make(shop):
    folder, _ = shop
    ids = [artifacts.read_manifest(folder / f"models-{day}/multimodal/Format-State")["id"] for day in range(DAYS)]
    facts = [state_of(folder, day)[0]["training"] for day in range(DAYS)]
    assert [one["parent"] for one in facts] == [None, ids[0]]
    make = artifacts.read_manifest(folder / "models-0/make")["id"]
    assert [one["make"] for one in facts] == [make] * DAYS and not (folder / "models-1/make").exists()
    version = artifacts.read_manifest(folder / "encoders/text")["encoder_version"]
    assert [one["encoder_versions"]["text"] for one in facts] == [version] * DAYS
    for day in range(DAYS):  # what is served says so, too
        served = json.loads((folder / f"models-{day}/multimodal/Format-Serving/assets.extra/manifest.json").read_text())
        assert served["training"] == facts[day]


def test_a_model_that_goes_on_keeps_the_pre_ranking_head_and_says_who_taught_it(shop):
    folder, _ = shop
    ids = [artifacts.read_manifest(folder / f"models-{day}/multimodal/Format-TFMM")["id"] for day in range(DAYS)]
    for day in range(DAYS):
        version = folder / f"models-{day}/multimodal/Format-Serving"
        manifest = saved_model.read_manifest(version)
        assert "pre_rank" in manifest["signatures"] and manifest["parents"][0] == ids[day]
        assert manifest["pre_ranking_teacher"] == ids[0]
        assert bool(saved_model.head_lines(version, None)) == (day > 0)
    twin = folder / "models-1/id/Format-Serving"
    assert "pre_rank" not in saved_model.read_manifest(twin)["signatures"]


def test_vocabularies_and_tables_only_grow(shop):
    folder, _ = shop
    for name in ("id", "multimodal"):
        (_, _, old), (manifest, values, new) = state_of(folder, 0, name), state_of(folder, 1, name)
        for table, ids in old.items():
            np.testing.assert_array_equal(new[table][: len(ids)], ids)
            assert len(np.unique(new[table])) == len(new[table])
            size = manifest["model"]["sizes"][table]
            assert size == len(new[table]) + 2
            (rows,) = (value for key, value in values.items() if key.endswith(f"{table}_embedding/embeddings"))
            assert len(rows) == size
        assert len(new["item_id"]) > len(old["item_id"])


def test_make_is_frozen(shop):
    folder, _ = shop
    first, last = state_of(folder, 0)[1], state_of(folder, 1)[1]
    of_make = [name for name in first if "/make-" in name]
    assert of_make
    for name in of_make:
        np.testing.assert_array_equal(first[name], last[name], err_msg=name)


def test_a_span_that_comes_twice_makes_no_new_version_and_late_rows_are_counted(shop, run_commands, tmp_path):
    folder, _ = shop
    tables = tmp_path / "tables"
    day_by_day.append_day(folder / "marketplace", tables, 0)
    through = state_of(folder, 0)[0]["training"]["trained_through"]["timestamp"]
    impressions = pq.read_table(tables / "impressions")
    early = pc.less_equal(impressions["timestamp"].cast("int64"), through)
    pq.write_table(impressions.filter(early), tables / "impressions" / "day-0.parquet")
    shutil.copytree(tables, tmp_path / "later")
    late = impressions.filter(early).slice(0, 7)
    at = pa.array(late["timestamp"].cast("int64").to_numpy() - 1, pa.int64()).cast("timestamp[us]")
    late = late.set_column(late.schema.get_field_index("timestamp"), "timestamp", at)
    pq.write_table(late, tmp_path / "later" / "impressions" / "late.parquet")
    went_on = f"--snapshot {folder}/snapshot-0 --output models --continue-from {folder}/models-0"
    said = run_commands(tmp_path, f"train --data tables {went_on}", f"train --data later {went_on}")
    assert "Received: none. No new version is made." in said and not (tmp_path / "models").exists()
    assert "Received: none, and 7 that came late and are not trained on" in said


def test_models_go_on_with_the_settings_of_their_own_run_and_say_a_gap(shop, run_commands, tmp_path):
    """Not with those of the snapshot, which was embedded by the encoders' run."""
    folder, _ = shop
    for name, days in (("first_day", (0,)), ("without_the_second", (0, 2))):
        for day in days:
            day_by_day.append_day(folder / "marketplace", tmp_path / name, day)
    snapshot = f"--snapshot {folder}/snapshot-1"
    said = run_commands(
        tmp_path,
        f"train --data first_day {snapshot} --output first --set ctr.units=[16] --set ctr.epochs=2",
        f"train --data without_the_second {snapshot} --output on --continue-from first",
    )
    run = run_file.read(tmp_path / "on")
    assert run == run_file.read(tmp_path / "first") and (run.ctr.units, run.ctr.epochs) == ((16,), 2)
    assert re.search(r"span: no impression from 2024-03-0(4T2.|5T0.):00:00 UTC to 2024-03-06T0.:00:00 UTC", said), said


def test_folders_that_cannot_be_gone_on_from_are_refused_before_anything_is_touched(shop, tmp_path):
    folder, _ = shop
    with pytest.raises(ValueError, match="must be another folder than `--continue-from`"):
        continued.run_of(folder / "models-0", folder / "snapshot-0" / ".." / "models-0")
    shutil.copytree(folder / "models-0", tmp_path / "models")
    (tmp_path / "models" / run_file.FILE).unlink()
    with pytest.raises(ValueError, match=r"must hold models of a `tfmm train` that has ended. Received: no run\.json"):
        continued.run_of(tmp_path / "models", tmp_path / "new")


def test_models_of_two_runs_are_refused_though_their_watermark_is_one(shop, tmp_path):
    folder, _ = shop
    models = {name: tmp_path / name for name in ("id", "multimodal")}
    for name, place in models.items():
        shutil.copytree(folder / "models-0" / name, place)
    path = tmp_path / "id" / "Format-State" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["training"]["examples"] = "of another run"
    path.write_text(json.dumps(manifest))
    made_by = run_file.read(folder / "models-0")
    with pytest.raises(ValueError, match=r"must be of one run\. Received: id through .* of examples of another run"):
        continued.parent(made_by, models, made_by)


@pytest.mark.parametrize(
    "assignment, words",
    [
        ("ctr.units=[32]", r"ctr\.units: \[\d+, \d+\], not \[32\]"),
        ("data.max_behaviors=9", "data.max_behaviors: 8, not 9"),
        ("make.epochs=2", "make.epochs: 1, not 2"),
        ("methods.simtier.num_tiers=5", "methods.simtier.settings"),
    ],
)
def test_another_declaration_is_refused_by_its_names(shop, assignment, words):
    folder, _ = shop
    made_by = run_file.read(folder / "models-0")
    models = {name: folder / "models-0" / name for name in ("id", "multimodal")}
    with pytest.raises(ValueError, match=f"declared otherwise.*these may: ctr.batch_size.*{words}"):
        continued.parent(override(made_by, [assignment]), models, made_by)
    assert continued.parent(override(made_by, ["ctr.learning_rate=0.1", "data.eval_fraction=0.3"]), models, made_by)
