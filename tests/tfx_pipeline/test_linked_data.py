"""A link in the data folder of a green run: what lies behind it is part of what the cache looks at."""

import json
import os
import pathlib
import shutil

import pyarrow.parquet as pq
import pytest

pytest.importorskip("tfx", reason="TFX is not installed")

from tfx import v1 as tfx
from tfx.orchestration.pipeline import RunOptions

from tfmm import config as config_lib
from tfmm.marketplace import generator
from tfmm.stages import folders
from tfx_pipeline import environments, pipeline

SMALL = config_lib.MarketplaceConfig(
    num_items=60, new_items_per_day=5, num_users=30, impressions_per_user_day=3, num_searches=40, image_size=16
)


def test_link_to_another_file_of_the_same_size_and_time_is_another_table(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("monday", "tuesday"):
        (tmp_path / name).write_bytes(name[:6].encode())
        os.utime(tmp_path / name, ns=(0, 10**18))
    found = []
    for name in ("monday", "tuesday", "monday"):
        (folder / "items.parquet").unlink(missing_ok=True)
        (folder / "items.parquet").symlink_to(tmp_path / name)
        found.append(environments.data_fingerprint(folder))
    assert found[0] == found[2] != found[1]
    shutil.copytree(folder, tmp_path / "moved", symlinks=True)  # links that lead to the same place still do
    assert environments.data_fingerprint(tmp_path / "moved") == found[0]


def checked(environment):
    """Runs the DAG up to the check of the data; returns its rows by table, and whether the cache answered."""
    reports = environment.pipeline_root / "DataCheck" / "report"
    before = set(reports.iterdir()) if reports.exists() else set()
    until = RunOptions(to_nodes=["DataCheck"])
    tfx.orchestration.LocalDagRunner().run(pipeline.create_pipeline(environment), until)
    uri = environments.latest_outputs(environment.metadata_path)["DataCheck.report"]
    report = json.loads((pathlib.Path(uri) / folders.REPORT).read_text())
    return report["counts"], set(reports.iterdir()) == before


def test_rows_that_go_behind_a_link_are_not_answered_from_the_cache(tmp_path):
    folder, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    generator.generate(SMALL, folder)
    elsewhere.mkdir()
    shutil.move(folder / "impressions.parquet", elsewhere / "part-0.parquet")
    (folder / "impressions").symlink_to(elsewhere, target_is_directory=True)
    environment = environments.Environment(tmp_path / "work", folder, config_lib.RunConfig())
    first, is_cached = checked(environment)
    assert not is_cached
    assert checked(environment) == (first, True)
    table = pq.read_table(elsewhere / "part-0.parquet")
    pq.write_table(table.slice(0, len(table) // 2), elsewhere / "part-0.parquet")
    found, is_cached = checked(environment)
    assert not is_cached
    assert found["impressions"] == first["impressions"] // 2
