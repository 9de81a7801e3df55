"""MAKE for training: one knowledge extractor per modality on int8 item vectors (section 4.3)."""

from __future__ import annotations

import pathlib
import typing

import keras
from keras import ops

from tfmm import artifacts
from tfmm import config as config_lib
from tfmm.layers import MAKEBlock

KIND = "make"
WEIGHTS = "make.weights.h5"
VECTOR_PARTS = (
    "target_rows",
    "target_scales",
    "target_mask",
    "behavior_rows",
    "behavior_scales",
    "behavior_mask",
)


def build_block(config: config_lib.MAKEConfig, name: str) -> MAKEBlock:
    """Returns the knowledge extractor that `config` describes."""
    return MAKEBlock(units=config.units, attention_units=config.attention_units, softmax=config.softmax, name=name)


@keras.saving.register_keras_serializable(package="tfmm")
class MAKEModel(keras.Model):
    """One MAKEBlock per modality, each with its own logit; they share nothing.

    Inputs are a dict; per modality m: `{m}_target_rows` int8 [B, D], `{m}_target_scales` float32 [B],
    `{m}_target_mask` bool [B], and `{m}_behavior_rows` int8 [B, L, D] with scales and mask [B, L].
    """

    def __init__(
        self,
        config: config_lib.MAKEConfig | dict[str, typing.Any],
        dims: typing.Mapping[str, int],
        name: str = "make",
        **kwargs: typing.Any,
    ) -> None:
        """Makes the blocks.

        Args:
            config: the settings, or what `config.to_dict` made of them.
            dims: D per modality.
            name: the model's name.
            **kwargs: of keras.Model.
        """
        super().__init__(name=name, **kwargs)
        self.settings = config_lib.from_dict(config_lib.MAKEConfig, config) if isinstance(config, dict) else config
        if not dims:
            raise ValueError("`dims` must name at least one modality: the catalog has no item vectors.")
        self.dims = dict(dims)
        self.blocks = {modality: build_block(self.settings, f"make_{modality}") for modality in self.dims}

    def build(self, input_shape: typing.Any = None) -> None:
        """Makes every weight; the input shape is not needed."""
        for modality, dim in self.dims.items():
            build_extractor(self.blocks[modality], dim)
        self.built = True

    def call(self, inputs: typing.Mapping[str, typing.Any], training: bool | None = None) -> dict[str, typing.Any]:
        """Returns the logit float32 [B] per modality."""
        return {m: extract(self.blocks[m], inputs, m, training)["logit"][:, 0] for m in self.dims}

    def get_config(self) -> dict[str, typing.Any]:
        return {**super().get_config(), "config": config_lib.to_dict(self.settings), "dims": self.dims}


def build_extractor(block: MAKEBlock, dim: int) -> None:
    """Makes a block's weights for item vectors of `dim` values."""
    if not block.built:
        block(ops.zeros((1, dim)), ops.zeros((1, 1, dim)), behaviors_mask=ops.zeros((1, 1), "bool"))


def extract(
    block: MAKEBlock, inputs: typing.Mapping[str, typing.Any], modality: str, training: bool | None = None
) -> dict[str, typing.Any]:
    """Applies a modality's block to that modality's inputs; see MAKEBlock for what it returns."""
    parts = {name: inputs[f"{modality}_{name}"] for name in VECTOR_PARTS}
    return block(
        parts["target_rows"],
        parts["behavior_rows"],
        behaviors_mask=parts["behavior_mask"],
        target_mask=parts["target_mask"],
        target_scales=parts["target_scales"],
        behaviors_scales=parts["behavior_scales"],
        training=training,
    )


def loss(logit: typing.Any, label: typing.Any, mask: typing.Any) -> typing.Any:
    """Returns the click loss (equation 5), averaged over the rows that can be judged.

    Args:
        logit: float32 [B].
        label: int [B], 0 or 1.
        mask: bool [B], True where a row counts: it is no filler, and the target has an embedding.
    Returns:
        float32 []: the mean of -y log(sigmoid(logit)) - (1 - y) log(1 - sigmoid(logit)); 0 where no row
        counts.

    Differs from the paper: a mean and not a sum, so that the learning rate does not depend on the batch size;
    rows whose target has no embedding are left out.

    >>> round(float(loss(ops.array([0.0, 5.0]), ops.array([1, 0]), ops.array([True, False]))), 4)
    0.6931
    """
    label = ops.cast(label, "float32")
    weight = ops.cast(mask, "float32")
    cross_entropy = ops.maximum(logit, 0.0) - logit * label + ops.log1p(ops.exp(-ops.abs(logit)))
    return ops.sum(cross_entropy * weight) / ops.maximum(ops.sum(weight), 1.0)


def save_model(
    model: MAKEModel,
    output_dir: str | pathlib.Path,
    parents: typing.Sequence[str | pathlib.Path] = (),
    **facts: typing.Any,
) -> dict[str, typing.Any]:
    """Writes the weights of every block, and the manifest."""
    folder = pathlib.Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_weights(folder / WEIGHTS)
    return artifacts.write_manifest(folder, KIND, model.settings, parents, dims=model.dims, **facts)


def load_model(make_dir: str | pathlib.Path) -> MAKEModel:
    """Loads what `save_model` wrote.

    Raises:
        FileNotFoundError: the folder is not complete.
        ValueError: it holds another kind of artifact.
    """
    manifest = artifacts.read_manifest(make_dir, KIND)
    model = MAKEModel(manifest["config"], manifest["dims"])
    model.build()
    model.load_weights(pathlib.Path(make_dir) / WEIGHTS)
    return model
