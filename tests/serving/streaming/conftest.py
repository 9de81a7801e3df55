"""Two tiny encoders for the streaming job, and the job in a thread of this process."""

import contextlib
import threading
import time

import pytest
import tensorflow as tf

from serving.streaming import pipeline
from tfmm import artifacts


class _HashEncoder(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="content")])
    def embed(self, content):
        values = [tf.strings.to_hash_bucket_strong(content, 1000, [7, n]) - 500 for n in range(6)]
        vectors = tf.math.l2_normalize(tf.cast(tf.stack(values, 1), tf.float32), axis=1)
        is_bad = tf.strings.regex_full_match(content, "bad.*")
        with tf.control_dependencies([tf.debugging.assert_none_equal(content, "poison", message="a poison")]):
            return {"vector": tf.where(is_bad[:, None], tf.zeros_like(vectors), vectors)}


@pytest.fixture(scope="session")
def encoders_dir(tmp_path_factory):
    """A folder with an encoder for images and one for text."""
    root = tmp_path_factory.mktemp("encoders")
    module = _HashEncoder()
    for modality in ("image", "text"):
        folder = root / modality
        tf.saved_model.save(module, str(folder / "encoder"), signatures={"serving_default": module.embed})
        artifacts.write_manifest(folder, "encoder", modality=modality, dim=6, encoder_version=f"{modality}-1")
    return root


def _wait_for(condition, process=None, timeout_s=300):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        assert process is None or process.poll() is None, "the job ended"
        time.sleep(0.01)


@pytest.fixture(scope="session")
def wait_for():
    """Waits until a condition holds; fails when the time is over or the process has ended."""
    return _wait_for


@pytest.fixture
def running_job(tmp_path):
    """Runs the job in a thread while the context lasts; what the job raises, the context raises."""

    @contextlib.contextmanager
    def running(events_url, encoders_dir, index_path, **options):
        ready, failures = tmp_path / "ready.json", []
        ready.unlink(missing_ok=True)

        def job():
            try:
                pipeline.run(events_url, encoders_dir, index_path, ready, **{"bundle_s": 0.5, **options})
            except Exception as error:
                failures.append(error)

        pipeline.stop_requested.clear()
        thread = threading.Thread(target=job)
        thread.start()
        try:
            _wait_for(lambda: ready.exists() or failures, timeout_s=600)
            yield thread
        finally:
            pipeline.stop_requested.set()
            thread.join(300)
            pipeline.stop_requested.clear()
        assert not thread.is_alive()
        if failures:
            raise failures[0]

    return running
