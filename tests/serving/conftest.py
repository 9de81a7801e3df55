"""Small SavedModels, and servers that run inside the test process."""

import asyncio
import contextlib
import json
import pathlib
import shutil
import subprocess
import tempfile
import threading
import time
import uuid

import confluent_kafka.admin
import httpx
import pytest
import tensorflow as tf

from serving.deploy import started
from serving.deploy.kafka import broker
from serving.model_server.config import ModelConfig
from serving.model_server.server import Options, serve
from tfmm import saved_model


@pytest.fixture(scope="session")
def make_broker(tmp_path_factory):
    """Returns a function that starts a Kafka broker of a test's own."""
    if lacking := [tool for tool in ("java", "mvn") if shutil.which(tool) is None]:
        pytest.skip(f"{' and '.join(lacking)} not on this machine")
    brokers = []

    def make():
        brokers.append(broker.Broker(tmp_path_factory.mktemp("kafka")))
        brokers[-1].up(jars=pathlib.Path(__file__).resolve().parents[2] / ".cache" / "kafka" / "lib")
        return brokers[-1]

    yield make
    for one in brokers:
        one.down()


@pytest.fixture(scope="session")
def kafka(make_broker):
    """The broker that tests share, each with topics of its own."""
    return make_broker()


@pytest.fixture
def make_topic():
    """Returns a function that makes a topic in a broker and returns its URL."""

    def make(of_broker, partitions=1, **settings):
        admin = confluent_kafka.admin.AdminClient({"bootstrap.servers": of_broker.address})
        name = f"items-{uuid.uuid4()}"
        new = confluent_kafka.admin.NewTopic(name, partitions, 1, config=settings)
        admin.create_topics([new])[name].result()
        broker.await_partitions(admin, name, partitions)
        return f"kafka://{of_broker.address}/{name}"

    return make


class HalfPlusTwo(tf.Module):
    """y = x / 2 + 2, as TensorFlow Serving's own tests use; and signatures of other dtypes and shapes."""

    def __init__(self, offset=2.0):
        super().__init__()
        self.offset = tf.Variable(float(offset))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def half_plus_two(self, x):
        return {"y": x / 2.0 + self.offset}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 2], tf.float32, name="x"),
            tf.TensorSpec([None], tf.int64, name="n"),
            tf.TensorSpec([None], tf.string, name="text"),
        ]
    )
    def several(self, x, n, text):
        return {
            "sum": tf.reduce_sum(x, 1) + tf.cast(n, tf.float32),
            "n": n,
            "text": text,
            "raw_bytes": text,
            "scalar": tf.size(n),
        }


class Counter(tf.Module):
    """A model with state: `add` counts keys in a table, `boom` fails."""

    def __init__(self):
        super().__init__()
        self.table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, default_value=0)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="keys")])
    def add(self, keys):
        self.table.insert(keys, self.table.lookup(keys) + 1)
        return {"counts": self.table.lookup(keys)}

    @tf.function(input_signature=[tf.TensorSpec([], tf.bool, name="fail")])
    def boom(self, fail):
        with tf.control_dependencies([tf.debugging.Assert(tf.logical_not(fail), ["it failed"])]):
            return {"ok": tf.identity(fail)}


class Indexed(tf.Module):
    """A model that is one item index table, with the signatures of the click model's export; the default looks up."""

    def __init__(self, table):
        super().__init__()
        self.table = table

    def signatures(self):
        def upsert(modality, item_ids, rows, scales, sequences, encoder_version):
            return {"statuses": self.table.upsert(item_ids, rows, scales, sequences, encoder_version)}

        def status():
            found = {name: value[None] for name, value in self.table.status().items()}
            return {"modality": tf.constant([self.table.modality])} | found

        def lookup(item_ids):
            return dict(zip(("rows", "scales", "mask"), self.table.lookup(item_ids)))

        ids = tf.TensorSpec([None], tf.int64)
        upserts = {
            "modality": tf.TensorSpec([], tf.string),
            "item_ids": ids,
            "rows": tf.TensorSpec([None, self.table.dim], tf.int8),
            "scales": tf.TensorSpec([None], tf.float32),
            "sequences": ids,
            "encoder_version": tf.TensorSpec([], tf.string),
        }
        return {
            "upsert_items": tf.function(upsert).get_concrete_function(**upserts),
            "index_status": tf.function(status).get_concrete_function(),
            "serving_default": tf.function(lookup).get_concrete_function(item_ids=ids),
        }


class Ranker(tf.Module):
    """Scores by item and by what more it takes, such as `price` as a number; and what is slow."""

    def save(self, path, offset=0.0, **more):
        specs = {"user_id": tf.TensorSpec([1], tf.int64), "item_id": tf.TensorSpec([None], tf.int64)}
        specs |= {name: tf.TensorSpec(shape, dtype) for name, (shape, dtype) in more.items()}

        def rank(**inputs):
            total = tf.cast(inputs["item_id"], tf.float32) + offset
            for name in more:
                value = inputs[name]
                total += tf.cast(tf.strings.length(value), tf.float32) if value.dtype == tf.string else value
            return {"score": total, "logit": -total}

        named = {name: tf.TensorSpec(spec.shape, spec.dtype, name=name) for name, spec in specs.items()}
        self.rank = tf.function(rank, autograph=False).get_concrete_function(**named)
        return saved_model.save(self, {"rank": self.rank, "slow": self.slow}, path)

    @tf.function(input_signature=[tf.TensorSpec([], tf.int32, name="steps")])
    def slow(self, steps):
        return {"y": tf.while_loop(lambda step, _: step < steps, lambda step, y: (step + 1, tf.sin(y)), (0, 1.0))[1]}


def write_half_plus_two(path, offset=2.0):
    module = HalfPlusTwo(offset)
    return saved_model.save(
        module, {"serving_default": module.half_plus_two, "several": module.several}, path
    )


def write_counter(path):
    module = Counter()
    return saved_model.save(module, {"serving_default": module.add, "boom": module.boom}, path)


@contextlib.contextmanager
def running_server(base_path, name="half_plus_two", **options):
    """Serves in a thread; yields {"grpc": address, "rest": url, "metrics": url} once every model is in service."""
    base_path.mkdir(exist_ok=True)
    models = options.pop("models", (ModelConfig(name, str(base_path), options.pop("latest", 1)),))
    own = tempfile.mkdtemp()  # another server of the folder has a file of its own
    ready_file, state = pathlib.Path(own) / "ready.json", {}
    settings = Options(
        models=models,
        port=options.pop("port", 0),
        rest_api_port=0,
        ready_file=str(ready_file),
        poll_wait_s=0.1,
        stop_grace_s=2.0,
        **options,
    )

    async def main():
        state["loop"], state["stop"] = asyncio.get_running_loop(), asyncio.Event()
        await serve(settings, state["stop"])

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    try:
        deadline = time.monotonic() + 500
        while not ready_file.exists():
            assert thread.is_alive() and time.monotonic() < deadline, "the server did not get ready"
            time.sleep(0.02)
        ports = json.loads(ready_file.read_text())
        yield {
            "grpc": f"127.0.0.1:{ports['grpc_port']}",
            "rest": f"http://127.0.0.1:{ports['rest_port']}",
            "metrics": f"http://127.0.0.1:{ports.get('metrics_port')}",
        }
    finally:
        state["loop"].call_soon_threadsafe(state["stop"].set)
        thread.join(120)
        shutil.rmtree(own)


@contextlib.contextmanager
def running_tf_serving(*models, grpc=None):
    """Serves by the tensorflow_model_server on the PATH; yields {"grpc": address, "rest": url} once it answers.

    Args:
        models: the `ModelConfig` of each.
        grpc: its port; None: a free one.
    """
    ports = [*([] if grpc is None else [grpc]), *started.free_ports(2)][:2]
    with tempfile.TemporaryDirectory() as folder:
        config, log = pathlib.Path(folder) / "models.config", pathlib.Path(folder) / "log"
        config.write_text("\n".join(["model_config_list {", *map(config_text, models), "}"]))
        command = [
            "tensorflow_model_server", f"--port={ports[0]}", f"--rest_api_port={ports[1]}",
            f"--model_config_file={config}", "--file_system_poll_wait_seconds=1",
            "--xla_cpu_compilation_enabled=true", "--allow_version_labels_for_unavailable_models=true",
            "--enable_grpc_healthcheck_service=true",
        ]  # fmt: skip
        with log.open("wb") as written:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=written, stderr=written)
        try:
            url = f"http://127.0.0.1:{ports[1]}"
            deadline = time.monotonic() + 500
            while not all(is_served(url, one.name) for one in models):
                assert process.poll() is None and time.monotonic() < deadline, log.read_text(errors="replace")[-2000:]
                time.sleep(0.1)
            yield {"grpc": f"127.0.0.1:{ports[0]}", "rest": url}
        finally:
            process.kill()
            process.wait()


def config_text(model):
    labels = [f'version_labels {{ key: "{name}" value: {number} }}' for name, number in model.labels]
    policy = f"model_version_policy {{ latest {{ num_versions: {model.latest} }} }}"
    named = f'name: "{model.name}" base_path: "{model.base_path}" model_platform: "tensorflow"'
    return "\n".join(["config {", named, policy, *labels, "}"])


def is_served(url, name):
    try:
        return httpx.get(f"{url}/v1/models/{name}/metadata", timeout=60).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="session")
def tf_serving_at():
    """`running_tf_serving`, for `make test-tf-serving`."""
    return running_tf_serving


@pytest.fixture(scope="session")
def half_plus_two_dir(tmp_path_factory):
    base = tmp_path_factory.mktemp("half_plus_two")
    write_half_plus_two(base / "123")
    return base


@pytest.fixture(scope="module")
def server(half_plus_two_dir):
    with running_server(half_plus_two_dir) as addresses:
        yield addresses


@pytest.fixture(scope="module")
def rest(server):
    with httpx.Client(base_url=server["rest"] + "/v1/models", timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def write_models():
    """The writers, for tests that make their own version folders."""
    return {"half_plus_two": write_half_plus_two, "counter": write_counter}


@pytest.fixture(scope="session")
def write_ranker():
    """Writes a version folder with `rank`: `offset` is added to each score, `more` are further inputs."""
    return lambda path, **settings: Ranker().save(path, **settings)


@pytest.fixture(scope="session")
def write_table():
    """Writes a version folder that is one item index table."""

    def write(table, folder):
        module = Indexed(table)
        saved_model.save(module, module.signatures(), folder)

    return write


@pytest.fixture(scope="session")
def serving_at():
    """`running_server`, for tests that need a server of their own."""
    return running_server
