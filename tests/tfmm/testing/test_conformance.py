"""The harness finds each fault that it promises to find, and lets sound layers pass."""

import keras
import numpy as np
import pytest
from keras import ops

from tfmm.testing import LayerConformanceError, check_layer

ON_TORCH = keras.backend.backend() == "torch"
INPUTS = {
    "values": np.float32([[1, 2], [3, 4], [5, 6]]),
    "values_mask": np.array([[True, False], [True, True], [False, True]]),
}


def registered(layer_class):
    return keras.saving.register_keras_serializable(package="tests")(layer_class)


@registered
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


def variant(layer_class, name, **methods):
    return registered(type(name, (layer_class,), methods))


def run(layer_class, **options):
    check_layer(layer_class, {"factor": 2.0}, INPUTS, **{"differentiable": ["values"], **options})


def test_sound_layer_passes():
    run(MaskedSum)


def test_sound_layer_passes_under_the_users_policy_which_stays():
    before = keras.config.dtype_policy()
    try:
        keras.config.set_dtype_policy("mixed_bfloat16")
        run(MaskedSum)
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
    finally:
        keras.config.set_dtype_policy(before)


# Faults of one method each.


def _without_factor(self):
    return keras.layers.Layer.get_config(self)


def _default_factor(self):
    return {**keras.layers.Layer.get_config(self), "factor": 1.0}


def _batch_mean(self, values, values_mask=None):
    return MaskedSum.call(self, values, values_mask) - ops.mean(values)


def _first_rows_sum(self, values, values_mask=None):
    return MaskedSum.call(self, values, values_mask) + MaskedSum.call(self, values, values_mask)[:1]


def _sum_of_rows_before(self, values, values_mask=None):
    return ops.cumsum(MaskedSum.call(self, values, values_mask), axis=0)


def _batch_of_three(self, values, values_mask=None):
    return MaskedSum.call(self, ops.reshape(values, (3, 2)), values_mask)


def _mask_ignored(self, values, values_mask=None):
    return self.weight * self.factor * ops.sum(values, axis=1, keepdims=True)


def _exponential(self, values, values_mask=None):  # a large value gives inf, and inf * 0 is NaN
    return self.weight * ops.sum(ops.exp(values) * ops.cast(values_mask, values.dtype), axis=1, keepdims=True)


def _large_values_leak(self, values, values_mask=None):
    return MaskedSum.call(self, values, values_mask) + ops.sum(ops.relu(values - 9.0), axis=1, keepdims=True)


def _negative_values_leak(self, values, values_mask=None):
    return MaskedSum.call(self, values, values_mask) + ops.sum(ops.relu(-values), axis=1, keepdims=True)


def _divided(self, values, values_mask=None):
    length = ops.sum(ops.cast(values_mask, values.dtype), axis=1, keepdims=True)
    return MaskedSum.call(self, values, values_mask) / length


def _softmax_of_minus_1e9(self, values, values_mask=None):
    weights = ops.softmax(ops.where(values_mask, self.weight * values, -1e9))
    return ops.sum(weights * ops.cast(values_mask, values.dtype) * values, axis=1, keepdims=True)


def _mean_by_where(self, values, values_mask=None):
    """NaN behind a `where` in the gradient of the weight alone."""
    count = ops.sum(ops.cast(values_mask, values.dtype), axis=1, keepdims=True)
    total = MaskedSum.call(self, ops.stop_gradient(values), values_mask)
    return ops.where(count > 0, total / count, ops.zeros_like(total)) + MaskedSum.call(self, values, values_mask)


def _mean_by_where_where_any(self, values, values_mask=None):
    """The same where all of the first row is hidden and not all of the batch."""
    count = ops.sum(ops.cast(values_mask, values.dtype), axis=1, keepdims=True)
    count = ops.where(ops.any(values_mask), count, ops.ones_like(count))
    total = MaskedSum.call(self, values, values_mask)
    return ops.where(count > 0, total / count, ops.zeros_like(total))


def _one_when_masked(self, values, values_mask=None):
    return MaskedSum.call(self, values, values_mask) + 1.0


def _stopped(self, values, values_mask=None):
    return MaskedSum.call(self, ops.stop_gradient(values), values_mask)


def _unweighted_sum(values, values_mask):
    return ops.sum(ops.where(values_mask, values, ops.zeros_like(values)), axis=1, keepdims=True)


def _weight_stopped(self, values, values_mask=None):
    return ops.stop_gradient(self.weight) * _unweighted_sum(values, values_mask)


def _weight_times_zero(self, values, values_mask=None):
    return _unweighted_sum(values, values_mask) + 0.0 * self.weight


def _endless_slope(self, values, values_mask=None):  # the slope of a root at 0
    return MaskedSum.call(self, values, values_mask) + ops.sqrt(values[:, :1] * 0.0)


def _overflowing(self, values, values_mask=None):
    return MaskedSum.call(self, values, values_mask) * 1e4


def _float32_always(self, values, values_mask=None):
    return ops.cast(MaskedSum.call(self, values, values_mask), "float32")


def _python_branch(self, values, values_mask=None):
    return MaskedSum.call(self, values, values_mask) * (2.0 if self.weight > 0.0 else 1.0)


def _numpy(self, values, values_mask=None):
    return self.weight * np.where(values_mask, ops.convert_to_numpy(values), 0.0).sum(axis=1, keepdims=True)


def _sublayer_kept(self, values, values_mask=None):
    self.dense = keras.layers.Dense(1)
    return self.dense(MaskedSum.call(self, values, values_mask))


def _sublayer_dropped(self, values, values_mask=None):
    dense = keras.layers.Dense(1, kernel_initializer="ones")  # ones: no two calls differ
    return dense(MaskedSum.call(self, values, values_mask))


def _noise(self, values, values_mask=None):
    return MaskedSum.call(self, values, values_mask) * keras.random.uniform((1, 1))


def _nothing(self, values, values_mask=None):
    return None


def _wide_shape(self, values_shape):
    return (values_shape[0], 3)


def _training_fails(self, values, values_mask=None, training=False):
    if training:
        raise RuntimeError("not today")
    return MaskedSum.call(self, values, values_mask)


def _training_divides(self, values, values_mask=None, training=False):
    return MaskedSum.call(self, values, values_mask) / (0.0 if training else 1.0)


def _trainable_dropped(self, factor=1.0, name=None, dtype=None, **kwargs):
    MaskedSum.__init__(self, factor, name=name, dtype=dtype)


def _trainable_unsaid(self):
    config = MaskedSum.get_config(self)
    return {name: value for name, value in config.items() if name != "trainable"}


def _trainable_set_by_build(self, values_shape):
    MaskedSum.build(self, values_shape)
    self.trainable = True


def _without_arguments_of_keras(self, factor=1.0):
    MaskedSum.__init__(self, factor)


def _failing(self, *arguments, **further):
    raise RuntimeError("not today")


@pytest.mark.parametrize(
    "name, method, function, rule",
    [
        ("NoConfig", "get_config", _without_factor, "get_config must hold `factor`"),
        ("DefaultConfig", "get_config", _default_factor, "get_config must hold factor=2.0, not 1.0"),
        ("FailingConfig", "get_config", _failing, "get_config must give .*; it raised RuntimeError"),
        ("NoKwargs", "__init__", _without_arguments_of_keras, r"takes Keras's own by \*\*kwargs; it raised TypeError"),
        ("FailingCall", "call", _failing, "`call` must run on `inputs`.*; it raised RuntimeError"),
        ("NoOutput", "call", _nothing, "`call` must return a tensor"),
        ("SublayerKept", "call", _sublayer_kept, "create no sublayer"),
        ("SublayerDropped", "call", _sublayer_dropped, "a call must create no sublayer or weight.*kernel"),
        ("Noise", "call", _noise, "a second call must give the same result"),
        ("WideShape", "compute_output_shape", _wide_shape, "compute_output_spec must give"),
        ("FailingShape", "compute_output_shape", _failing, "a symbolic call must work.*; it raised RuntimeError"),
        ("BatchMean", "call", _batch_mean, "must not depend on the rest of the batch"),
        ("FirstRowsSum", "call", _first_rows_sum, "must not depend on the rest of the batch"),
        ("SumOfRowsBefore", "call", _sum_of_rows_before, "must not depend on the rest of the batch"),
        ("BatchOfThree", "call", _batch_of_three, "must not depend on the rest of the batch; it raised"),
        ("MaskIgnored", "call", _mask_ignored, "what `values_mask` hides must change nothing, here 1 in `values`"),
        ("Exponential", "call", _exponential, "hides must change nothing, here 10000"),
        ("LargeValuesLeak", "call", _large_values_leak, "hides must change nothing, here 10000"),
        ("NegativeValuesLeak", "call", _negative_values_leak, "hides must change nothing, here -10000"),
        ("Divided", "call", _divided, "a fully hidden `values` must give no NaN"),
        ("SoftmaxOfMinus1e9", "call", _softmax_of_minus_1e9, "must give no NaN in `output` under mixed_float16"),
        ("OneWhenMasked", "call", _one_when_masked, "a fully hidden `values` must give zeros"),
        ("Overflowing", "call", _overflowing, "must be finite under mixed_float16"),
        pytest.param(
            "Float32Always",
            "call",
            _float32_always,
            "must give `output` under mixed_bfloat16 as float32, not bfloat16",
            marks=pytest.mark.skipif(ON_TORCH, reason="Keras's symbolic call on Torch casts no weight"),
        ),
        ("TrainableDropped", "__init__", _trainable_dropped, "trainable=False must survive get_config and from_config"),
        ("TrainableUnsaid", "get_config", _trainable_unsaid, "trainable=False must survive get_config and from_config"),
        ("TrainableSetByBuild", "build", _trainable_set_by_build, "must have no trainable weights, not .*/weight"),
        ("TrainingFails", "call", _training_fails, "`call` must run with training=True; it raised RuntimeError"),
        ("TrainingDivides", "call", _training_divides, "with training=True and give finite values in `output`"),
        ("Stopped", "call", _stopped, "a gradient must reach `values`"),
        ("WeightStopped", "call", _weight_stopped, "a gradient must reach the weight .*/weight"),
        ("WeightTimesZero", "call", _weight_times_zero, "a gradient must reach the weight .*/weight"),
        (
            "MeanByWhere",
            "call",
            _mean_by_where,
            "gradient of the weight .*/weight must be finite where `values_mask` is",
        ),
        ("MeanByWhereWhereAny", "call", _mean_by_where_where_any, "must be finite where .* is False in its first row"),
        ("EndlessSlope", "call", _endless_slope, "the gradient of `values` must be finite"),
    ],
)
def test_broken_layer_is_found(name, method, function, rule):
    with pytest.raises(LayerConformanceError, match=rule):
        run(variant(MaskedSum, name, **{method: function}))


@pytest.mark.skipif(ON_TORCH, reason="the Torch backend compiles nothing")
@pytest.mark.parametrize("name, function", [("PythonBranch", _python_branch), ("NumPy", _numpy)])
def test_call_that_reads_values_is_found_by_the_compiler(name, function):
    with pytest.raises(LayerConformanceError, match=r"compile `call`: no Python branch .*; it raised") as caught:
        run(variant(MaskedSum, name, call=function))
    assert caught.value.__cause__ is not None


def test_unregistered_class_is_found():
    unregistered = type("Unregistered", (MaskedSum,), {})
    with pytest.raises(LayerConformanceError, match="must be registered"):
        run(unregistered)


def test_policy_is_restored_when_a_layer_fails_under_another():
    def call(self, values, values_mask=None):
        if self.compute_dtype != "float32":
            raise RuntimeError("float32 alone")
        return MaskedSum.call(self, values, values_mask)

    before = keras.config.dtype_policy()
    with pytest.raises(LayerConformanceError, match="must run under mixed_bfloat16; it raised RuntimeError"):
        run(variant(MaskedSum, "Float32Alone", call=call))
    assert keras.config.dtype_policy() == before


def test_gradient_that_should_not_be_is_found():
    with pytest.raises(LayerConformanceError, match="a gradient must not reach `values`"):
        run(MaskedSum, differentiable=[])


def test_hidden_nan_may_spread_unless_the_layer_says_that_it_does_not():
    def product(self, values, values_mask=None):
        return self.weight * ops.sum(values * ops.cast(values_mask, values.dtype), axis=1, keepdims=True)

    run(MaskedSum, ignores_hidden_nan=True)
    run(variant(MaskedSum, "Product", call=product))
    with pytest.raises(LayerConformanceError, match="hides must change nothing, here nan in `values`"):
        run(variant(MaskedSum, "Product", call=product), ignores_hidden_nan=True)


def test_rounding_under_a_mixed_policy_is_found():
    inputs = {**INPUTS, "values": INPUTS["values"] + np.float32(0.001)}
    with pytest.raises(LayerConformanceError, match="mixed_bfloat16 must change nothing"):
        check_layer(MaskedSum, {"factor": 2.0}, inputs, differentiable=["values"], same_under_policies=True)


def _by_other_name(self, items, history_mask=None):
    return MaskedSum.call(self, items, history_mask)


def _mask_unread(self, items, history_mask=None):
    return MaskedSum.call(self, items, ops.ones_like(items, dtype="bool"))


@pytest.mark.parametrize("masks", [{}, {"history_mask": "items"}, {"history_mask": None}])
def test_mask_of_another_name_finds_its_input_or_must_change_the_result(masks):
    inputs = {"items": INPUTS["values"], "history_mask": INPUTS["values_mask"]}

    def run_with(call):
        methods = {"call": call, "build": lambda self, items_shape: MaskedSum.build(self, items_shape)}
        methods["compute_output_shape"] = lambda self, items_shape: (items_shape[0], 1)
        layer_class = variant(MaskedSum, "OtherName", **methods)
        check_layer(layer_class, {"factor": 2.0}, inputs, differentiable=["items"], masks=masks)

    run_with(_by_other_name)
    rule = "must change the result" if None in masks.values() else "what `history_mask` hides must change nothing"
    with pytest.raises(LayerConformanceError, match=rule):
        run_with(_mask_unread)


def test_weight_that_no_gradient_need_reach_is_named_by_the_end_of_its_path():
    stopped = variant(MaskedSum, "WeightStoppedRightly", call=_weight_stopped)
    run(stopped, unreached_weights=["weight"])
    with pytest.raises(ValueError, match=r"`unreached_weights` must name trainable weights.*Received: \['wait'\]"):
        run(stopped, unreached_weights=["wait"])


@registered
class OtherKeywords(MaskedSum):
    def __init__(self, factor=1.0, **kw):
        super().__init__(factor, **kw)


def test_keywords_may_have_any_name():
    run(OtherKeywords)
