"""MAKE, the Multimodal Knowledge Extractor (section 4.3): DIN over multimodal vectors."""

from __future__ import annotations

import os
import typing

import keras
from keras import ops

from tfmm.layers import checks
from tfmm.layers.din import ACTIVATIONS, Dice, DINAttention, make_activation, zero_hidden
from tfmm.layers.similarity import unit_vectors

COMBINATIONS = ("product", "concat", "pooled")


@keras.saving.register_keras_serializable(package="tfmm")
class MAKEBlock(keras.layers.Layer):
    """v_MAKE = DIN(behaviors, target), logit = MLP(v_MAKE) (MAKE, section 4.3, equations 3 and 4).

    Pre-train it alone on clicks over many epochs (equation 5: binary cross-entropy of `logit`), `freeze` it,
    and give `knowledge(outputs)` to the ID model. A frozen block stays frozen where it, or a model that holds it, is
    cloned or saved and loaded.

    Args:
        units: three hidden widths of the four-layer MLP; the fourth layer is the logit.
        attention_units, attention_activation, softmax: of the DIN attention (see `DINAttention`, also for one
            history shared by many targets and how to export that).
        activation: of the MLP's hidden layers: "prelu", "dice" or the name of a Keras activation.
        combine: what v_MAKE holds: "product" [pooled, target, pooled * target / sqrt(D)], "concat" [pooled,
            target] or "pooled" (the attention's sum alone).
        scale_inputs: multiply the vectors by sqrt(D), so that the values of unit vectors have about unit
            variance.

    Call arguments:
        target: float [B, D], vectors of norm 1; or int8 [B, D] with `target_scales`; or [C, D] with one
            history.
        behaviors: float [B, L, D] or int8 [B, L, D] with `behaviors_scales`; or [1, L, D].
        behaviors_mask: bool [B, L] (or [1, L]), True where a behavior with an embedding exists; None: all do.
        target_mask: bool [B], True where the target has an embedding; a row without one gets v_MAKE = 0, and
            takes no part in the statistics of "dice".
        target_scales: float32 [B], 1 / norm of each row; behaviors_scales: float32 [B, L] (or [1, L]). A scale
            of 0 means no embedding, as False in the mask does.

    What a mask hides may hold anything, NaN included. Masks that travel with float inputs are found.

    Returns:
        dict of "v_make" float [B, V], "hidden_1", "hidden_2", "hidden_3" float [B, units[i]] and "logit"
        float32 [B, 1]; V is 3 D, 2 D or D, as `combine` is "product", "concat" or "pooled".

    Raises:
        ValueError: an argument out of range, an unknown activation; int8 vectors without scales, and what
            `DINAttention` refuses.

    Differs from the paper: it says neither what DIN's output joins (`combine` is ours), nor widths, nor how
    vectors are scaled (`scale_inputs` is ours), nor masks.

    >>> block = MAKEBlock(units=(8, 6, 4), attention_units=(5,))
    >>> outputs = block(ops.ones((2, 3)), ops.ones((2, 7, 3)))
    >>> outputs["v_make"].shape[1], outputs["logit"].shape[1], block.knowledge(outputs).shape[1]
    (9, 1, 27)
    """

    def __init__(
        self,
        units: typing.Sequence[int] = (128, 64, 32),
        attention_units: typing.Sequence[int] = (80, 40),
        attention_activation: str = "prelu",
        softmax: bool = False,
        activation: str = "prelu",
        combine: str = "product",
        scale_inputs: bool = True,
        **kwargs: typing.Any,
    ) -> None:
        kwargs.pop("autocast", None)
        super().__init__(autocast=False, **kwargs)  # scales of int8 rows stay float32
        self.units = checks.require_ints("units", units)
        rule = "`units` must name three hidden layers; the fourth gives the logit."
        checks.require(len(self.units) == 3, rule, units)
        self.attention_units = checks.require_ints("attention_units", attention_units)
        rule = "`attention_units` must name at least one hidden layer."
        checks.require(len(self.attention_units) >= 1, rule, attention_units)
        checks.require_activation("attention_activation", attention_activation, ACTIVATIONS)
        checks.require_activation("activation", activation, ACTIVATIONS)
        checks.require(combine in COMBINATIONS, f"`combine` must be one of {COMBINATIONS}.", combine)
        self.attention_activation = attention_activation
        self.softmax = checks.require_bool("softmax", softmax)
        self.activation = activation
        self.combine = combine
        self.scale_inputs = checks.require_bool("scale_inputs", scale_inputs)
        self.supports_masking = True
        self.attention = DINAttention(
            self.attention_units,
            activation=attention_activation,
            softmax=softmax,
            name="attention",
            dtype=self.dtype_policy,
            trainable=self.trainable,
        )
        self.dense_layers = [
            keras.layers.Dense(width, name=f"dense_{i + 1}", dtype=self.dtype_policy, trainable=self.trainable)
            for i, width in enumerate(self.units)
        ]
        self.activation_layers = [
            make_activation(activation, f"activation_{i + 1}", self.dtype_policy, self.trainable, rank=2)
            for i in range(3)
        ]
        self.logit_layer = keras.layers.Dense(1, name="logit", dtype="float32", trainable=self.trainable)

    def build(self, target_shape: typing.Any, behaviors_shape: typing.Any) -> None:
        self.attention.build(target_shape, behaviors_shape)
        width = self._v_make_dim(behaviors_shape[-1])
        for dense, activation, units in zip(self.dense_layers, self.activation_layers, self.units):
            dense.build((None, width))
            activation.build((None, units))
            width = units
        self.logit_layer.build((None, width))
        self.built = True

    def call(
        self,
        target: typing.Any,
        behaviors: typing.Any,
        behaviors_mask: typing.Any = None,
        target_mask: typing.Any = None,
        target_scales: typing.Any = None,
        behaviors_scales: typing.Any = None,
        training: bool | None = None,
    ) -> dict[str, typing.Any]:
        training = bool(training) and self.trainable
        behaviors_mask, target_mask = self._check(
            target, behaviors, behaviors_mask, target_mask, target_scales, behaviors_scales
        )
        target = zero_hidden(self._prepare(target, target_scales), target_mask)
        behaviors = self._prepare(behaviors, behaviors_scales)
        pooled = self.attention(
            target, behaviors, behaviors_mask=behaviors_mask, target_mask=target_mask, training=training
        )
        v_make = zero_hidden(self._combine(pooled, target), target_mask)
        outputs, hidden = {"v_make": v_make}, v_make
        for i, (dense, activation) in enumerate(zip(self.dense_layers, self.activation_layers)):
            hidden = dense(hidden)
            if isinstance(activation, Dice):
                hidden = activation(hidden, mask=target_mask, training=training)
            else:
                hidden = activation(hidden)
            outputs[f"hidden_{i + 1}"] = hidden
        outputs["logit"] = self.logit_layer(hidden)
        return outputs

    def _check(
        self,
        target: typing.Any,
        behaviors: typing.Any,
        behaviors_mask: typing.Any,
        target_mask: typing.Any,
        target_scales: typing.Any,
        behaviors_scales: typing.Any,
    ) -> tuple[typing.Any, typing.Any]:
        """Raises a ValueError unless the arguments of `call` fit; returns the masks, scales of 0 hidden, as bool."""
        checks.require_history(target, behaviors)
        checks.require_scales("target", target, "target_scales", target_scales)
        checks.require_scales("behaviors", behaviors, "behaviors_scales", behaviors_scales)
        return (
            checks.as_mask("behaviors_mask", behaviors_mask, tuple(behaviors.shape)[:2], scales=behaviors_scales),
            checks.as_mask("target_mask", target_mask, tuple(target.shape)[:1], scales=target_scales),
        )

    def _prepare(self, vectors: typing.Any, scales: typing.Any) -> typing.Any:
        if scales is not None:
            vectors = unit_vectors(vectors, scales)
        vectors = ops.cast(vectors, self.compute_dtype)
        return vectors * vectors.shape[-1] ** 0.5 if self.scale_inputs else vectors

    def _combine(self, pooled: typing.Any, target: typing.Any) -> typing.Any:
        if self.combine == "pooled":
            return pooled
        if self.combine == "concat":
            return ops.concatenate([pooled, target], axis=-1)
        return ops.concatenate([pooled, target, pooled * target / target.shape[-1] ** 0.5], axis=-1)

    def _v_make_dim(self, dim: int) -> int:
        return dim * {"pooled": 1, "concat": 2, "product": 3}[self.combine]

    def knowledge(self, outputs: typing.Mapping[str, typing.Any], include_logit: bool = False) -> typing.Any:
        """Joins what the ID model takes from MAKE: v_MAKE and the three hidden outputs (section 4.3).

        Args:
            outputs: what this block returned.
            include_logit: append the logit as well; the paper names only v_MAKE and the intermediate outputs.
        Returns:
            float [B, V + sum(units)], plus 1 with the logit.
        """
        names = ["v_make", "hidden_1", "hidden_2", "hidden_3"]
        parts = [outputs[name] for name in names]
        if include_logit:
            parts.append(ops.cast(outputs["logit"], self.compute_dtype))
        return ops.concatenate(parts, axis=-1)

    def freeze(self) -> MAKEBlock:
        """Stops training of every weight and of Dice's statistics; returns the block."""
        # one by one: Keras takes `trainable = False` on a layer that has it for no change, and stops there
        for layer in (self, self.attention, *self.dense_layers, *self.activation_layers, self.logit_layer):
            layer.trainable = False
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the block alone, as a `.keras` file; `MAKEBlock.load` reads it.

        Raises:
            ValueError: the block has no weights yet (call it once before).
        """
        checks.require(self.built, "Call the block once before `save`, so that its weights exist.", "an unbuilt block")
        dim = self.attention.kernel.shape[0] // 4
        inputs = [  # names that no block can have: a model needs one name per layer
            keras.Input((dim,), name=f"{self.name}_target"),
            keras.Input((None, dim), name=f"{self.name}_behaviors"),
            keras.Input((None,), dtype="bool", name=f"{self.name}_behaviors_mask"),
        ]
        keras.Model(inputs, self(*inputs[:2], behaviors_mask=inputs[2]), name="make").save(os.fspath(path))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> MAKEBlock:
        """Reads what `save` wrote, or the block of a model that holds one; a block that was frozen is frozen again.

        Raises:
            ValueError: the file holds no block, or several.
        """
        layers = keras.models.load_model(os.fspath(path)).layers
        blocks = [layer for layer in layers if isinstance(layer, cls)]
        rule = f"`path` must hold one {cls.__name__}, as `save` writes it; {os.fspath(path)!r} holds others."
        checks.require(len(blocks) == 1, rule, [layer.name for layer in layers])
        return blocks[0]

    def compute_output_shape(self, target_shape: typing.Any, behaviors_shape: typing.Any) -> dict[str, typing.Any]:
        batch = target_shape[0]
        shapes = {"v_make": (batch, self._v_make_dim(behaviors_shape[-1]))}
        shapes.update({f"hidden_{i + 1}": (batch, width) for i, width in enumerate(self.units)})
        return {**shapes, "logit": (batch, 1)}

    def compute_output_spec(
        self,
        target: typing.Any,
        behaviors: typing.Any,
        behaviors_mask: typing.Any = None,
        target_mask: typing.Any = None,
        target_scales: typing.Any = None,
        behaviors_scales: typing.Any = None,
        training: bool | None = None,
    ) -> dict[str, typing.Any]:
        self._check(target, behaviors, behaviors_mask, target_mask, target_scales, behaviors_scales)
        shapes = self.compute_output_shape(tuple(target.shape), tuple(behaviors.shape))
        return {
            name: keras.KerasTensor(shape, dtype="float32" if name == "logit" else self.compute_dtype)
            for name, shape in shapes.items()
        }

    def compute_mask(self, inputs: typing.Any, previous_mask: typing.Any) -> None:
        return None

    def get_config(self) -> dict[str, typing.Any]:
        return {
            **super().get_config(),
            "units": list(self.units),
            "attention_units": list(self.attention_units),
            "attention_activation": self.attention_activation,
            "softmax": self.softmax,
            "activation": self.activation,
            "combine": self.combine,
            "scale_inputs": self.scale_inputs,
        }
