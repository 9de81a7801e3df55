"""Pre-ranking: a light head on the ranking model's embeddings, for thousands of candidates of one user.

The paper names the stage (section 6.4) and gives no design; this one is ours. What is the user's is computed once per
request. A candidate costs a comparison with each behavior, by one matrix product of int8 rows for all candidates, the
histogram of its similarities (SimTier), a few dot products of ID embeddings, and a small hidden layer.
"""

from __future__ import annotations

import pathlib
import typing

import keras
from keras import ops

from tfmm import artifacts
from tfmm import config as config_lib
from tfmm import vectors as vectors_lib
from tfmm.ctr import integrations
from tfmm.ctr import model as model_lib
from tfmm.ctr.impressions import Impressions
from tfmm.layers import SimTierLayer
from tfmm.pre_ranking import PreRankingConfig

KIND = "pre_ranking"
WEIGHTS = "pre_ranking.weights.h5"


class PreRankingModel(keras.Model):
    """Scores impressions from the ranking model's embeddings and SimTier.

    Inputs are those of the ranking model (`ctr.model.CTRModel`): B rows, or one user and C candidates where those of
    users, contexts and sequences have a static batch of 1. Embeddings are read in the ranking model's tables, which it
    neither trains nor saves. Inputs of the hidden layers, per candidate (E an embedding, N tiers):

    - the item, float32 [C, dim]: a linear map of the embeddings of its columns, and its dot product with the user;
    - per sequence, the dot product of the candidate's embeddings and the mean of the behaviors';
    - per modality, whether the candidate has a vector, and per sequence log(1 + counts) of SimTier [C, N] and the
      log of how many behaviors lack a vector.

    The user, float32 [1, dim], is a hidden layer of the columns of users and contexts, of each sequence's mean and of
    the log of its length.

    Returns a dict: `logit` and `score` = sigmoid(logit), float32 [B]. All is float32 whatever the policy.
    """

    def __init__(
        self, config: PreRankingConfig | dict[str, typing.Any], ranking: model_lib.CTRModel, name: str = "pre_ranking"
    ) -> None:
        """Makes the layers.

        Args:
            config: the settings, or what `config.to_dict` made of them.
            ranking: a built ranking model.
            name: the model's name.
        """
        super().__init__(name=name, autocast=False)
        self.settings: PreRankingConfig = config_lib.as_config(PreRankingConfig, config)
        self.feature_set, self.dims = ranking.feature_set, dict(ranking.dims)
        self._tables = lambda: ranking.embeddings  # in a function, so that Keras does not take them for its own
        known = [
            column
            for column in self.feature_set.columns
            if column.sequence is None
            and (not column.feature.is_embedded or ranking.embeddings[column.feature.embedding].built)
        ]  # a ranker of the user's own may leave tables unused
        self._columns = {side: [c.name for c in known if c.side == side] for side in ("user", "item")}
        dtype = "float32"
        self.tiers = SimTierLayer(self.settings.num_tiers, "log1p", dtype=dtype, name="simtier")
        self.user_hidden = keras.layers.Dense(2 * self.settings.dim, "relu", dtype=dtype, name="user_hidden")
        self.user = keras.layers.Dense(self.settings.dim, dtype=dtype, name="user")
        self.item = keras.layers.Dense(self.settings.dim, use_bias=False, dtype=dtype, name="item")
        self.hidden = [
            keras.layers.Dense(width, "relu", dtype=dtype, name=f"dense_{i}")
            for i, width in enumerate(self.settings.units)
        ]
        self.output_layer = keras.layers.Dense(1, dtype=dtype, name="logit")

    def build(self, input_shape: typing.Any = None) -> None:
        """Makes every weight, by one pass over a row of padding; the input shape is not needed."""
        self.built = True
        self(model_lib.padding_inputs(self.feature_set, self.dims))

    def call(self, inputs: typing.Mapping[str, typing.Any], training: bool | None = None) -> dict[str, typing.Any]:
        """Returns `logit` and `score`, see the class."""
        impressions = Impressions(self.feature_set, inputs, self._tables(), {}, training).frozen()
        x = impressions.join([*self._of_ids(impressions), *self._of_vectors(impressions, inputs)])
        for layer in self.hidden:
            x = layer(x)
        logit = ops.squeeze(self.output_layer(x), axis=-1)
        return {"logit": logit, "score": ops.sigmoid(logit)}

    def _of_ids(self, impressions: Impressions) -> list[typing.Any]:
        of_user = [impressions.column(name) for name in self._columns["user"]]
        dots = []
        for sequence in self.feature_set.sequences:
            target, behaviors, is_behavior = impressions.behaviors(sequence.name)
            weights = ops.cast(is_behavior, "float32")[..., None]
            length = ops.sum(weights, axis=1)
            mean = ops.sum(ops.cast(behaviors, "float32") * weights, axis=1) / ops.maximum(length, 1.0)
            of_user += [mean, ops.log1p(length)]
            dots.append(ops.sum(mean * ops.cast(target, "float32"), axis=-1, keepdims=True))
        user = self.user(self.user_hidden(_joined(of_user)))
        item = self.item(_joined([impressions.column(name) for name in self._columns["item"]]))
        return [item, ops.sum(user * item, axis=-1, keepdims=True), *dots]

    def _of_vectors(self, impressions: Impressions, inputs: typing.Mapping[str, typing.Any]) -> list[typing.Any]:
        parts = []
        for modality in self.dims:
            target = vectors_lib.take(inputs, modality, vectors_lib.TARGET)
            parts.append(ops.cast(target.mask, "float32")[:, None])
            for sequence in filter(lambda sequence: sequence.simtier, self.feature_set.sequences):
                of = impressions.behaviors(sequence.name)
                vectors = vectors_lib.take(inputs, modality, sequence.name)
                without = ops.logical_and(of.is_behavior, ops.logical_not(vectors.mask))
                parts.append(ops.log1p(ops.sum(ops.cast(without, "float32"), axis=1, keepdims=True)))
                parts.append(integrations.Context(*of, target, vectors, False).compared_by(self.tiers))
        return parts


def _joined(parts: typing.Iterable[typing.Any]) -> typing.Any:
    return ops.concatenate([ops.cast(part, "float32") for part in parts], axis=-1)


def save_model(
    model: PreRankingModel,
    output_dir: str | pathlib.Path,
    parents: typing.Sequence[str | pathlib.Path],
    **facts: typing.Any,
) -> dict[str, typing.Any]:
    """Writes the head's own weights, and the manifest.

    Args:
        model: a built head.
        output_dir: the artifact's folder.
        parents: folders of the artifacts that it was made from, the ranking model's first.
        **facts: further JSON values for the manifest, such as metrics.
    Returns:
        The manifest.
    """
    folder = pathlib.Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_weights(folder / WEIGHTS)
    declared = {"feature_set": config_lib.to_dict(model.feature_set), "dims": model.dims}
    return artifacts.write_manifest(folder, KIND, model.settings, parents, **declared, **facts)


def load_model(model_dir: str | pathlib.Path, ranking: model_lib.CTRModel) -> PreRankingModel:
    """Loads what `save_model` wrote, on a ranking model.

    Raises:
        FileNotFoundError: the folder is not complete.
        ValueError: it holds another kind of artifact, or a head of a ranking model that is declared otherwise.
    """
    manifest = artifacts.read_manifest(model_dir, KIND, ("feature_set", "dims"))
    own = {"feature_set": config_lib.to_dict(ranking.feature_set), "dims": dict(ranking.dims)}
    if different := [name for name, value in own.items() if manifest[name] != value]:
        raise ValueError(
            f"{model_dir} must be the head of a ranking model of this declaration. Received: another "
            f"{' and '.join(different)}. Train it again: `tfmm train --head pre-ranking`."
        )
    model = PreRankingModel(manifest["config"], ranking)
    model.build()
    model.load_weights(pathlib.Path(model_dir) / WEIGHTS)
    return model
