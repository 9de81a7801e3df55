"""DIN's attention over behaviors (the paper's reference [36]), with its first layer factorised."""

from __future__ import annotations

import typing

import keras
from keras import ops

from tfmm.layers import checks
from tfmm.layers.compilation import is_traced_for_xla

ACTIVATIONS = ("prelu", "dice")  # beside those of Keras
_SMALLEST = -3e38  # below any score
_FOLD_FROM = 16  # behaviors: from here on, one product with per-row weights beats two with shared weights


@keras.saving.register_keras_serializable(package="tfmm")
class Dice(keras.layers.Layer):
    """DIN's data-adaptive activation: p x + (1 - p) alpha x, p = sigmoid of x standardised over the batch.

    Mean and variance are those of the batch in training and moving averages after it; masked positions take
    no part.

    Args:
        epsilon: float > 0, added to the variance.
        momentum: float in [0, 1), of the moving averages.

    Call arguments:
        inputs: float [..., H].
        mask: bool [...], True where a position counts in the batch's mean and variance.

    Returns:
        float [..., H], in the dtype of the inputs.

    Raises:
        ValueError: `epsilon` or `momentum` out of range.

    Source: Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", equation 3.

    >>> Dice()(ops.ones((1, 2))).shape
    TensorShape([1, 2])
    """

    def __init__(self, epsilon: float = 1e-8, momentum: float = 0.99, **kwargs: typing.Any) -> None:
        super().__init__(**kwargs)
        self.epsilon = checks.require_number("epsilon", epsilon)
        self.momentum = checks.require_number("momentum", momentum)
        checks.require(self.epsilon > 0.0, "`epsilon` must be positive.", epsilon)
        checks.require(0.0 <= self.momentum < 1.0, "`momentum` must be in [0, 1).", momentum)
        self.supports_masking = True
        self.standardize = keras.layers.BatchNormalization(
            epsilon=self.epsilon,
            momentum=self.momentum,
            center=False,
            scale=False,
            dtype="float32",
            name="standardize",
            trainable=self.trainable,
        )

    def build(self, input_shape: typing.Any) -> None:
        self.standardize.build(input_shape)
        self.alpha = self.add_weight(name="alpha", shape=(input_shape[-1],), initializer="zeros")
        self.built = True

    def call(self, inputs: typing.Any, mask: typing.Any = None, training: bool | None = None) -> typing.Any:
        standard = self.standardize(ops.cast(inputs, "float32"), training=bool(training) and self.trainable, mask=mask)
        p = ops.cast(ops.sigmoid(standard), inputs.dtype)
        return inputs * (p + (1.0 - p) * ops.cast(self.alpha, inputs.dtype))

    def compute_output_shape(self, input_shape: typing.Any) -> typing.Any:
        return input_shape

    def get_config(self) -> dict[str, typing.Any]:
        return {**super().get_config(), "epsilon": self.epsilon, "momentum": self.momentum}


def make_activation(
    name: str, layer_name: str, dtype: typing.Any, trainable: bool, rank: int = 3
) -> keras.layers.Layer:
    """Returns a new activation layer: "dice", "prelu" (a slope per unit, from 0.25) or a Keras activation."""
    settings = {"name": layer_name, "dtype": dtype, "trainable": trainable}
    if name == "dice":
        return Dice(**settings)
    if name == "prelu":
        slope = keras.initializers.Constant(0.25)
        return keras.layers.PReLU(alpha_initializer=slope, shared_axes=list(range(1, rank - 1)), **settings)
    return keras.layers.Activation(name, **settings)


def zero_hidden(vectors: typing.Any, mask: typing.Any) -> typing.Any:
    """Replaces the vectors that a mask hides by zeros, so that no NaN in them reaches a result or a gradient.

    Args:
        vectors: float [..., D]; mask: bool [...], True where a vector exists; None: all do.
    Returns:
        float [..., D].

    >>> zero_hidden([[1.0, 2.0], [float("nan"), 3.0]], [True, False]).numpy()
    array([[1., 2.],
           [0., 0.]], dtype=float32)
    """
    return vectors if mask is None else ops.where(ops.expand_dims(mask, -1), vectors, 0.0)


def masked_softmax(scores: typing.Any, mask: typing.Any) -> typing.Any:
    """Computes softmax over the unmasked entries of the last axis; a fully masked row gives zeros.

    Args:
        scores: float [..., L]; mask: bool [..., L] or a shape that broadcasts to it, True where an entry counts.
    Returns:
        float32 [..., L]; each row sums to 1, or to 0 where nothing is unmasked.
    Raises:
        ValueError: a mask whose shape does not broadcast to that of the scores.

    >>> masked_softmax([[0.0, 0.0, 9.0]], [[True, True, False]]).numpy()
    array([[0.5, 0.5, 0. ]], dtype=float32)
    """
    mask, scores = ops.cast(mask, "bool"), ops.cast(scores, "float32")
    sizes, most = tuple(mask.shape), tuple(scores.shape)
    fits = len(sizes) <= len(most) and all(
        a is None or b is None or a in (1, b) for a, b in zip(reversed(sizes), reversed(most))
    )
    checks.require(fits, f"`mask` must have the shape of `scores`, {most}, or broadcast to it.", sizes)
    scores = ops.where(mask, scores, _SMALLEST)
    largest = ops.max(scores, axis=-1, keepdims=True, initial=_SMALLEST)
    weights = ops.where(mask, ops.exp(scores - largest), 0.0)
    return weights / ops.maximum(ops.sum(weights, axis=-1, keepdims=True), 1e-30)


@keras.saving.register_keras_serializable(package="tfmm")
class DINAttention(keras.layers.Layer):
    """Weighted sum of a user's behaviors, each weighted by its relevance to the target (DIN, reference [36]).

    The activation unit is an MLP over [target, behavior, target - behavior, target * behavior]. Its first
    layer is linear, so it splits: W [q, k, q - k, q * k] = q (Wq + Wd) + k (Wk - Wd) + (q * k) Wp. The first
    part is computed once per target and the second once per behavior; only the third sees both. Equal to the
    joined form to rounding.

    Several targets [C, D] may share one history [1, L, D]: behaviors are then read once for all targets. That form
    needs to see the 1 while the graph is built. `model.export()` forgets it, and the exported graph then broadcasts:
    the same numbers, slower. To keep it, pass `input_signature` with the history as [1, L, D]:

        model.export(path, input_signature=[[tf.TensorSpec([None, D], name="target"),
                                             tf.TensorSpec([1, L, D], name="history")]])

    Args:
        units: hidden widths of the activation unit, at least one.
        activation: "prelu", "dice" or the name of a Keras activation.
        softmax: normalise the weights over a user's behaviors. Off, as in DIN: the sum keeps the intensity of
            interest.
        chunk_size: targets computed at a time where they share a history. It bounds memory where C is known while
            the graph is built: hidden layers then hold [L, chunk_size, H] values. Each chunk is written out in the
            graph, so that thousands of candidates make a large one. With an unknown C, and with "dice" in
            training, whose statistics are the batch's, all targets are computed at once: [L, C, H].
        kernel_initializer: of all kernels.

    Call arguments:
        target: float [B, D], or [C, D] with one history.
        behaviors: float [B, L, D], or [1, L, D].
        behaviors_mask: bool [B, L] (or [1, L]), True where a behavior exists; None: all do.
        target_mask: bool [B], True where the target exists; None: all do.

    What a mask hides may hold anything, NaN included. Masks that travel with the inputs are found.

    Returns:
        float [B, D] ([C, D]), in the layer's compute dtype; zeros where no behavior, or no target, exists.

    Raises:
        ValueError: an argument out of range, an unknown activation; tensors that are not float, other ranks, dims or
            lengths that differ, or another number of histories than one or B. Eager, in a graph, and on Keras
            inputs alike, as far as the sizes are known.

    Source: Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", section 4.3 and figure 2.

    Differs from [36]: the target - behavior term stands in the authors' code, not in their figure; the masks are
    ours.

    >>> layer, target, behaviors = DINAttention(units=(8,)), ops.ones((2, 4)), ops.ones((2, 3, 4))
    >>> layer(target, behaviors, behaviors_mask=ops.zeros((2, 3))).numpy().sum()
    0.0
    """

    def __init__(
        self,
        units: typing.Sequence[int] = (80, 40),
        activation: str = "prelu",
        softmax: bool = False,
        chunk_size: int = 20,
        kernel_initializer: typing.Any = "glorot_uniform",
        **kwargs: typing.Any,
    ) -> None:
        super().__init__(**kwargs)
        self.units = checks.require_ints("units", units)
        checks.require(len(self.units) >= 1, "`units` must name at least one hidden layer.", units)
        checks.require_activation("activation", activation, ACTIVATIONS)
        self.activation = activation
        self.softmax = checks.require_bool("softmax", softmax)
        self.chunk_size = checks.require_int("chunk_size", chunk_size)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.supports_masking = True
        self.activation_layers = [
            make_activation(activation, f"activation_{i + 1}", self.dtype_policy, self.trainable)
            for i in range(len(self.units))
        ]
        self.dense_layers = [
            keras.layers.Dense(
                width,
                kernel_initializer=self._new_initializer(),
                name=f"dense_{i + 2}",
                dtype=self.dtype_policy,
                trainable=self.trainable,
            )
            for i, width in enumerate((*self.units[1:], 1))
        ]

    def _new_initializer(self) -> typing.Any:
        return self.kernel_initializer.__class__.from_config(self.kernel_initializer.get_config())

    def build(self, target_shape: typing.Any, behaviors_shape: typing.Any) -> None:
        checks.require_history(keras.KerasTensor(target_shape), keras.KerasTensor(behaviors_shape))
        dim = behaviors_shape[-1]
        checks.require(dim is not None, "`behaviors` must have a known number of values per vector.", behaviors_shape)
        self.kernel = self.add_weight(
            name="kernel", shape=(4 * dim, self.units[0]), initializer=self.kernel_initializer
        )
        self.bias = self.add_weight(name="bias", shape=(self.units[0],), initializer="zeros")
        for i, width in enumerate(self.units):
            self.activation_layers[i].build((None, None, width))
            self.dense_layers[i].build((None, None, width))
        self.built = True

    def call(
        self,
        target: typing.Any,
        behaviors: typing.Any,
        behaviors_mask: typing.Any = None,
        target_mask: typing.Any = None,
        training: bool | None = None,
    ) -> typing.Any:
        behaviors_mask, target_mask = self._check(target, behaviors, behaviors_mask, target_mask)
        shared = checks.is_shared(target, behaviors)  # before a mask of unknown batch hides the 1
        target, behaviors = zero_hidden(target, target_mask), zero_hidden(behaviors, behaviors_mask)
        if shared:
            return self._attend_shared(target, behaviors[0], behaviors_mask, target_mask, training)
        mask = _join_masks(behaviors_mask, target_mask)
        weights = self._weights(self._first_layer(target, behaviors), mask, training)
        if is_traced_for_xla():  # fuses; a batched product with one row per batch entry would run on one thread
            return ops.sum(ops.expand_dims(weights, -1) * behaviors, axis=1)
        return ops.squeeze(ops.matmul(ops.expand_dims(weights, 1), behaviors), axis=1)

    def _check(
        self, target: typing.Any, behaviors: typing.Any, behaviors_mask: typing.Any, target_mask: typing.Any
    ) -> tuple[typing.Any, typing.Any]:
        """Raises a ValueError unless the arguments of `call` fit; returns the masks as bool tensors."""
        checks.require_history(target, behaviors)
        for name, vectors in (("target", target), ("behaviors", behaviors)):
            checks.require_float(name, vectors, "`unit_vectors` makes such of int8 rows.")
        if self.built:
            dim, built_dim = target.shape[-1], self.kernel.shape[0] // 4
            rule = f"`target` and `behaviors` must have {built_dim} values per vector, as when the layer was built."
            checks.require(dim in (None, built_dim), rule, dim)
        return (
            checks.as_mask("behaviors_mask", behaviors_mask, tuple(behaviors.shape)[:2]),
            checks.as_mask("target_mask", target_mask, tuple(target.shape)[:1]),
        )

    def _kernels(self) -> tuple[typing.Any, typing.Any, typing.Any]:
        """The first layer's kernels for the target [D, H], the behavior [D, H] and their product [D, H]."""
        of_target, of_behavior, of_difference, of_product = ops.split(self.kernel, 4, axis=0)
        return of_target + of_difference, of_behavior - of_difference, of_product

    def _first_layer(self, target: typing.Any, behaviors: typing.Any) -> typing.Any:
        """Returns float [B, L, H], before the activation."""
        of_target, of_behavior, of_product = self._kernels()
        once = ops.expand_dims(ops.matmul(target, of_target) + self.bias, 1)
        length = behaviors.shape[1]
        if is_traced_for_xla() or (length is not None and length < _FOLD_FROM):
            product = behaviors * ops.expand_dims(target, 1)
            return once + ops.matmul(behaviors, of_behavior) + ops.matmul(product, of_product)
        # [B, D, H]: h Wk + (q h) Wp = h (Wk + q Wp)
        folded = of_behavior + ops.expand_dims(target, -1) * of_product
        return once + ops.matmul(behaviors, folded)

    def _weights(self, hidden: typing.Any, mask: typing.Any, training: bool | None) -> typing.Any:
        """Runs the rest of the activation unit: float [X, Y, H] -> weights [X, Y], zero where masked."""
        for activation, dense in zip(self.activation_layers, self.dense_layers):
            if isinstance(activation, Dice):
                hidden = activation(hidden, mask=mask, training=training)
            else:
                hidden = activation(hidden)
            hidden = dense(hidden)
        scores = ops.squeeze(hidden, axis=-1)
        if self.softmax:
            weights = masked_softmax(scores, ops.ones_like(scores, dtype="bool") if mask is None else mask)
            return ops.cast(weights, scores.dtype)
        return scores if mask is None else ops.where(mask, scores, ops.zeros_like(scores))

    def _attend_shared(
        self,
        target: typing.Any,
        history: typing.Any,
        behaviors_mask: typing.Any,
        target_mask: typing.Any,
        training: bool | None,
    ) -> typing.Any:
        """Targets [C, D] over one history [L, D]: one product [L, D] x [D, c H] per chunk of c targets."""
        of_target, of_behavior, of_product = self._kernels()
        per_target = ops.matmul(target, of_target) + self.bias  # [C, H]
        per_behavior = ops.expand_dims(ops.matmul(history, of_behavior), 1)  # [L, 1, H]
        length, dim = ops.shape(history)
        pooled = []
        for part in self._chunks(target.shape[0], training):
            kernel = ops.transpose(ops.expand_dims(target[part], -1) * of_product, (1, 0, 2))  # [D, c, H]
            shape = (length, ops.shape(kernel)[1], self.units[0])
            product = ops.matmul(history, ops.reshape(kernel, (dim, shape[1] * shape[2])))
            hidden = ops.reshape(product, shape) + per_behavior + ops.expand_dims(per_target[part], 0)  # [L, c, H]
            mask = _join_masks(behaviors_mask, None if target_mask is None else target_mask[part])
            pooled.append(ops.matmul(self._shared_weights(hidden, mask, training), history))
        return ops.concatenate(pooled, axis=0) if len(pooled) > 1 else pooled[0]

    def _chunks(self, num_targets: int | None, training: bool | None) -> list[slice]:
        """The targets computed at a time: all of them where their number, or their joint statistics, ask for it."""
        if num_targets is None or num_targets <= self.chunk_size or (training and self.activation == "dice"):
            return [slice(None)]
        return [slice(start, start + self.chunk_size) for start in range(0, num_targets, self.chunk_size)]

    def _shared_weights(self, hidden: typing.Any, mask: typing.Any, training: bool | None) -> typing.Any:
        """Float [L, c, H] and a mask [1 or c, L] -> weights [c, L]."""
        if self.softmax:
            return self._weights(ops.transpose(hidden, (1, 0, 2)), mask, training)
        return ops.transpose(self._weights(hidden, None if mask is None else ops.transpose(mask), training))

    def compute_output_shape(self, target_shape: typing.Any, behaviors_shape: typing.Any) -> typing.Any:
        return (target_shape[0], behaviors_shape[-1])

    def compute_output_spec(
        self,
        target: typing.Any,
        behaviors: typing.Any,
        behaviors_mask: typing.Any = None,
        target_mask: typing.Any = None,
        training: bool | None = None,
    ) -> typing.Any:
        self._check(target, behaviors, behaviors_mask, target_mask)
        return keras.KerasTensor((target.shape[0], behaviors.shape[-1]), dtype=self.compute_dtype)

    def compute_mask(self, inputs: typing.Any, previous_mask: typing.Any) -> None:
        return None

    def get_config(self) -> dict[str, typing.Any]:
        return {
            **super().get_config(),
            "units": list(self.units),
            "activation": self.activation,
            "softmax": self.softmax,
            "chunk_size": self.chunk_size,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


def _join_masks(behaviors_mask: typing.Any, target_mask: typing.Any) -> typing.Any:
    """Joins bool [B or 1, L] and bool [B] to what broadcasts to [B, L]; None where both are."""
    if target_mask is None:
        return behaviors_mask
    target_mask = ops.expand_dims(target_mask, -1)
    return target_mask if behaviors_mask is None else ops.logical_and(behaviors_mask, target_mask)
