"""MAKE, the Multimodal Knowledge Extractor (section 4.3): DIN over multimodal vectors."""

from __future__ import annotations

import os
import typing

import keras
from keras import ops

from tfmm.layers import checks
from tfmm.layers.din import DINAttention, make_activation
from tfmm.layers.similarity import unit_vectors

COMBINATIONS = ("product", "concat", "pooled")


@keras.saving.register_keras_serializable(package="tfmm")
class MAKEBlock(keras.layers.Layer):
    """v_MAKE = DIN(behaviors, target), logit = MLP(v_MAKE) (MAKE, section 4.3, equations 3 and 4).

    Pre-train it alone on clicks over many epochs (equation 5: binary cross-entropy of `logit`), `freeze` it,
    and give `knowledge(outputs)` to the ID model.

    Args:
        units: three hidden widths of the four-layer MLP; the fourth layer is the logit.
        attention_units, attention_activation, softmax: of the DIN attention (see `DINAttention`).
        activation: of the MLP's hidden layers: "prelu", "dice" or the name of a Keras activation.
        combine: what v_MAKE holds: "product" [pooled, target, pooled * target / sqrt(D)], "concat" [pooled,
            target] or "pooled" (the attention's sum alone).
        scale_inputs: multiply the vectors by sqrt(D), so that the values of unit vectors have about unit
            variance.

    Call arguments:
        target: float [B, D], vectors of norm 1; or int8 [B, D] with `target_scales`; or [C, D] with one
            history.
        behaviors: float [B, L, D] or int8 [B, L, D] with `behaviors_scales`; or [1, L, D].
        behaviors_mask: bool [B, L], True where a behavior with an embedding exists; None: all do.
        target_mask: bool [B], True where the target has an embedding; a row without one gets v_MAKE = 0.
        target_scales: float32 [B], 1 / norm of each row; behaviors_scales: float32 [B, L].

    Returns:
        dict of "v_make" float [B, V], "hidden_1", "hidden_2", "hidden_3" float [B, units[i]] and "logit"
        float32 [B, 1].

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
        checks.require(
            len(units) == 3, "`units` must name three hidden layers; the fourth gives the logit.", units
        )
        checks.require(combine in COMBINATIONS, f"`combine` must be one of {COMBINATIONS}.", combine)
        self.units = tuple(int(u) for u in units)
        self.attention_units = tuple(int(u) for u in attention_units)
        self.attention_activation = attention_activation
        self.softmax = softmax
        self.activation = activation
        self.combine = combine
        self.scale_inputs = scale_inputs
        self.supports_masking = True
        self.attention = DINAttention(
            self.attention_units,
            activation=attention_activation,
            softmax=softmax,
            name="attention",
            dtype=self.dtype_policy,
        )
        self.dense_layers = [
            keras.layers.Dense(width, name=f"dense_{i + 1}", dtype=self.dtype_policy)
            for i, width in enumerate(self.units)
        ]
        self.activation_layers = [
            make_activation(activation, f"activation_{i + 1}", self.dtype_policy, rank=2) for i in range(3)
        ]
        self.logit_layer = keras.layers.Dense(1, name="logit", dtype="float32")

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
        target = self._prepare("target", target, target_scales)
        behaviors = self._prepare("behaviors", behaviors, behaviors_scales)
        v_make = self._combine(
            self.attention(target, behaviors, behaviors_mask=behaviors_mask, training=training), target
        )
        if target_mask is not None:
            checks.require_mask("target_mask", target_mask, (target.shape[0],))
            v_make = ops.where(
                ops.expand_dims(ops.cast(target_mask, "bool"), -1), v_make, ops.zeros_like(v_make)
            )
        outputs, hidden = {"v_make": v_make}, v_make
        for i, (dense, activation) in enumerate(zip(self.dense_layers, self.activation_layers)):
            hidden = (
                activation(dense(hidden), training=training)
                if self.activation == "dice"
                else activation(dense(hidden))
            )
            outputs[f"hidden_{i + 1}"] = hidden
        outputs["logit"] = self.logit_layer(hidden)
        return outputs

    def _prepare(self, name: str, vectors: typing.Any, scales: typing.Any) -> typing.Any:
        if scales is not None:
            vectors = unit_vectors(vectors, scales)
        checks.require(
            "float" in keras.backend.standardize_dtype(vectors.dtype),
            f"int8 `{name}` need `{name}_scales` (1 / norm of each row).",
            vectors.dtype,
        )
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
        self.trainable = False
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the block alone, as a `.keras` file; `MAKEBlock.load` reads it.

        Raises:
            ValueError: the block has no weights yet (call it once before).
        """
        checks.require(
            self.built, "Call the block once before `save`, so that its weights exist.", "an unbuilt block"
        )
        dim = self.attention.kernel.shape[0] // 4
        inputs = {
            "target": keras.Input((dim,), name="target"),
            "behaviors": keras.Input((None, dim), name="behaviors"),
            "behaviors_mask": keras.Input((None,), dtype="bool", name="behaviors_mask"),
        }
        keras.Model(inputs, self(**inputs), name="make").save(os.fspath(path))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> MAKEBlock:
        """Reads what `save` wrote; a block that was frozen is frozen again."""
        model = keras.models.load_model(os.fspath(path))
        return next(layer for layer in model.layers if isinstance(layer, cls))

    def compute_output_shape(
        self, target_shape: typing.Any, behaviors_shape: typing.Any
    ) -> dict[str, typing.Any]:
        batch = target_shape[0]
        shapes = {"v_make": (batch, self._v_make_dim(behaviors_shape[-1]))}
        shapes.update({f"hidden_{i + 1}": (batch, width) for i, width in enumerate(self.units)})
        return {**shapes, "logit": (batch, 1)}

    def compute_output_spec(self, *args: typing.Any, **kwargs: typing.Any) -> dict[str, typing.Any]:
        spec = super().compute_output_spec(*args, **kwargs)
        return {**spec, "logit": keras.KerasTensor(spec["logit"].shape, dtype="float32")}

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
