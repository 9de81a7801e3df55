import numpy as np
import pytest
import tensorflow as tf

from tfmm import fingerprints


@pytest.mark.parametrize("ids", [["a", "bc", None, ""], [b"a", b"bc", b"", b""]])
def test_strings_fingerprint_alike_in_numpy_and_in_a_graph(ids):
    texts = tf.constant(["" if i is None else i for i in ids])
    graph = tf.function(fingerprints.fingerprint_strings)(texts).numpy()
    assert fingerprints.fingerprint(ids).tolist() == graph.tolist()
    assert graph[2:].tolist() == [0, 0]
    assert (graph[:2] != 0).all()


@pytest.mark.parametrize("kind", [str, str.encode])
def test_every_character_of_an_id_counts(kind):
    ids = [kind(text) for text in ("\0", "a", "a\0", "a\0\0", "\0a")]
    graph = tf.function(fingerprints.fingerprint_strings)(tf.constant(ids)).numpy()
    assert fingerprints.fingerprint(ids).tolist() == graph.tolist()
    assert len({0, *graph.tolist()}) == 6


def test_integers_are_themselves_and_none_is_missing():
    assert fingerprints.fingerprint([3, None, -4]).tolist() == [3, 0, -4]
    assert fingerprints.fingerprint(np.zeros((0,), object)).shape == (0,)
