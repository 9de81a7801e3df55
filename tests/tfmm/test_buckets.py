"""A data folder on a file system that is not this machine's: TensorFlow's `ram://`."""

import io
import pathlib
import uuid

import apache_beam as beam
import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from apache_beam.options.pipeline_options import PipelineOptions
from click.testing import CliRunner

from tfmm import buckets, cli, preprocessing
from tfmm.config import DataConfig
from tfmm.data import beam as beam_lib
from tfmm.data import examples, join, layout, parts, schema, shards
from tfmm.features import FeatureSet

CONFIG = DataConfig(max_behaviors=5)
FEATURES = FeatureSet().resolved(max_behaviors=5, min_count=2)


def upload(folder, url):
    for path in sorted(path for path in pathlib.Path(folder).rglob("*") if path.is_file()):
        target = f"{url}/{path.relative_to(folder).as_posix()}"
        tf.io.gfile.makedirs(target.rpartition("/")[0])
        with tf.io.gfile.GFile(target, "wb") as file:
            file.write(path.read_bytes())


@pytest.fixture
def bucket():
    return f"ram://{uuid.uuid4().hex}"


def test_tables_of_a_bucket_are_those_of_a_folder_with_keys_and_hidden_files(small_marketplace, tmp_path, bucket):
    table = schema.read_table(small_marketplace, "behaviors")
    table = table.select([name for name in table.column_names if name != "action"])
    for name in ("action=click/a.parquet", "action=purchase/b.parquet", "_old/c.parquet", ".d.parquet"):
        (tmp_path / "behaviors" / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.slice(0, 50), tmp_path / "behaviors" / name)
    pq.write_table(schema.read_table(small_marketplace, "items"), tmp_path / "items.parquet")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "searches").mkdir()
    for name in ("behaviors/_SUCCESS", "behaviors/more.csv", "searches/000000_0", "_old/q.parquet", "._items.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    upload(tmp_path, bucket)
    assert layout.unknown_files(bucket, schema.TABLES) == layout.unknown_files(tmp_path, schema.TABLES) != []
    for name, reasons in (("behaviors", {layout.OTHER_SUFFIX, layout.HIDDEN}), ("items", set()),
                          ("searches", {layout.OTHER_SUFFIX, layout.NO_PART})):  # fmt: skip
        unread = layout.unread_files(bucket, name)
        assert {one.reason for one in unread} == reasons
        assert sorted(unread, key=str) == sorted(layout.unread_files(tmp_path, name), key=str)
    for name in ("behaviors", "items", "searches"):
        mine, theirs = (schema.table_parts(place, name) for place in (tmp_path, bucket))
        assert [part.path.removeprefix(f"{bucket}/") for part in theirs] == [
            str(pathlib.Path(part.path).relative_to(tmp_path)) for part in mine
        ]
        assert [part.keys for part in mine] == [part.keys for part in theirs]
    assert schema.read_table(bucket, "behaviors") == schema.read_table(tmp_path, "behaviors")
    assert not schema.has_table(bucket, "searches")


def test_table_that_is_there_twice_or_of_a_table_format_is_refused(small_marketplace, tmp_path, bucket):
    pq.write_table(schema.read_table(small_marketplace, "items"), tmp_path / "items.parquet")
    (tmp_path / "items").mkdir()
    pq.write_table(schema.read_table(small_marketplace, "items"), tmp_path / "items" / "a.parquet")
    upload(tmp_path, bucket)
    with pytest.raises(layout.LayoutError, match=f"{bucket} must hold table 'items' once"):
        schema.table_parts(bucket, "items")
    tf.io.gfile.makedirs(f"{bucket}/impressions/_delta_log")
    with tf.io.gfile.GFile(f"{bucket}/impressions/_delta_log/0.json", "w") as file:
        file.write("{}")
    with pytest.raises(layout.LayoutError, match="a table of Delta Lake"):
        schema.table_parts(bucket, "impressions")


def test_examples_of_a_bucket_are_those_of_a_folder_by_beam_and_without(small_marketplace, tmp_path, bucket):
    upload(small_marketplace, bucket)
    spec = preprocessing.raw_spec(FEATURES)
    found = {}
    for name, data in (("folder", small_marketplace), ("bucket", bucket)):
        with beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner"])) as root:
            beam_lib.write(root, data, CONFIG, FEATURES, tmp_path / "beam" / name, prefix="{split}")
        join.write_examples(data, CONFIG, FEATURES, tmp_path / "join" / name)
        rows = examples.read_columns(str(tmp_path / "beam" / name / "train-*.tfrecord.gz"), spec)
        order = np.lexsort((rows["item_id"], rows["user_id"], rows["timestamp"]))
        found[name] = [{key: values[order] for key, values in rows.items()}]
        found[name].append(shards.read_columns(str(tmp_path / "join" / name / "train-*")))
    for mine, theirs in zip(found["folder"], found["bucket"]):
        assert mine.keys() == theirs.keys() and len(mine["label"]) > 100
        for column in mine:
            np.testing.assert_array_equal(mine[column], theirs[column])


def test_file_is_read_from_any_place(bucket):
    tf.io.gfile.makedirs(bucket)
    with tf.io.gfile.GFile(f"{bucket}/a", "wb") as file:
        file.write(bytes(range(100)))
    with buckets.opened(f"{bucket}/a") as file:
        assert file.read(3) == b"\0\1\2"
        assert file.seek(-2, io.SEEK_END) == 98 and file.read() == b"bc" and file.read() == b""
        assert file.seek(10) == 10 and file.seek(5, io.SEEK_CUR) == 15 and file.read(1) == b"\x0f"


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (tf.errors.PermissionDeniedError, PermissionError, "may not be used with this account. Received: no access.$"),
        (tf.errors.UnauthenticatedError, PermissionError, "may not be used with this account"),
        (tf.errors.NotFoundError, FileNotFoundError, "is not there"),
        (tf.errors.UnavailableError, OSError, "cannot be used. Received: no access"),
    ],
)
def test_bucket_that_denies_is_one_line(error, kind, said):
    with pytest.raises(kind, match=f"^gs://bucket/tables {said}"), buckets.told("gs://bucket/tables"):
        raise error(None, None, "no access\n\tat a line of C++")


def test_bucket_that_denies_is_told_and_not_called_a_damaged_file(monkeypatch, bucket):
    def deny(*_):
        raise tf.errors.PermissionDeniedError(None, None, "403")

    monkeypatch.setattr(tf.io.gfile, "GFile", deny)
    tf.io.gfile.makedirs(bucket)
    monkeypatch.setattr(tf.io.gfile, "stat", deny)
    with pytest.raises(PermissionError, match=f"{bucket}/items.parquet may not be used"):
        parts.Part(f"{bucket}/items.parquet").read(["item_id"])


def test_commands_read_tables_of_a_bucket(small_marketplace, tmp_path, monkeypatch, bucket):
    upload(small_marketplace, bucket)
    monkeypatch.chdir(tmp_path)
    said = [CliRunner().invoke(cli.main, ["data", "check", str(place)]) for place in (small_marketplace, bucket)]
    assert [one.exit_code for one in said] == [0, 0], said[1].output
    assert said[0].output.replace(str(small_marketplace), bucket) == said[1].output
    nothing = CliRunner().invoke(cli.main, ["data", "check", "ram://nothing"])
    assert nothing.exit_code == 2 and "ram://nothing is no folder with anything in it" in nothing.output


@pytest.mark.parametrize("option", ["--output", "--snapshot", "--encoders"])
def test_what_must_be_local_says_so_before_any_work(small_marketplace, tmp_path, option):
    given = {"--data": str(small_marketplace), "--encoders": str(tmp_path), "--index": "i.sqlite", "--snapshot": "s"}
    command = ["embed"]
    if option == "--output":
        given, command = {"--data": str(small_marketplace), "--output": "o"}, ["pretrain"]
    given[option] = "gs://bucket/folder"
    result = CliRunner().invoke(cli.main, [*command, *(word for pair in given.items() for word in pair)])
    said = " ".join(result.output.split())
    assert result.exit_code == 2
    assert f"What `{option}` names must lie in a folder of this machine" in said
    assert "Received: gs://bucket/folder. Mount the bucket as a folder" in said
