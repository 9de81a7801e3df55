"""Our ranker: hidden layers and the logit at the end of a click model; or the one that a run names in its place."""

from __future__ import annotations

import typing

import keras
from keras import ops

from tfmm import config as config_lib
from tfmm import own_classes
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


def build_ranker(
    config: config_lib.CTRConfig, feature_set: FeatureSet, sizes: typing.Mapping[str, int], name: str
) -> Ranker:
    """Returns the ranker that `config.model` names, or ours.

    Raises:
        ValueError: it cannot be imported, is no Ranker, or has no such settings.
    """
    if not config.model:
        return Head(feature_set, sizes, config.units, name)
    kind = own_classes.find(config.model, Ranker, "model")
    given = ("feature_set", "sizes", "name")
    own_classes.require_settings(kind, config.model_settings, given, f"The model {config.model!r}")
    return kind(feature_set, sizes, name=name, **config.model_settings)
