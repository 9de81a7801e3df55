"""Two tiny encoders for the streaming job."""

import pytest
import tensorflow as tf

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
