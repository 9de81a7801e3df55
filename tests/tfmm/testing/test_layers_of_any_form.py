"""Layers of Keras, layers without a shape of their own, and outputs of any structure pass; faults in them are found."""

import keras
import numpy as np
import pytest
from keras import ops

from tfmm.losses import InfoNCE
from tfmm.testing import LayerConformanceError, check_layer

VALUES = np.float32([[1, 2], [3, 4], [5, 6]])
VECTORS = np.linspace(-1, 1, 24, dtype=np.float32).reshape(3, 4, 2)


@keras.saving.register_keras_serializable(package="tests")
class Scaled(keras.layers.Layer):
    """A layer that leaves its shape to Keras: a weight per column times the values; without a mask."""

    def build(self, values_shape):
        self.weight = self.add_weight(name="weight", shape=(values_shape[-1],), initializer="ones")
        self.built = True

    def call(self, values):
        return self.weight * values


def run(call, differentiable=("values",), **methods):
    """Checks a variant of `Scaled`: with other methods, and in a class of its own, as classes are registered."""
    layer_class = type("Variant", (Scaled,), {"call": call, **methods})
    keras.saving.register_keras_serializable(package="tests")(layer_class)
    check_layer(layer_class, {}, {"values": VALUES}, differentiable=differentiable)


@pytest.mark.parametrize(
    "layer_class, arguments, inputs",
    [
        (keras.layers.Dense, {"units": 3, "activation": "swish"}, {"inputs": VALUES}),
        (keras.layers.Dense, {"units": 1, "activation": "relu", "kernel_initializer": "ones"}, {"inputs": -VALUES}),
        (keras.layers.PReLU, {"shared_axes": (1,)}, {"inputs": VECTORS**2}),
        (keras.layers.Bidirectional, {"layer": keras.layers.GRU(3)}, {"sequences": VECTORS}),
        (keras.layers.Embedding, {"input_dim": 7, "output_dim": 3}, {"inputs": np.int32([[1, 2], [3, 4]])}),
        (keras.layers.Conv1D, {"filters": 2, "kernel_size": 2, "padding": "SAME"}, {"inputs": VECTORS}),
        (
            keras.layers.MultiHeadAttention,
            {"num_heads": 2, "key_dim": 3},
            {"query": VECTORS[:, :3], "value": VECTORS**2, "value_mask": np.array([[True, True, False, False]] * 3)},
        ),
    ],
)
def test_layers_of_keras_pass(layer_class, arguments, inputs):
    floats = [name for name, x in inputs.items() if x.dtype == np.float32]
    check_layer(layer_class, arguments, inputs, differentiable=floats, zero_when_masked=False)


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda self, values: (self.weight * values, values[:, :1]), id="pair"),
        pytest.param(lambda self, values: [self.weight * values, ops.argmax(values, axis=1)], id="list"),
        pytest.param(lambda self, values: {"heads": [self.weight * values, (values,)], "same": values}, id="nested"),
        pytest.param(lambda self, values: {"scaled": values, "norm": ops.sum(self.weight**2)}, id="scalar"),
    ],
)
def test_outputs_of_any_structure_pass(call):
    run(call)


def test_fault_in_a_nested_output_is_named():
    with pytest.raises(LayerConformanceError, match=r"rest of the batch \(`heads.1` differs\)"):
        run(lambda self, values: {"heads": [self.weight * values, values - ops.mean(values)]})


def test_whole_numbers_alone_need_no_gradient():
    run(lambda self, values: ops.argmax(self.weight * values, axis=1), differentiable=())


def test_layer_without_weights_need_not_take_trainable():
    check_layer(keras.layers.Discretization, {"bin_boundaries": [0.0, 3.5]}, {"inputs": VALUES})


def test_number_for_the_whole_batch_may_need_more_than_a_row():
    inputs = {"queries": VECTORS[:, 0], "positives": VECTORS[:, 1]}
    check_layer(InfoNCE, {"temperature": 0.1, "in_batch_negatives": True}, inputs, differentiable=list(inputs))


def test_lists_pass():
    check_layer(Scaled, {}, {"values": [[1.0, 2.0], [3.0, 4.0]]}, differentiable=["values"])


def test_weight_that_starts_at_zero_does_not_hide_the_gradient_behind_it():
    def build(self, values_shape):
        Scaled.build(self, values_shape)
        self.gate = self.add_weight(name="gate", shape=(), initializer="zeros")

    run(lambda self, values: self.gate * self.weight * values, build=build)


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="Keras on Torch calls with zeros where symbols fail")
def test_call_that_reads_values_is_found_where_keras_infers_the_shape():
    def branch(self, values):
        return self.weight * values * (2.0 if ops.min(values) > 0.0 else 1.0)

    with pytest.raises(LayerConformanceError, match=r"a symbolic call must work: no Python branch .*; it raised"):
        run(branch)
