"""The harness finds each fault that it promises to find."""

import keras
import numpy as np
import pytest
from keras import ops

from tfmm.testing import LayerConformanceError, check_layer

INPUTS = {
    "values": np.float32([[1, 2], [3, 4], [5, 6]]),
    "values_mask": np.array([[True, False], [True, True], [False, True]]),
}


@keras.saving.register_keras_serializable(package="tests")
class MaskedSum(keras.layers.Layer):
    """A layer that breaks no rule: factor times the sum of what is unmasked, times a learned weight."""

    def __init__(self, factor=1.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor
        self.supports_masking = True

    def build(self, values_shape):
        self.weight = self.add_weight(name="weight", shape=(), initializer="ones")
        self.built = True

    def call(self, values, values_mask=None):
        values = ops.where(values_mask, values, ops.zeros_like(values))
        return self.weight * self.factor * ops.sum(values, axis=1, keepdims=True)

    def compute_output_shape(self, values_shape):
        return (values_shape[0], 1)

    def compute_mask(self, inputs, previous_mask):
        return None

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


def run(layer_class, **options):
    check_layer(layer_class, {"factor": 2.0}, INPUTS, **{"differentiable": ["values"], **options})


def test_sound_layer_passes():
    run(MaskedSum)


def broken(name, **methods):
    return keras.saving.register_keras_serializable(package="tests")(type(name, (MaskedSum,), methods))


def _without_factor(self):
    return keras.layers.Layer.get_config(self)


def _batch_mean(self, values, values_mask=None):
    return MaskedSum.call(self, values, values_mask) - ops.mean(values)


def _mask_ignored(self, values, values_mask=None):
    return self.weight * self.factor * ops.sum(values, axis=1, keepdims=True)


def _divided(self, values, values_mask=None):
    length = ops.sum(ops.cast(values_mask, values.dtype), axis=1, keepdims=True)
    return MaskedSum.call(self, values, values_mask) / length


def _one_when_masked(self, values, values_mask=None):
    return MaskedSum.call(self, values, values_mask) + 1.0


def _stopped(self, values, values_mask=None):
    return MaskedSum.call(self, ops.stop_gradient(values), values_mask)


def _overflowing(self, values, values_mask=None):
    return MaskedSum.call(self, values, values_mask) * 1e4


def _wide_shape(self, values_shape):
    return (values_shape[0], 3)


def test_unregistered_class_is_found():
    unregistered = type("Unregistered", (MaskedSum,), {})
    with pytest.raises(LayerConformanceError, match="must be registered"):
        run(unregistered)


@pytest.mark.parametrize(
    "name, method, function, rule",
    [
        ("NoConfig", "get_config", _without_factor, "get_config must hold"),
        ("WideShape", "compute_output_shape", _wide_shape, "compute_output_spec must give"),
        ("BatchMean", "call", _batch_mean, "must not depend on the rest of the batch"),
        ("MaskIgnored", "call", _mask_ignored, "what `values_mask` hides must change nothing"),
        ("Divided", "call", _divided, "a fully hidden `values` must give no NaN"),
        ("OneWhenMasked", "call", _one_when_masked, "a fully hidden `values` must give zeros"),
        ("Stopped", "call", _stopped, "a gradient must reach `values`"),
        ("Overflowing", "call", _overflowing, "must be finite under mixed_float16"),
    ],
)
def test_broken_layer_is_found(name, method, function, rule):
    with pytest.raises(LayerConformanceError, match=rule):
        run(broken(name, **{method: function}))


def test_gradient_that_should_not_be_is_found():
    with pytest.raises(LayerConformanceError, match="a gradient must not reach `values`"):
        run(MaskedSum, differentiable=[])


def test_rounding_under_a_mixed_policy_is_found():
    inputs = {**INPUTS, "values": INPUTS["values"] + np.float32(0.001)}
    with pytest.raises(LayerConformanceError, match="mixed_bfloat16 must change nothing"):
        check_layer(MaskedSum, {"factor": 2.0}, inputs, differentiable=["values"], same_under_policies=True)


def test_mask_that_hides_nothing_is_refused():
    inputs = {**INPUTS, "values_mask": np.ones((3, 2), bool)}
    with pytest.raises(LayerConformanceError, match="must hide something"):
        check_layer(MaskedSum, {"factor": 2.0}, inputs, differentiable=["values"])
