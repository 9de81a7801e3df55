"""Our ranker: hidden layers and the logit at the end of a click model."""

from __future__ import annotations

import typing

import keras
from keras import ops

from tfmm.ctr.impressions import Impressions
from tfmm.ctr.ranker import Ranker
from tfmm.features import FeatureSet


class Head(Ranker):
    """Hidden layers of `units` with PReLU on all that is known, then one output."""

    def __init__(
        self,
        feature_set: FeatureSet,
        sizes: typing.Mapping[str, int],
        units: typing.Sequence[int],
        name: str | None = None,
    ) -> None:
        super().__init__(feature_set, sizes, name)
        self.hidden = [keras.layers.Dense(width, name=f"dense_{i}") for i, width in enumerate(units)]
        self.activations = [keras.layers.PReLU(name=f"prelu_{i}") for i in range(len(units))]
        self.output_layer = keras.layers.Dense(1, name="logit", dtype="float32")

    def call(
        self, impressions: Impressions, knowledge: typing.Sequence[typing.Any], training: bool | None = None
    ) -> typing.Any:
        x = impressions.join([impressions.joined(), *knowledge])
        for dense, activation in zip(self.hidden, self.activations, strict=True):
            x = activation(dense(x))
        return ops.squeeze(self.output_layer(x), axis=-1)

    def start_at(self, logit: float) -> None:
        """Sets the bias of the output: what untrained weights give, about."""
        self.output_layer.bias.assign([logit])
