"""DIN's attention over behaviors (the paper's reference [36]), with its first layer factorised."""

from __future__ import annotations

import typing

import keras
from keras import ops

from tfmm.layers import checks
from tfmm.layers.compilation import is_traced_for_xla

_FOLD_FROM = 16  # behaviors: from here on, one product with per-row weights beats two with shared weights


@keras.saving.register_keras_serializable(package="tfmm")
class Dice(keras.layers.Layer):
    """DIN's data-adaptive activation: p x + (1 - p) alpha x, p = sigmoid of x standardised over the batch.

    Mean and variance are those of the batch in training and moving averages after it; masked positions take
    no part.

    Args:
        epsilon: float, added to the variance.
        momentum: float, of the moving averages.

    Call arguments:
        inputs: float [..., H].
        mask: bool [...], True where a position counts in the batch's mean and variance.

    Source: Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", equation 3.

    >>> Dice()(ops.ones((1, 2))).shape
    TensorShape([1, 2])
    """

    def __init__(self, epsilon: float = 1e-8, momentum: float = 0.99, **kwargs: typing.Any) -> None:
        super().__init__(**kwargs)
        self.epsilon = epsilon
        self.momentum = momentum
        self.supports_masking = True
        self.standardize = keras.layers.BatchNormalization(
            epsilon=epsilon, momentum=momentum, center=False, scale=False, dtype="float32", name="standardize"
        )

    def build(self, input_shape: typing.Any) -> None:
        self.standardize.build(input_shape)
        self.alpha = self.add_weight(name="alpha", shape=(input_shape[-1],), initializer="zeros")
        self.built = True

    def call(self, inputs: typing.Any, mask: typing.Any = None, training: bool | None = None) -> typing.Any:
        standard = self.standardize(
            ops.cast(inputs, "float32"), training=bool(training) and self.trainable, mask=mask
        )
        p = ops.cast(ops.sigmoid(standard), inputs.dtype)
        return inputs * (p + (1.0 - p) * ops.cast(self.alpha, inputs.dtype))

    def compute_output_shape(self, input_shape: typing.Any) -> typing.Any:
        return input_shape

    def get_config(self) -> dict[str, typing.Any]:
        return {**super().get_config(), "epsilon": self.epsilon, "momentum": self.momentum}


def make_activation(name: str, layer_name: str, dtype: typing.Any, rank: int = 3) -> keras.layers.Layer:
    """Returns a new activation layer: "dice", "prelu" (a slope per unit, from 0.25) or a Keras activation."""
    if name == "dice":
        return Dice(name=layer_name, dtype=dtype)
    if name == "prelu":
        return keras.layers.PReLU(
            shared_axes=list(range(1, rank - 1)),
            name=layer_name,
            dtype=dtype,
            alpha_initializer=keras.initializers.Constant(0.25),
        )
    return keras.layers.Activation(name, name=layer_name, dtype=dtype)


def masked_softmax(scores: typing.Any, mask: typing.Any) -> typing.Any:
    """Computes softmax over the unmasked entries of the last axis; a fully masked row gives zeros.

    Args:
        scores: float [..., L]; mask: bool [..., L], True where an entry counts.
    Returns:
        float32 [..., L]; each row sums to 1, or to 0 where nothing is unmasked.

    >>> masked_softmax([[0.0, 0.0, 9.0]], [[True, True, False]]).numpy()
    array([[0.5, 0.5, 0. ]], dtype=float32)
    """
    scores = ops.cast(scores, "float32")
    mask = ops.cast(mask, "bool")
    largest = ops.max(ops.where(mask, scores, -3e38), axis=-1, keepdims=True)
    weights = ops.where(mask, ops.exp(ops.where(mask, scores - largest, 0.0)), 0.0)
    return weights / ops.maximum(ops.sum(weights, axis=-1, keepdims=True), 1e-30)


@keras.saving.register_keras_serializable(package="tfmm")
class DINAttention(keras.layers.Layer):
    """Weighted sum of a user's behaviors, each weighted by its relevance to the target (DIN, reference [36]).

    The activation unit is an MLP over [target, behavior, target - behavior, target * behavior]. Its first
    layer is linear, so it splits: W [q, k, q - k, q * k] = q (Wq + Wd) + k (Wk - Wd) + (q * k) Wp. The first
    part is computed once per target and the second once per behavior; only the third sees both. Equal to the
    joined form to rounding.

    Several targets [C, D] may share one history [1, L, D]: behaviors are then read once for all targets.

    Args:
        units: hidden widths of the activation unit.
        activation: "prelu", "dice" or the name of a Keras activation.
        softmax: normalise the weights over a user's behaviors. Off, as in DIN: the sum keeps the intensity of
            interest.
        chunk_size: targets computed at a time where they share a history, which bounds memory. "dice" in
            training takes all at once, as its statistics are the batch's.
        kernel_initializer: of all kernels.

    Call arguments:
        target: float [B, D], or [C, D] with one history.
        behaviors: float [B, L, D], or [1, L, D].
        behaviors_mask: bool [B, L] (or [1, L]), True where a behavior exists; None: all do.

    Returns:
        float [B, D] ([C, D]), in the layer's compute dtype; a fully masked row gives zeros.

    Differs from [36]: the target - behavior term stands in the authors' code, not in their figure; the mask
    is ours.

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
        checks.require(
            len(units) >= 1 and all(u >= 1 for u in units),
            "`units` must name at least one hidden layer, each of 1 unit or more.",
            units,
        )
        checks.require(chunk_size >= 1, "`chunk_size` must be at least 1.", chunk_size)
        self.units = tuple(int(u) for u in units)
        self.activation = activation
        self.softmax = softmax
        self.chunk_size = chunk_size
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.supports_masking = True
        self.activation_layers = [
            make_activation(activation, f"activation_{i + 1}", self.dtype_policy)
            for i in range(len(self.units))
        ]
        self.dense_layers = [
            keras.layers.Dense(
                width,
                kernel_initializer=self._new_initializer(),
                name=f"dense_{i + 2}",
                dtype=self.dtype_policy,
            )
            for i, width in enumerate((*self.units[1:], 1))
        ]

    def _new_initializer(self) -> typing.Any:
        return self.kernel_initializer.__class__.from_config(self.kernel_initializer.get_config())

    def build(self, target_shape: typing.Any, behaviors_shape: typing.Any) -> None:
        checks.require(len(target_shape) == 2, "`target` must have 2 axes [B, D].", target_shape)
        checks.require(len(behaviors_shape) == 3, "`behaviors` must have 3 axes [B, L, D].", behaviors_shape)
        dim = behaviors_shape[-1]
        checks.require_same_dim("target", target_shape[-1], "behaviors", dim)
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
        training: bool | None = None,
    ) -> typing.Any:
        checks.require_rank("target", target, 2, "[B, D]")
        checks.require_rank("behaviors", behaviors, 3, "[B, L, D]")
        if behaviors_mask is not None:
            checks.require_mask("behaviors_mask", behaviors_mask, tuple(behaviors.shape[:2]))
            behaviors_mask = ops.cast(behaviors_mask, "bool")
        if checks.is_shared(target, behaviors):
            return self._attend_shared(target, behaviors[0], behaviors_mask, training)
        weights = self._weights(self._first_layer(target, behaviors), behaviors_mask, training)
        if (
            is_traced_for_xla()
        ):  # fuses; a batched product with one row per batch entry would run on one thread
            return ops.sum(ops.expand_dims(weights, -1) * behaviors, axis=1)
        return ops.squeeze(ops.matmul(ops.expand_dims(weights, 1), behaviors), axis=1)

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
        folded = (
            of_behavior + ops.expand_dims(target, -1) * of_product
        )  # [B, D, H]: h Wk + (q h) Wp = h (Wk + q Wp)
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
        self, target: typing.Any, history: typing.Any, mask: typing.Any, training: bool | None
    ) -> typing.Any:
        """Targets [C, D] over one history [L, D]: one product [L, D] x [D, c H] per chunk of c targets."""
        of_target, of_behavior, of_product = self._kernels()
        per_target = ops.matmul(target, of_target) + self.bias  # [C, H]
        per_behavior = ops.expand_dims(ops.matmul(history, of_behavior), 1)  # [L, 1, H]
        num_targets = target.shape[0]
        whole = num_targets is None or (training and self.activation == "dice")
        chunk = num_targets if whole else self.chunk_size
        pooled = []
        for start in range(0, 1 if whole else num_targets, chunk or 1):
            part = slice(None) if whole else slice(start, start + chunk)
            kernel = ops.transpose(ops.expand_dims(target[part], -1) * of_product, (1, 0, 2))  # [D, c, H]
            product = ops.matmul(history, ops.reshape(kernel, (history.shape[-1], -1)))
            product = ops.reshape(product, (ops.shape(history)[0], -1, self.units[0]))  # [L, c, H]
            hidden = product + per_behavior + ops.expand_dims(per_target[part], 0)
            pooled.append(ops.matmul(self._shared_weights(hidden, mask, training), history))
        return ops.concatenate(pooled, axis=0) if len(pooled) > 1 else pooled[0]

    def _shared_weights(self, hidden: typing.Any, mask: typing.Any, training: bool | None) -> typing.Any:
        """Float [L, c, H] -> weights [c, L]; the mask [1, L] is the history's."""
        if mask is not None:
            mask = ops.broadcast_to(ops.transpose(mask), ops.shape(hidden)[:2])
        if not self.softmax:
            return ops.transpose(self._weights(hidden, mask, training))
        hidden = ops.transpose(hidden, (1, 0, 2))
        return self._weights(hidden, None if mask is None else ops.transpose(mask), training)

    def compute_output_shape(self, target_shape: typing.Any, behaviors_shape: typing.Any) -> typing.Any:
        return (target_shape[0], behaviors_shape[-1])

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
