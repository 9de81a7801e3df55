import numpy as np
import pytest
import tensorflow as tf

from tfmm import features


def test_padding_unknown_and_known_ids_get_their_indices():
    lookup, size = features.lookup_from_ids(np.array([30, 10]))
    raw = {"item_id": tf.constant([30, 10, 99, 0], tf.int64)}
    index = features.preprocess(raw, {"item_id": lookup})["item_index"]
    assert index.numpy().tolist() == [2, 3, features.OUT_OF_VOCABULARY, features.PADDING]
    assert size == 4


def test_target_and_behaviors_share_the_item_vocabulary():
    lookup, _ = features.lookup_from_ids(np.array([5]))
    raw = {"item_id": tf.constant([5], tf.int64), "behavior_item_ids": tf.constant([[5, 0]], tf.int64)}
    out = features.preprocess(raw, {"item_id": lookup})
    assert out["behavior_item_index"].numpy().tolist() == [[out["item_index"].numpy()[0], 0]]


def test_vocabulary_file_reads_as_its_ids(tmp_path):
    path = tmp_path / "item_id"
    path.write_text("-7\n12\n")
    lookup, size = features.vocabulary_lookup(str(path))
    assert lookup(tf.constant([12, -7, 1], tf.int64)).numpy().tolist() == [1, 0, -1]
    assert size == 4


def test_transformed_spec_has_raw_columns_and_indices():
    spec = features.transformed_spec(5)
    assert spec["behavior_item_index"].shape == [5]
    assert set(features.raw_spec(5)) < set(spec)
    assert spec["user_index"].shape == []


@pytest.mark.parametrize("ids", [["a", "bc", None, ""], [b"a", b"bc", b"", b""]])
def test_strings_fingerprint_alike_in_numpy_and_in_a_graph(ids):
    texts = tf.constant(["" if i is None else i for i in ids])
    graph = tf.function(features.fingerprint_strings)(texts).numpy()
    assert features.fingerprint(ids).tolist() == graph.tolist()
    assert graph[2:].tolist() == [0, 0]
    assert (graph[:2] != 0).all()


@pytest.mark.parametrize("kind", [str, str.encode])
def test_every_character_of_an_id_counts(kind):
    ids = [kind(text) for text in ("\0", "a", "a\0", "a\0\0", "\0a")]
    graph = tf.function(features.fingerprint_strings)(tf.constant(ids)).numpy()
    assert features.fingerprint(ids).tolist() == graph.tolist()
    assert len({0, *graph.tolist()}) == 6


def test_integers_are_themselves_and_none_is_missing():
    assert features.fingerprint([3, None, -4]).tolist() == [3, 0, -4]
    assert features.fingerprint(np.zeros((0,), object)).shape == (0,)
