"""`tfmm train` and `tfmm embed` say what they leave out, and stop where that is more than a run may lose."""

import datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from tfmm import cli
from tfmm.index import encode, item_index, snapshot

NOW = datetime.datetime(2024, 5, 1)
VECTOR = pa.list_(pa.float32())


@pytest.fixture
def tables(tmp_path):
    """A shop whose behaviors have no time, and of whose 120 vectors 60 are all zeros."""
    folder = tmp_path / "tables"
    folder.mkdir()
    vectors = [[1.0, float(n)] if n % 2 else [0.0, 0.0] for n in range(120)]
    items = {"item_id": pa.array(range(1, 121)), "vector": pa.array(vectors, VECTOR)}
    pq.write_table(pa.table(items), folder / "items.parquet")
    times = [NOW + datetime.timedelta(minutes=n) for n in range(40)]
    shown = {"user_id": [1, 2] * 20, "item_id": list(range(1, 41)), "timestamp": times, "label": [0, 1] * 20}
    pq.write_table(pa.table(shown), folder / "impressions.parquet")
    acts = {"user_id": [1] * 300, "item_id": [3] * 300, "timestamp": pa.nulls(300, pa.timestamp("us")),
            "action": ["click"] * 300}  # fmt: skip
    pq.write_table(pa.table(acts), folder / "behaviors.parquet")
    return folder


def run(*words):
    return CliRunner().invoke(cli.main, list(map(str, words)))


def test_embed_says_what_it_rejects_and_stops_where_it_is_too_much(tables, tmp_path):
    command = ("embed", "--data", tables, "--encoders", tmp_path, "--index", tmp_path / "items.sqlite", "--snapshot",
               tmp_path / "snapshot")  # fmt: skip
    result = run(*command, "--run", "quickstart")
    assert result.exit_code == 1
    assert "No reason may leave out more than 1 % of a table's rows (`data.max_bad_fraction`)" in result.output
    assert "- 60 of 120 of items.vector: vector: is all zeros" in result.output
    with item_index.ItemIndex(tmp_path / "items.sqlite") as index:
        assert not (tmp_path / "snapshot" / "manifest.json").exists()
        assert [entry.modality for entry in index.encoders() if not entry.layout] == ["vector"]
    result = run(*command, "--run", "quickstart", "--set", "data.max_bad_fraction=0.5")
    assert result.exit_code == 0, result.output
    assert "vector: 0 items without content, 60 left out" in result.output
    assert "left out: 60 of items.vector: vector: is all zeros (vector_is_all_zeros)" in result.output
    assert f"`tfmm dead-letters {tmp_path / 'snapshot' / 'dead_letter'}` shows them." in result.output


def test_train_says_what_it_leaves_out_and_stops_before_any_training(tables, tmp_path):
    with item_index.ItemIndex(":memory:") as index:
        rows, scales = encode.quantize(np.ones([120, 2]))
        index.write("vector", "v1", list(range(1, 121)), rows, scales, [1] * 120)
        snapshot.write_snapshot(index, tmp_path / "snapshot")
    result = run("train", "--data", tables, "--snapshot", tmp_path / "snapshot", "--output", tmp_path / "models",
                 "--run", "quickstart")  # fmt: skip
    assert result.exit_code == 1
    assert "left out: 300 of behaviors: `timestamp` must not be null (timestamp_must_not_be_null)" in result.output
    assert f"`tfmm dead-letters {tmp_path / 'models' / 'examples'}` shows them." in result.output
    assert "- 300 of 300 of behaviors: `timestamp` must not be null" in result.output
    assert "vector: 120 of 120 items have a vector" in result.output
    assert not (tmp_path / "models" / "transformed").exists()
