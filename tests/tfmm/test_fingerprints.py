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


def test_integers_are_themselves_and_none_is_missing():
    assert fingerprints.fingerprint([3, None, -4]).tolist() == [3, 0, -4]
    assert fingerprints.fingerprint(np.zeros((0,), object)).shape == (0,)
