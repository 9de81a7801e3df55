"""A real Flink cluster of several processes on this machine gives the examples that one process gives."""

import collections
import glob
import threading
import time

import pyarrow.parquet as pq
import pytest
import tensorflow as tf

pytest.importorskip("apache_beam", reason="Beam is not installed")

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from serving.deploy import started
from serving.deploy.flink import cluster as flink
from tfmm.config import DataConfig, MarketplaceConfig
from tfmm.data import beam as beam_lib
from tfmm.data import join, reading
from tfmm.features import FeatureSet
from tfmm.marketplace import generator

MARKETPLACE = MarketplaceConfig(
    num_items=200, new_items_per_day=10, num_users=200, impressions_per_user_day=4, num_searches=100, image_size=16
)
CONFIG = DataConfig(max_behaviors=8)
FEATURES = FeatureSet().resolved(max_behaviors=8, min_count=1)
WITHIN_S = 1500
SLOTS = (1, 2)
ROWS_PER_PARTITION, ROWS_PER_GROUP = 1500, 1000  # so that there are several of both


def generate(data_dir, output_dir, options):
    with beam.Pipeline(options=PipelineOptions(options)) as root:
        beam_lib.write(root, data_dir, CONFIG, FEATURES, output_dir, prefix="{split}")


def examples(folder):
    """The examples of a folder by split, as a set that counts; the order of their columns in the record is free."""
    found = {}
    for split in ("train", "eval"):
        records = tf.data.TFRecordDataset(sorted(glob.glob(f"{folder}/{split}-*.gz")), compression_type="GZIP")
        parsed = (tf.train.Example.FromString(record) for record in records.as_numpy_iterator())
        found[split] = collections.Counter(one.SerializeToString(deterministic=True) for one in parsed)
    return found


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Tables of several row groups, which are joined in several shards."""
    folder = tmp_path_factory.mktemp("data")
    generator.generate(MARKETPLACE, folder)
    for name in reading.LOGS[:2]:
        pq.write_table(pq.read_table(folder / f"{name}.parquet"), folder / f"{name}.parquet", ROWS_PER_GROUP)
        assert pq.ParquetFile(folder / f"{name}.parquet").num_row_groups > 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(join, "ROWS_PER_PARTITION", ROWS_PER_PARTITION)
        yield folder


@pytest.fixture(scope="module")
def wanted(data_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one_process")
    generate(data_dir, folder, ["--runner=FnApiRunner"])
    return examples(folder)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    try:
        flink.class_path(flink.FOLDER / "lib")
    except RuntimeError as error:
        pytest.skip(str(error))
    one = flink.Cluster(tmp_path_factory.mktemp("flink"))
    one.up(SLOTS, jars=flink.FOLDER / "lib")
    yield one
    pids = one.running.values()
    one.down()
    assert pids and not any(map(started.started_at, pids))


@pytest.mark.timeout(WITHIN_S + 100)
def test_flink_gives_the_examples_that_one_process_gives(cluster, data_dir, wanted, tmp_path):
    generate(data_dir, tmp_path, cluster.beam_options)
    assert sum(wanted["train"].values()) > 2 * ROWS_PER_PARTITION and sum(wanted["eval"].values()) > 100
    assert examples(tmp_path) == wanted


@pytest.mark.slow
@pytest.mark.timeout(WITHIN_S + 100)
def test_killed_task_manager_in_the_middle_changes_no_example(cluster, data_dir, wanted, tmp_path):
    failed = []

    def run():
        try:
            generate(data_dir, tmp_path, cluster.beam_options)
        except Exception as error:
            failed.append(error)

    before = {job["jid"] for job in cluster.ask("jobs/overview")["jobs"]}
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    job = await_middle(cluster, thread, before)
    cluster.kill(flink.task_manager(len(SLOTS)))
    time.sleep(4)
    cluster.start_task_manager(len(SLOTS), SLOTS[-1])
    thread.join(WITHIN_S)
    assert not thread.is_alive() and not failed, failed
    assert restarts(cluster, job) > 0
    assert examples(tmp_path) == wanted


def await_middle(cluster, thread, before):
    """Waits until a job that was not there before has finished some of its tasks; returns its id."""
    while thread.is_alive():
        for job in cluster.ask("jobs/overview")["jobs"]:
            if job["jid"] not in before and job["tasks"]["finished"] > 0:
                assert job["tasks"]["finished"] < job["tasks"]["total"] and job["state"] == "RUNNING"
                return job["jid"]
        time.sleep(0.2)
    raise AssertionError("the job ended before its middle was seen")


def restarts(cluster, job):
    """How many of a job's tasks were tried again."""
    vertices = cluster.ask(f"jobs/{job}")["vertices"]
    tasks = [task for one in vertices for task in cluster.ask(f"jobs/{job}/vertices/{one['id']}")["subtasks"]]
    return sum(task["attempt"] for task in tasks)
