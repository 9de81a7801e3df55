"""The click model: ID embeddings with DIN, and per modality SimTier and MAKE knowledge (section 4)."""

from __future__ import annotations

import itertools
import pathlib
import typing

import keras
from keras import ops

from tfmm import artifacts, features
from tfmm import config as config_lib
from tfmm.layers import DINAttention, SimTierLayer
from tfmm.make import model as make_model

KIND = "ctr"
WEIGHTS = "ctr.weights.h5"
KNOWLEDGE_SCALE = 0.1  # hundreds of inputs: a step of each of their weights must not swing the logit
ID_INPUTS = ("user_index", "item_index", "category_index", "behavior_item_index", "behavior_category_index")


def input_names(modalities: typing.Iterable[str]) -> tuple[str, ...]:
    """Returns the names of the model's inputs.

    >>> input_names(["image"])[-2:]
    ('image_behavior_scales', 'image_behavior_mask')
    """
    return ID_INPUTS + tuple(f"{modality}_{part}" for modality in modalities for part in make_model.VECTOR_PARTS)


@keras.saving.register_keras_serializable(package="tfmm")
class CTRModel(keras.Model):
    """Scores impressions from IDs alone, or from IDs with multimodal knowledge.

    Inputs are a dict (B rows, L behaviors, D values per vector):

    - `user_index`, `item_index`, `category_index`: int [B]; `behavior_item_index`, `behavior_category_index`:
      int [B, L], 0 is padding;
    - per modality m: `{m}_target_rows` int8 [B, D], `{m}_target_scales` float32 [B], `{m}_target_mask`
      bool [B], `{m}_behavior_rows` int8 [B, L, D], `{m}_behavior_scales` float32 [B, L],
      `{m}_behavior_mask` bool [B, L].

    To rank C candidates for one user, give the user's inputs (`user_index`, all of `behavior`) with a static
    batch of 1 and the candidates' with batch C: the user side is computed once.

    Returns a dict: `logit` and `score` = sigmoid(logit), float32 [B]. With modalities and `config.id_head`
    also `id_logit`, which is `logit` where the target has no vector in any modality. In training also
    `logit_without_{m}` per set of modalities of `hidden_sets`: as if no target had vectors in these.

    Differs from the paper: the count of behaviors without an embedding and whether the target has one are
    inputs of their own, beside the tiers, so that a missing embedding is never taken for similarity 0. MAKE's
    knowledge is scaled by 0.1: its inputs are many, and at full size they made the scores ill-calibrated. A
    target without any vector has a head of its own, and ID embeddings and their attention learn from that
    head alone: inside the multimodal model stands its ID-only twin, as good as if it were trained alone.
    """

    def __init__(
        self,
        config: config_lib.CTRConfig | dict[str, typing.Any],
        make_config: config_lib.MAKEConfig | dict[str, typing.Any],
        vocabulary_sizes: typing.Mapping[str, int],
        dims: typing.Mapping[str, int],
        max_behaviors: int,
        name: str = "ctr",
        **kwargs: typing.Any,
    ) -> None:
        """Makes the layers.

        Args:
            config: the settings, or what `config.to_dict` made of them; `modalities=()` is the ID-only twin.
            make_config: the settings of the MAKE blocks.
            vocabulary_sizes: number of indices per vocabulary of `features.VOCABULARIES`, 0 and 1 included.
            dims: D per modality of `config.modalities`.
            max_behaviors: L of the examples that the model is trained on.
            name: the model's name.
            **kwargs: of keras.Model.
        Raises:
            ValueError: a modality without vectors, a vocabulary without size, or no source of knowledge.
        """
        super().__init__(name=name, **kwargs)
        self.settings = config_lib.from_dict(config_lib.CTRConfig, config) if isinstance(config, dict) else config
        self.make_settings = (
            config_lib.from_dict(config_lib.MAKEConfig, make_config) if isinstance(make_config, dict) else make_config
        )
        self.modalities = tuple(self.settings.modalities)
        missing = sorted(set(self.modalities) - set(dims))
        if missing:
            raise ValueError(
                f"`config.modalities` must have vectors in the index, which holds {sorted(dims)}. Missing: {missing}."
            )
        if set(vocabulary_sizes) != set(features.VOCABULARIES) or min(vocabulary_sizes.values()) < 2:
            raise ValueError(
                f"`vocabulary_sizes` must give at least 2 for each of {features.VOCABULARIES}. "
                f"Received: {dict(vocabulary_sizes)}."
            )
        if self.modalities and not (self.settings.use_simtier or self.settings.use_make):
            raise ValueError("With `modalities`, `use_simtier` or `use_make` must be True.")
        self.vocabulary_sizes = dict(vocabulary_sizes)
        self.dims = {modality: int(dims[modality]) for modality in self.modalities}
        self.max_behaviors = int(max_behaviors)

        self.user_embedding = _embedding(vocabulary_sizes["user_id"], self.settings.user_dim, "user_embedding")
        self.item_embedding = _embedding(vocabulary_sizes["item_id"], self.settings.item_dim, "item_embedding")
        self.category_embedding = _embedding(
            vocabulary_sizes["category"], self.settings.category_dim, "category_embedding"
        )
        self.attention = DINAttention(self.settings.attention_units, softmax=self.settings.softmax, name="attention")
        self.simtier = SimTierLayer(self.settings.num_tiers, self.settings.tier_output, name="simtier")
        self.make_blocks = (
            {m: make_model.build_block(self.make_settings, f"make_{m}") for m in self.modalities}
            if self.settings.use_make
            else {}
        )
        self.head = Head(self.settings.units, name="head")
        self.id_head = Head(self.settings.units, name="id_head") if self.modalities and self.settings.id_head else None

    def build(self, input_shape: typing.Any = None) -> None:
        """Makes every weight, by one pass over a row of padding; the input shape is not needed."""
        self.built = True
        self(padding_inputs(self.dims, self.max_behaviors))

    def call(self, inputs: typing.Mapping[str, typing.Any], training: bool | None = None) -> dict[str, typing.Any]:
        """Returns `logit` and `score`, see the class."""
        target = self._items(inputs["item_index"], inputs["category_index"])  # [B, E]
        behaviors = self._items(inputs["behavior_item_index"], inputs["behavior_category_index"])  # [B or 1, L, E]
        is_behavior = inputs["behavior_item_index"] != features.PADDING
        interest = self.attention(target, behaviors, behaviors_mask=is_behavior, training=training)
        weights = ops.cast(is_behavior, behaviors.dtype)[..., None]
        length = ops.sum(weights, axis=1)  # [B or 1, 1]
        average = ops.sum(behaviors * weights, axis=1) / ops.maximum(length, 1.0)
        ids = [
            self.user_embedding(inputs["user_index"]),
            average,
            ops.log1p(length),
            target,
            interest,
            interest * target,
            average * target,
        ]
        rows = ops.shape(target)[0]
        ids = [ops.broadcast_to(ops.cast(part, "float32"), (rows, part.shape[-1])) for part in ids]
        id_parts = ops.concatenate(ids, axis=-1)
        knowledge = {m: self._knowledge(inputs, m, is_behavior, training) for m in self.modalities}

        def logit_without(hidden: typing.Collection[str]) -> typing.Any:
            """Returns the logit as if no target had a vector in some modalities."""
            parts = [id_parts if self.id_head is None else ops.stop_gradient(id_parts)]
            for modality, (missing, of_target) in knowledge.items():
                parts.append(ops.broadcast_to(missing, (rows, 1)))
                parts += [ops.zeros_like(part) for part in of_target] if modality in hidden else of_target
            return self.head(ops.concatenate(parts, axis=-1))

        outputs = {"logit": logit_without(())}
        if training:
            outputs |= {f"logit_without_{'_'.join(hidden)}": logit_without(hidden) for hidden in self.hidden_sets()}
        if self.id_head is not None:
            outputs["id_logit"] = self.id_head(id_parts)
            has_vector = ops.any(ops.stack([inputs[f"{m}_target_mask"] for m in self.modalities], axis=1), axis=1)
            outputs["logit"] = ops.where(has_vector, outputs["logit"], outputs["id_logit"])
        return outputs | {"score": ops.sigmoid(outputs["logit"])}

    def hidden_sets(self) -> list[tuple[str, ...]]:
        """Returns the sets of modalities that training hides; with an `id_head` not all at once, that is its own."""
        if self.settings.hidden_weight == 0.0:
            return []
        largest = len(self.modalities) - (self.id_head is not None)
        return [names for n in range(1, largest + 1) for names in itertools.combinations(self.modalities, n)]

    def losses(
        self, inputs: typing.Mapping[str, typing.Any], label: typing.Any, is_row: typing.Any
    ) -> dict[str, typing.Any]:
        """Returns the click losses of a batch in training, float32 [] each: their sum is what training lowers.

        Args:
            inputs: of the model.
            label: int [B], 0 or 1.
            is_row: bool [B], False where the batch is filled up.
        Returns:
            `loss`, of the rows as they are; with a `hidden_weight`, `loss_hidden`: that weight times the sum, over
            `hidden_sets`, of the loss with these modalities hidden from the target; with an `id_head`, `loss_id`: of
            ids alone. Rows without any vector left count in `loss_id` only, where there is one.
        """
        outputs = self(inputs, training=True)

        def loss(name: str, hidden: typing.Collection[str]) -> typing.Any:
            counts = is_row
            if self.id_head is not None:
                left = [inputs[f"{m}_target_mask"] for m in self.modalities if m not in hidden]
                counts = ops.logical_and(is_row, ops.any(ops.stack(left, axis=1), axis=1))
            return make_model.loss(outputs[name], label, counts)

        result = {"loss": loss("logit", ())}
        hidden = [loss(f"logit_without_{'_'.join(names)}", names) for names in self.hidden_sets()]
        if hidden:
            result["loss_hidden"] = self.settings.hidden_weight * sum(hidden[1:], hidden[0])
        if self.id_head is not None:
            result["loss_id"] = make_model.loss(outputs["id_logit"], label, is_row)
        return result

    def get_config(self) -> dict[str, typing.Any]:
        return {
            **super().get_config(),
            "config": config_lib.to_dict(self.settings),
            "make_config": config_lib.to_dict(self.make_settings),
            "vocabulary_sizes": self.vocabulary_sizes,
            "dims": self.dims,
            "max_behaviors": self.max_behaviors,
        }

    def _items(self, item_index: typing.Any, category_index: typing.Any) -> typing.Any:
        return ops.concatenate([self.item_embedding(item_index), self.category_embedding(category_index)], axis=-1)

    def _knowledge(
        self,
        inputs: typing.Mapping[str, typing.Any],
        modality: str,
        is_behavior: typing.Any,
        training: bool | None,
    ) -> tuple[typing.Any, list[typing.Any]]:
        """Returns what one modality adds: missing behaviors float32 [B or 1, 1], and what the target's vector gives."""
        has_target = ops.cast(inputs[f"{modality}_target_mask"], "float32")[:, None]  # [B, 1]
        without = ops.logical_and(is_behavior, ops.logical_not(inputs[f"{modality}_behavior_mask"]))
        missing = ops.log1p(ops.sum(ops.cast(without, "float32"), axis=1, keepdims=True))
        parts = [has_target]
        if self.settings.use_simtier:
            parts.append(ops.cast(self.tiers(inputs, modality), "float32"))
        if self.settings.use_make:
            block = self.make_blocks[modality]
            outputs = make_model.extract(block, inputs, modality, training)
            parts.append(ops.cast(block.knowledge(outputs), "float32") * (has_target * KNOWLEDGE_SCALE))
        return missing, parts

    def tiers(self, inputs: typing.Mapping[str, typing.Any], modality: str) -> typing.Any:
        """Returns a modality's SimTier histogram, float32 [B, N]; zeros where the target has no embedding."""
        return self.simtier(
            inputs[f"{modality}_target_rows"],
            inputs[f"{modality}_behavior_rows"],
            behaviors_mask=inputs[f"{modality}_behavior_mask"],
            target_mask=inputs[f"{modality}_target_mask"],
            target_scales=inputs[f"{modality}_target_scales"],
            behaviors_scales=inputs[f"{modality}_behavior_scales"],
        )

    def take_make(self, extractor: make_model.MAKEModel) -> None:
        """Copies pre-trained MAKE weights.

        Raises:
            ValueError: a modality was not pre-trained, or with vectors of another dim.
        """
        for modality, block in self.make_blocks.items():
            if extractor.dims.get(modality) != self.dims[modality]:
                raise ValueError(
                    f"MAKE must be pre-trained on {modality!r} vectors of {self.dims[modality]} values. It "
                    f"knows {extractor.dims}. Pre-train it on the same index snapshot."
                )
            block.set_weights(extractor.blocks[modality].get_weights())

    def freeze_make(self, is_frozen: bool = True) -> None:
        """Keeps MAKE's weights as they are in training (section 4.3), or lets them train with the rest."""
        for block in self.make_blocks.values():
            block.trainable = not is_frozen


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

    def get_config(self) -> dict[str, typing.Any]:
        return {**super().get_config(), "units": list(self.units)}


def padding_inputs(dims: typing.Mapping[str, int], max_behaviors: int) -> dict[str, typing.Any]:
    """Returns the inputs of one row in which everything is missing."""
    shapes = {
        "user_index": (1,),
        "item_index": (1,),
        "category_index": (1,),
        "behavior_item_index": (1, max_behaviors),
        "behavior_category_index": (1, max_behaviors),
    }
    inputs = {name: ops.zeros(shape, "int32") for name, shape in shapes.items()}
    for modality, dim in dims.items():
        for side, shape in (("target", (1,)), ("behavior", (1, max_behaviors))):
            inputs[f"{modality}_{side}_rows"] = ops.zeros((*shape, dim), "int8")
            inputs[f"{modality}_{side}_scales"] = ops.zeros(shape, "float32")
            inputs[f"{modality}_{side}_mask"] = ops.zeros(shape, "bool")
    return inputs


def _embedding(size: int, dim: int, name: str) -> keras.layers.Embedding:
    return keras.layers.Embedding(
        size, dim, embeddings_initializer=keras.initializers.RandomNormal(stddev=0.01), name=name
    )


def save_model(
    model: CTRModel,
    output_dir: str | pathlib.Path,
    parents: typing.Sequence[str | pathlib.Path] = (),
    **facts: typing.Any,
) -> dict[str, typing.Any]:
    """Writes the weights, and the manifest that says how to build the model.

    Args:
        model: a built model.
        output_dir: the artifact's folder.
        parents: folders of the artifacts that it was made from.
        **facts: further JSON values for the manifest, such as metrics.
    Returns:
        The manifest.
    """
    folder = pathlib.Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_weights(folder / WEIGHTS)
    return artifacts.write_manifest(
        folder,
        KIND,
        model.settings,
        parents,
        make_config=config_lib.to_dict(model.make_settings),
        vocabulary_sizes=model.vocabulary_sizes,
        dims=model.dims,
        max_behaviors=model.max_behaviors,
        **facts,
    )


def load_model(model_dir: str | pathlib.Path) -> CTRModel:
    """Loads what `save_model` wrote.

    Raises:
        FileNotFoundError: the folder is not complete.
        ValueError: it holds another kind of artifact.
    """
    manifest = artifacts.read_manifest(model_dir, KIND)
    model = CTRModel(
        manifest["config"],
        manifest["make_config"],
        manifest["vocabulary_sizes"],
        manifest["dims"],
        manifest["max_behaviors"],
    )
    model.build()
    model.load_weights(pathlib.Path(model_dir) / WEIGHTS)
    return model
