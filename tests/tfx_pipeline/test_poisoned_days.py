"""A poisoned second day of a run that goes on stops before it is trained on; the model in service stays."""

import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("tfx", reason="TFX is not installed")

from tfmm import artifacts, config, presets
from tfmm.assignments import override
from tfmm.marketplace import day_by_day, generator

MARKETPLACE = config.MarketplaceConfig(
    num_items=120, new_items_per_day=5, num_users=100, num_days=3, num_searches=400, image_size=16
)
# Models of seconds, which are worth nothing: the gate has no say here. A third of the table may be lost.
RUN = override(presets.small(), [
    "data.max_behaviors=8", "data.max_bad_fraction=0.35", "image.epochs=1", "text.epochs=1", "make.epochs=1",
    "ctr.segments=2", "export.index_capacity=512", "export.jit_compile=false", "gate.min_auc=0.0", "gate.min_gauc=0.0",
    "gate.max_logloss=100.0", "gate.min_gain_over_id=-1.0", "gate.max_loss_to_service=1.0",
    "gate.max_hidden_bias=99.0", "gate.max_logloss_rise=99.0", "gate.max_calibration_rise=99.0",
    "days.continue_from=latest",
])  # fmt: skip


def run(root, folder):
    settings = folder / "settings.json"
    settings.write_text(json.dumps(config.to_dict(RUN)))
    variables = {"TFMM_RUN": settings, "TFMM_WORKDIR": folder / "work", "TFMM_DATA": folder / "tables"}
    own = {**{name: str(value) for name, value in variables.items()}, "PYTHONPATH": str(root)}
    return subprocess.run(
        [sys.executable, "-m", "tfx_pipeline.local_runner"], cwd=root, text=True, capture_output=True, check=False,
        env={**os.environ, **own, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip


def unlist(folder, day, share):
    """Has a share of a day's impressions be of items that no catalog knows."""
    path = folder / "impressions" / f"day-{day}.parquet"
    rows = pq.read_table(path)
    ids = rows["item_id"].to_pylist()
    ids = [2**40 + place if place < share * len(ids) else own for place, own in enumerate(ids)]
    pq.write_table(rows.set_column(rows.column_names.index("item_id"), "item_id", pa.array(ids, pa.int64())), path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_second_day_that_is_nearly_lost_stops_at_the_examples(root, tmp_path):
    generator.generate(MARKETPLACE, tmp_path / "marketplace")
    tables, serving = tmp_path / "tables", tmp_path / "work" / "serving" / "tfmm"
    day_by_day.append_day(tmp_path / "marketplace", tables, 0)
    day_by_day.append_day(tmp_path / "marketplace", tables, 1)
    unlist(tables, 0, 0.02)
    done = run(root, tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "of impressions: `item_id` must be in the items table (item_id_must_be_in_the_items_table)" in done.stdout
    before = {version.name: artifacts.digest(version) for version in serving.iterdir()}
    index = artifacts.digest(tmp_path / "work" / "index")
    day_by_day.append_day(tmp_path / "marketplace", tables, 2)
    unlist(tables, 2, 0.9)
    done = run(root, tmp_path)
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr
    assert "(ExampleGenerator) failed" in done.stderr
    assert "of impressions: `item_id` must be in the items table" in done.stderr
    assert {version.name: artifacts.digest(version) for version in serving.iterdir()} == before
    assert artifacts.digest(tmp_path / "work" / "index") == index
