"""MAKE for training: one knowledge extractor per modality and sequence on int8 item vectors (section 4.3)."""

from __future__ import annotations

import pathlib
import typing

import keras
from keras import ops

from tfmm import artifacts
from tfmm import config as config_lib
from tfmm import vectors as vectors_lib
from tfmm.layers import MAKEBlock
from tfmm.training import replicas
from tfmm.vectors import Vectors

KIND = "make"
WEIGHTS = "make.weights.h5"
def build_block(config: config_lib.MAKEConfig, name: str) -> MAKEBlock:
    """Returns the knowledge extractor that `config` describes."""
    return MAKEBlock(units=config.units, attention_units=config.attention_units, softmax=config.softmax, name=name)


@keras.saving.register_keras_serializable(package="tfmm")
class MAKEModel(keras.Model):
    """One MAKEBlock per modality and sequence, each with its own logit; they share nothing.

    Inputs are a dict; per modality m: `{m}_target_rows` int8 [B, D], `{m}_target_scales` float32 [B],
    `{m}_target_mask` bool [B], and per sequence s `{m}_{s}_rows` int8 [B, L, D] with scales and mask [B, L].
    """

    def __init__(
        self,
        config: config_lib.MAKEConfig | dict[str, typing.Any],
        dims: typing.Mapping[str, int],
        sequences: typing.Sequence[str] = ("behavior",),
        name: str = "make",
        **kwargs: typing.Any,
    ) -> None:
        """Makes the blocks.

        Args:
            config: the settings, or what `config.to_dict` made of them.
            dims: D per modality.
            sequences: the names of the sequences that MAKE reads.
            name: the model's name.
            **kwargs: of keras.Model.
        """
        super().__init__(name=name, autocast=False, **kwargs)  # scales of int8 rows and numbers stay float32
        self.settings = config_lib.from_dict(config_lib.MAKEConfig, config) if isinstance(config, dict) else config
        if not dims:
            raise ValueError("`dims` must name at least one modality: the catalog has no item vectors.")
        if not sequences:
            raise ValueError("`sequences` must name at least one sequence that MAKE reads.")
        self.dims, self.sequences = dict(dims), tuple(sequences)
        self.blocks = {
            block_name(modality, sequence): build_block(self.settings, f"make_{block_name(modality, sequence)}")
            for modality in self.dims
            for sequence in self.sequences
        }

    def build(self, input_shape: typing.Any = None) -> None:
        """Makes every weight; the input shape is not needed."""
        for modality, dim in self.dims.items():
            for sequence in self.sequences:
                build_extractor(self.blocks[block_name(modality, sequence)], dim)
        self.built = True

    def call(self, inputs: typing.Mapping[str, typing.Any], training: bool | None = None) -> dict[str, typing.Any]:
        """Returns the logit float32 [B] per `block_name`."""
        return {
            block_name(modality, sequence): extract(
                self.blocks[block_name(modality, sequence)],
                vectors_lib.take(inputs, modality, vectors_lib.TARGET),
                vectors_lib.take(inputs, modality, sequence),
                training,
            )["logit"][:, 0]
            for modality in self.dims
            for sequence in self.sequences
        }

    def get_config(self) -> dict[str, typing.Any]:
        own = {"config": config_lib.to_dict(self.settings), "dims": self.dims, "sequences": list(self.sequences)}
        return {**super().get_config(), **own}


def block_name(modality: str, sequence: str) -> str:
    """Returns the name of the block of a modality and a sequence."""
    return f"{modality}_{sequence}"


def build_extractor(block: MAKEBlock, dim: int) -> None:
    """Makes a block's weights for item vectors of `dim` values."""
    if not block.built:
        block(ops.zeros((1, dim)), ops.zeros((1, 1, dim)), behaviors_mask=ops.zeros((1, 1), "bool"))


def extract(
    block: MAKEBlock, target: Vectors, behaviors: Vectors, training: bool | None = None
) -> dict[str, typing.Any]:
    """Applies a block to item vectors; see MAKEBlock for what it returns."""
    return block(
        target.rows,
        behaviors.rows,
        behaviors_mask=behaviors.mask,
        target_mask=target.mask,
        target_scales=target.scales,
        behaviors_scales=behaviors.scales,
        training=training,
    )


def loss(
    logit: typing.Any, label: typing.Any, mask: typing.Any, weight: typing.Any = None, negative_rate: typing.Any = None
) -> typing.Any:
    """Returns the click loss (equation 5), averaged over the rows that can be judged.

    Args:
        logit: float32 [B].
        label: int [B], 0 or 1.
        mask: bool [B], True where a row counts: it is no filler, and the target has an embedding.
        weight: float32 [B] >= 0, how often each counts; None: once.
        negative_rate: float32 [B] or a number in (0, 1], the share of such negatives that the log keeps; None: 1.
    Returns:
        float32 []: the mean, by weight, of -y log(sigmoid(x)) - (1 - y) log(1 - sigmoid(x)), where x = logit -
        log(negative_rate) is the logit in the log as it was sampled; 0 where no row counts. On several replicas, what
        has that of the global batch as its mean over them.

    Differs from the paper: a mean and not a sum, so that the learning rate does not depend on the batch size;
    rows whose target has no embedding are left out.

    >>> round(float(loss(ops.array([0.0, 5.0]), ops.array([1, 0]), ops.array([True, False]))), 4)
    0.6931
    """
    label = ops.cast(label, "float32")
    counts = ops.cast(mask, "float32")
    if weight is not None:
        counts = counts * weight
    if negative_rate is not None:
        logit = logit - ops.log(ops.where(mask, negative_rate, 1.0))  # 1 of fillers, whose rate is 0
    cross_entropy = ops.maximum(logit, 0.0) - logit * label + ops.log1p(ops.exp(-ops.abs(logit)))
    total = replicas.mean(ops.sum(counts))
    return ops.sum(cross_entropy * counts) / ops.where(total > 0.0, total, 1.0)


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
    facts |= {"dims": model.dims, "sequences": list(model.sequences)}
    return artifacts.write_manifest(folder, KIND, model.settings, parents, **facts)


def load_model(make_dir: str | pathlib.Path) -> MAKEModel:
    """Loads what `save_model` wrote.

    Raises:
        FileNotFoundError: the folder is not complete.
        ValueError: it holds another kind of artifact.
    """
    manifest = artifacts.read_manifest(make_dir, KIND, ("sequences",))
    model = MAKEModel(manifest["config"], manifest["dims"], manifest["sequences"])
    model.build()
    model.load_weights(pathlib.Path(make_dir) / WEIGHTS)
    return model
