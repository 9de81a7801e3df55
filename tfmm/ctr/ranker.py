"""The part of a click model that a user may bring: from impressions and knowledge of item vectors to a logit.

`CTRConfig.model` names it by module and class, `my_team.models:Ranker`; "" is ours, `tfmm.ctr.head.Head`. All else is
the same for both, see `tfmm.ctr.model.CTRModel`: inputs, methods, MAKE, hidden vectors, losses, saving, export.
"""

from __future__ import annotations

import typing

import keras

from tfmm.ctr.impressions import Impressions
from tfmm.features import FeatureSet


class Ranker(keras.layers.Layer):
    """Scores impressions: a subclass makes its layers in `__init__`, whose further arguments are its settings.

    With `CTRConfig.id_head` a click model with item vectors has two of it: one scores targets that have a vector, one,
    which gets no knowledge, all others. The embeddings that `impressions` gives learn from the second alone, so that
    they are as good as the ID-only model's; embeddings of its own learn with the ranker that made them. Without
    `id_head` there is one, which scores every row. The ID-only model has one, without knowledge.

    Layers build themselves when they are first called; those that only training calls must be built in `__init__`.
    Embedding layers of its own train at `CTRConfig.embedding_learning_rate`, as ours do.
    """

    def __init__(self, feature_set: FeatureSet, sizes: typing.Mapping[str, int], name: str | None = None) -> None:
        """Stores what is declared.

        Args:
            feature_set: features and sequences, lengths filled in.
            sizes: number of indices per table of `feature_set.embeddings`, special ones included.
            name: the layer's name.
        """
        super().__init__(name=name)
        self.feature_set, self.sizes = feature_set, dict(sizes)
        self.built = True

    def call(
        self, impressions: Impressions, knowledge: typing.Sequence[typing.Any], training: bool | None = None
    ) -> typing.Any:
        """Returns the logit of each impression, before the sigmoid.

        Args:
            impressions: B rows without item vectors: `impressions.inputs` as they are, or embedded.
            knowledge: what the methods make of item vectors, float32 [B or 1, .] each; empty for ids alone.
            training: whether it trains.
        Returns:
            float32 [B].
        """
        raise NotImplementedError(f"{type(self).__name__} must have a method `call`.")

    def start_at(self, logit: float) -> None:
        """Sets a bias so that an untrained ranker gives about this logit; one without leaves it to training.

        Called once, before training, where the log keeps only a share of its negatives (`Label.negative_rate`).
        """
