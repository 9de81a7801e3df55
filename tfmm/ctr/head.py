"""The hidden layers and the logit at the end of a click model."""

from __future__ import annotations

import typing

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="tfmm")
class Head(keras.layers.Layer):
    """The logit float32 [B] of inputs float32 [B, F]: hidden layers of `units` with PReLU, then one output."""

    def __init__(self, units: typing.Sequence[int], **kwargs: typing.Any) -> None:
        super().__init__(**kwargs)
        self.units = tuple(units)
        self.hidden = [keras.layers.Dense(width, name=f"dense_{i}") for i, width in enumerate(self.units)]
        self.activations = [keras.layers.PReLU(name=f"prelu_{i}") for i in range(len(self.units))]
        self.output_layer = keras.layers.Dense(1, name="logit", dtype="float32")

    def build(self, input_shape: typing.Any) -> None:
        width = input_shape[-1]
        for dense, activation in zip(self.hidden, self.activations, strict=True):
            dense.build((None, width))
            width = dense.units
            activation.build((None, width))
        self.output_layer.build((None, width))

    def call(self, inputs: typing.Any) -> typing.Any:
        x = inputs
        for dense, activation in zip(self.hidden, self.activations, strict=True):
            x = activation(dense(x))
        return ops.squeeze(self.output_layer(x), axis=-1)

    def start_at(self, logit: float) -> None:
        """Sets the bias of the output: what untrained weights give, about."""
        self.output_layer.bias.assign([logit])

    def get_config(self) -> dict[str, typing.Any]:
        return {**super().get_config(), "units": list(self.units)}
