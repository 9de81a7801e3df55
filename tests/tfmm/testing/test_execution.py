"""What the harness changes of Keras for a while is as before afterwards."""

import keras
import numpy as np
import pytest

from tfmm.testing import execution


def test_policy_is_restored_after_an_error():
    before = keras.config.dtype_policy()
    with pytest.raises(RuntimeError, match="inside"), execution.dtype_policy("mixed_float16"):
        assert keras.config.dtype_policy().name == "mixed_float16"
        raise RuntimeError("inside")
    assert keras.config.dtype_policy() == before


def test_weights_of_any_layer_are_listed_inside_the_block_alone():
    add_weight = keras.layers.Layer.add_weight
    with pytest.raises(RuntimeError, match="inside"), execution.weights_made() as made:
        keras.layers.Dense(1, name="inner").build((None, 2))
        raise RuntimeError("inside")
    assert [path.split("/")[-1] for path in made] == ["kernel", "bias"]
    assert keras.layers.Layer.add_weight is add_weight


def test_path_through_a_structure_is_the_name_of_a_tensor():
    outputs = {"heads": [1, (2, None)], "sum": 3}
    assert execution.flatten(outputs) == {"heads.0": 1, "heads.1.0": 2, "sum": 3}
    assert execution.flatten(4) == {"output": 4}


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="SavedModels are TensorFlow's")
def test_saved_model_gives_its_outputs_by_name(tmp_path):
    x, y = keras.Input((2,), name="x"), keras.Input((2,), name="y")
    keras.Model({"x": x, "y": y}, {"sum": x + y, "difference": x - y}).export(tmp_path, verbose=False)
    inputs = {"y": np.float32([[1, 2]]), "x": np.float32([[5, 7]])}
    received = execution.run_saved_model(tmp_path, inputs)
    assert sorted(received) == ["difference", "sum"]
    np.testing.assert_array_equal(received["sum"], [[6, 9]])
    np.testing.assert_array_equal(received["difference"], [[4, 5]])
