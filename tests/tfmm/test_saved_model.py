"""SavedModels that TF Serving's C++ loader takes."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmm import saved_model


class Scorer(tf.Module):
    """A Keras model, a plain variable and a table behind signatures."""

    def __init__(self):
        super().__init__()
        self.models = {
            "dense": keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, bias_initializer="ones")])
        }
        self.offset = tf.Variable(1.5)
        self.counts = tf.lookup.experimental.MutableHashTable(tf.int64, tf.int64, default_value=0)
        self.counts.insert(tf.constant([7], tf.int64), tf.constant([70], tf.int64))

    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, name="x")])
    def score(self, x):
        return {"score": self.models["dense"](x) + self.offset, "double": 2.0 * x}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64, name="ids")])
    def count(self, ids):
        self.counts.insert(ids, self.counts.lookup(ids) + 1)
        return {"counts": self.counts.lookup(ids)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="texts")])
    def number(self, texts):
        return {"numbers": tf.strings.to_number(texts)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    module = Scorer()
    signatures = {"score": module.score, "count": module.count, "number": module.number}
    path = saved_model.save(module, signatures, tmp_path_factory.mktemp("model") / "1")
    return module, path


def test_scores_equal_those_of_the_module(saved):
    module, path = saved
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    with saved_model.load_session(path) as loaded:
        result = loaded("score", {"x": x})
        only = loaded("score", {"x": x}, outputs=["double"])
    np.testing.assert_allclose(result["score"], module.score(x)["score"], rtol=1e-6)
    assert list(only) == ["double"]


def test_loading_warns_of_nothing(saved, monkeypatch):
    """The loader is the one that servers in C++ have, whatever TensorFlow thinks of it."""
    from tensorflow.python.util import deprecation

    said = []
    monkeypatch.setattr(deprecation, "_PRINTED_WARNING", {}, raising=False)  # it warns once a process
    monkeypatch.setattr(deprecation.logging, "warning", lambda *arguments: said.append(arguments))
    with saved_model.load_session(saved[1]):
        assert not said


def test_error_that_quotes_bytes_that_are_no_text_is_the_graphs_own(saved):
    """TensorFlow's own binding cannot decode its message then, and raises another error."""
    with saved_model.load_session(saved[1]) as loaded:
        assert loaded("number", {"texts": [b"1.5"]})["numbers"].tolist() == [1.5]
        with pytest.raises(tf.errors.InvalidArgumentError, match="could not correctly convert string: \ufffd\ufffd"):
            loaded("number", {"texts": [b"\xcf\xff"]})


def test_a_choice_of_outputs_prepares_no_graph_of_its_own(saved, monkeypatch):
    """Preparing one takes seconds in a large model: a first request with a filter, after the warm-up, timed out."""
    _, path = saved
    with saved_model.load_session(path) as loaded:
        prepared = []
        make_callable = loaded.session.make_callable
        monkeypatch.setattr(
            loaded.session, "make_callable", lambda *args, **named: prepared.append(1) or make_callable(*args, **named)
        )
        x = np.ones((1, 3), np.float32)
        for outputs in (None, ["double"], ["score"], ["score", "double"]):
            loaded("score", {"x": x}, outputs=outputs)
        assert len(prepared) == 1
        with pytest.raises(KeyError, match="`outputs` must be among"):
            loaded("score", {"x": x}, outputs=["none"])


def test_table_contents_are_saved_and_each_load_has_its_own(saved):
    _, path = saved
    with saved_model.load_session(path) as one, saved_model.load_session(path) as other:
        assert one("count", {"ids": [7, 8]})["counts"].tolist() == [71, 1]
        assert one("count", {"ids": [7]})["counts"].tolist() == [72]
        assert other("count", {"ids": [7]})["counts"].tolist() == [71]


def test_unsaved_variable_is_found(saved, tmp_path):
    """Without the raw values, Python loads the model and the C++ loader cannot run it."""
    module, _ = saved
    del module._saved_variables
    path = str(tmp_path / "1")
    tf.saved_model.save(module, path, signatures={"score": module.score})
    assert len(saved_model.uninitialized_variables(path)) == 2


def test_unknown_names_are_refused(saved):
    _, path = saved
    with saved_model.load_session(path) as loaded:
        with pytest.raises(KeyError, match="nowhere"):
            loaded("nowhere", {})
        with pytest.raises(KeyError, match="ids"):
            loaded("count", {})


def test_keras_variables_are_each_found_once():
    module = tf.Module()
    module.layer = keras.layers.Dense(2)
    module.layer.build((None, 3))
    module.again = [{"same": module.layer}]
    assert len(saved_model.keras_variables(module)) == 2
