"""Zero by chance is told from zero always, and the layer is as before afterwards."""

import keras
import numpy as np
import pytest

from tfmm.testing import differentiation, execution

INPUTS = {"values": np.float32([[1, -2], [3, 4]])}


class Gated(keras.layers.Layer):
    """gate * weight * values + 0 * unused, where the gate starts at zero."""

    def build(self, values_shape):
        self.gate = self.add_weight(name="gate", shape=(), initializer="zeros")
        self.weight = self.add_weight(name="weight", shape=(2,), initializer="ones")
        self.unused = self.add_weight(name="unused", shape=(), initializer="ones")
        self.built = True

    def call(self, values):
        return self.gate * self.weight * values + 0.0 * self.unused


@pytest.mark.parametrize("wanted, reached", [([1, 1, 1, 0], [1, 1, 1, 0]), ([0, 1, 0, 0], [0, 1, 0, 0])])
def test_gradient_behind_a_gate_is_found_where_it_is_wanted(wanted, reached):
    layer = Gated()
    outputs = execution.to_arrays(execution.call(layer, INPUTS))
    found, finite = differentiation.reach_of_gradients(layer, INPUTS, ["values"], outputs, np.array(wanted, bool))
    np.testing.assert_array_equal(found, np.array(reached, bool))
    assert finite.all()


def test_weights_stay():
    layer = Gated()
    outputs = execution.to_arrays(execution.call(layer, INPUTS))
    before = layer.get_weights()
    differentiation.reach_of_gradients(layer, INPUTS, ["values"], outputs, np.ones(4, bool))
    for received, expected in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(received, expected)
