"""Tables with nothing to make a vocabulary of, through the whole DAG: the road runs without TFX and with it."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("tfx", reason="TFX is not installed")

from tfmm import config as config_lib
from tfmm.data import schema
from tfmm.features import PADDING
from tfmm.marketplace import generator
from tfmm.stages import folders
from tfx_pipeline import environments

SMALL = config_lib.MarketplaceConfig(
    num_items=120, new_items_per_day=10, num_users=150, impressions_per_user_day=8, num_searches=400, image_size=16
)
SETTINGS = [
    "data.max_behaviors=8", "text.epochs=1", "image.epochs=1", "make.epochs=1", "gate.min_auc=0.0",
    "gate.min_gauc=0.0", "gate.min_gain_over_id=-1.0", "gate.max_logloss_rise=9", "gate.max_calibration_rise=9",
    "gate.max_hidden_bias=9.0",
]  # fmt: skip


def write_tables(folder, *, users_seen_once):
    """A small marketplace without `category`; and, where asked, with another user in every impression."""
    generator.generate(SMALL, folder)
    items = folder / "items.parquet"
    pq.write_table(pq.read_table(items).drop(["category"]), items)
    if users_seen_once:
        table = pq.read_table(folder / "impressions.parquet")
        place = table.column_names.index("user_id")
        users = pa.array(np.arange(1, len(table) + 1) + 10**6)
        pq.write_table(table.set_column(place, "user_id", users), folder / "impressions.parquet")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("users_seen_once", [False, True])
def test_catalog_without_categories_and_users_seen_once_run_through_the_dag(root, tmp_path, users_seen_once):
    write_tables(tmp_path / "tables", users_seen_once=users_seen_once)
    done = subprocess.run(
        [sys.executable, "-m", "tfmm.cli", "quickstart", "--data", "tables", "--workdir", "work", "--preset", "small",
         *(word for setting in SETTINGS for word in ("--set", setting))],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(root), "TF_CPP_MIN_LOG_LEVEL": "2"}, text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == int(users_seen_once), done.stdout[-3000:] + done.stderr[-3000:]
    outputs = environments.latest_outputs(tmp_path / "work" / "metadata.sqlite")
    assets = pathlib.Path(outputs["Transform.transform_graph"]) / "transform_fn" / "assets"
    words = {path.name: path.read_text().split() for path in assets.iterdir()}
    assert words["category"] == [str(PADDING)]  # an empty vocabulary is a vocabulary
    users = schema.read_table(tmp_path / "tables", "impressions")["user_id"].to_pylist()
    assert set(words["user_id"]).isdisjoint(map(str, users)) == users_seen_once  # Transform fills it with a -1
    evaluation = pathlib.Path(outputs["ModelGate.evaluation"])
    report, verdict = (json.loads((evaluation / name).read_text()) for name in (folders.REPORT, folders.VERDICT))
    assert all(0.0 < report["models"][name]["auc"] < 1.0 for name in ("id", "multimodal"))
    assert verdict["passed"] != users_seen_once  # no user has both a click and a non-click, and that is the one reason
    assert all(reason.startswith("GAUC") and "could not be measured" in reason for reason in verdict["reasons"])
