"""Zero by chance is told from zero always, and the layer is as before afterwards."""

import itertools

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


@pytest.mark.parametrize("refused_call", [None, differentiation._TRIES])
def test_refused_or_endless_gradients_of_flipped_values_count_for_nothing(refused_call):
    class Root(keras.layers.Layer):
        """weight * sqrt(values), and `unused` times NaN where values are negative."""

        def build(self, values_shape):
            self.weight = self.add_weight(name="weight", shape=(), initializer="ones")
            self.unused = self.add_weight(name="unused", shape=(), initializer="ones")
            self.calls = itertools.count()
            self.built = True

        def call(self, values):
            if next(self.calls) == refused_call:
                raise ValueError("`values` must not be negative.")
            return self.weight * keras.ops.sqrt(values) + self.unused * keras.ops.where(values < 0, np.nan, 0.0)

    layer, inputs = Root(), {"values": np.float32([[1], [4]])}
    outputs = execution.to_arrays(execution.call(layer, inputs))
    found, finite = differentiation.reach_of_gradients(layer, inputs, ["values"], outputs, np.ones(3, bool))
    np.testing.assert_array_equal(found, [True, True, False])
    assert finite.all()


def test_weights_stay():
    layer = Gated()
    outputs = execution.to_arrays(execution.call(layer, INPUTS))
    before = layer.get_weights()
    differentiation.reach_of_gradients(layer, INPUTS, ["values"], outputs, np.ones(4, bool))
    for received, expected in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(received, expected)
