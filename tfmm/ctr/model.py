"""The click model: declared features with DIN over sequences, and per modality what its methods bring (section 4)."""

from __future__ import annotations

import functools
import math
import pathlib
import typing

import keras
from keras import ops

from tfmm import artifacts
from tfmm import config as config_lib
from tfmm import vectors as vectors_lib
from tfmm.ctr import integrations, knowledge
from tfmm.ctr.head import build_ranker
from tfmm.ctr.impressions import Impressions
from tfmm.ctr.ranker import Ranker
from tfmm.features import FeatureSet, Sequence
from tfmm.layers import DINAttention, MAKEBlock
from tfmm.make import model as make_model

KIND = "ctr"
WEIGHTS = "ctr.weights.h5"
INITIAL_DEVIATION = 0.01  # of embeddings


def input_names(feature_set: FeatureSet, modalities: typing.Iterable[str]) -> tuple[str, ...]:
    """Returns the names of the model's inputs.

    >>> input_names(FeatureSet(), ["image"])[-2:]
    ('image_behavior_scales', 'image_behavior_mask')
    """
    sides = (vectors_lib.TARGET, *(sequence.name for sequence in feature_set.sequences))
    vectors = [name for modality in modalities for side in sides for name in vectors_lib.names(modality, side)]
    return (*(column.input for column in feature_set.columns), *vectors)


@keras.saving.register_keras_serializable(package="tfmm")
class CTRModel(keras.Model):
    """Scores impressions from declared features alone, or with what the methods make of item vectors.

    Inputs are a dict (B rows, L behaviors, D values per vector):

    - per column of the feature set, under `Column.input`: int indices, 0 is missing, or float32 numbers, NaN is
      missing; [B], [B, L] in a sequence, [B, M] for multi-valued ids;
    - per modality m: `{m}_target_rows` int8 [B, D], `{m}_target_scales` float32 [B], `{m}_target_mask` bool [B],
      and per sequence s `{m}_{s}_rows` int8 [B, L, D], `{m}_{s}_scales` float32 [B, L], `{m}_{s}_mask` bool [B, L].

    To rank C candidates for one user, give the inputs of users, contexts and sequences with a static batch of 1 and
    those of items with batch C: the user side is computed once.

    The last word has a ranker, ours or one that `config.model` names: see `tfmm.ctr.ranker`.

    Returns a dict: `logit` and `score` = sigmoid(logit), float32 [B]. With modalities and `config.id_head`
    also `id_logit`, which is `logit` where the target has no vector in any modality. In training also
    `hidden_name` per set of modalities of `hidden_sets`: the logit as if no target had vectors in these.

    Differs from the paper: the count of behaviors without a vector and whether the target has one are inputs of
    their own, beside what the methods give, so that a missing vector is never taken for similarity 0. A target
    without any vector has a head of its own, and embeddings and their attention learn from that head alone: inside the
    multimodal model stands its ID-only twin, as good as if it were trained alone.
    """

    def __init__(
        self,
        config: config_lib.CTRConfig | dict[str, typing.Any],
        make_config: config_lib.MAKEConfig | dict[str, typing.Any],
        feature_set: FeatureSet | dict[str, typing.Any],
        sizes: typing.Mapping[str, int],
        dims: typing.Mapping[str, int],
        methods: typing.Sequence[config_lib.Method | dict[str, typing.Any]] = config_lib.DEFAULT_METHODS,
        name: str = "ctr",
        **kwargs: typing.Any,
    ) -> None:
        """Makes the layers.

        Args:
            config: the settings, or, as all of these, what `config.to_dict` made of them.
            make_config: the settings of the MAKE blocks.
            feature_set: features and sequences, lengths filled in.
            sizes: number of indices per table of `feature_set.embeddings`, special ones included.
            dims: D per modality; {} is the ID-only twin.
            methods: how vectors come in, in this order.
            name: the model's name.
            **kwargs: of keras.Model.
        Raises:
            ValueError: a table without size, no method for the vectors, or a method that cannot be built.
        """
        super().__init__(name=name, autocast=False, **kwargs)  # scales of int8 rows and numbers stay float32
        self.settings = config_lib.as_config(config_lib.CTRConfig, config)
        self.make_settings = config_lib.as_config(config_lib.MAKEConfig, make_config)
        self.feature_set = config_lib.as_config(FeatureSet, feature_set)
        self.methods = tuple(config_lib.as_config(config_lib.Method, method) for method in methods)
        self.sizes, self.dims = dict(sizes), {name: int(dims[name]) for name in sorted(dims)}
        tables = self.feature_set.embeddings
        if set(sizes) != set(tables) or min(sizes.values()) < 2:
            raise ValueError(f"`sizes` must give at least 2 for each of {list(tables)}. Received: {self.sizes}.")
        if self.dims and not self.methods:
            raise ValueError("`methods` must name at least one way to use item vectors where `dims` has any.")

        self.embeddings = {
            name: keras.layers.Embedding(
                sizes[name],
                feature.dim,
                embeddings_initializer=keras.initializers.RandomNormal(stddev=INITIAL_DEVIATION),
                name=f"{name}_embedding",
            )
            for name, feature in tables.items()
        }
        self.attention = {
            sequence.name: DINAttention(
                self.settings.attention_units, softmax=self.settings.softmax, name=f"{sequence.name}_attention"
            )
            for sequence in self.feature_set.sequences
            if sequence.din
        }
        self.integrations = {
            (name := integrations.layer_name(method.name, modality, sequence.name)): integrations.build(
                method, self.make_settings, dim, name
            )
            for modality, dim in self.dims.items()
            for sequence in self.feature_set.sequences
            for method in integrations.of_sequence(self.methods, sequence)
        }
        self.wide_attention = {
            sequence.name: DINAttention(
                self.settings.attention_units, softmax=self.settings.softmax, name=f"{sequence.name}_wide_attention"
            )
            for sequence in self.feature_set.sequences
            if sequence.din and any(
                layer.is_beside for modality in self.dims for layer in self.integrations_of(modality, sequence)
            )
        }
        ranker = functools.partial(build_ranker, self.settings, self.feature_set, self.sizes)
        self.head = ranker("head")
        self.id_head = ranker("id_head") if self.dims and self.settings.id_head else None

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(self.dims)

    def build(self, input_shape: typing.Any = None) -> None:
        """Makes every weight, by one pass over a row of padding; the input shape is not needed."""
        self.built = True
        self(padding_inputs(self.feature_set, self.dims))

    def call(self, inputs: typing.Mapping[str, typing.Any], training: bool | None = None) -> dict[str, typing.Any]:
        """Returns `logit` and `score`, see the class."""
        impressions = Impressions(self.feature_set, inputs, self.embeddings, self.attention, training)
        seen = impressions if self.id_head is None else impressions.frozen()
        of_vectors = knowledge.Knowledge(self, seen, training)

        def logit_without(hidden: typing.Collection[str]) -> typing.Any:
            """Returns the logit as if no target had a vector in some modalities."""
            return self._logit(self.head, seen, of_vectors.parts(hidden), training)

        outputs = {"logit": logit_without(())}
        if training:
            outputs |= {hidden_name(hidden): logit_without(hidden) for hidden in self.hidden_sets()}
        if self.id_head is not None:
            outputs["id_logit"] = self._logit(self.id_head, impressions, [], training)
            masks = [vectors_lib.take(inputs, modality, vectors_lib.TARGET).mask for modality in self.dims]
            has_vector = ops.any(ops.stack(masks, axis=1), axis=1)
            outputs["logit"] = ops.where(has_vector, outputs["logit"], outputs["id_logit"])
        return outputs | {"score": ops.sigmoid(outputs["logit"])}

    def _logit(
        self, ranker: Ranker, impressions: Impressions, parts: list[typing.Any], training: bool | None
    ) -> typing.Any:
        """Returns what a ranker gives, float32 [B].

        Raises:
            ValueError: it gives no value per row.
        """
        logit = ops.cast(ranker(impressions=impressions, knowledge=parts, training=training), "float32")
        rows = impressions.num_rows if isinstance(impressions.num_rows, int) else None
        if len(logit.shape) != 1 or logit.shape[0] not in (None, rows):
            raise ValueError(
                f"`call` of the model {self.settings.model!r} must return one logit per row, float32 [{rows or 'B'}]. "
                f"Received: shape {tuple(logit.shape)}. What is the user's alone has one row where candidates are "
                "ranked: `impressions.join` and `impressions.per_row` repeat it."
            )
        return logit

    def hidden_sets(self) -> list[tuple[str, ...]]:
        """Returns the sets of modalities that training hides: each alone, and all; with an `id_head` its own are all.

        Each costs a pass through methods and head, so that not every set of several is one.
        """
        if self.settings.hidden_weight == 0.0 or not self.dims:
            return []
        sets = dict.fromkeys([*((name,) for name in self.dims), self.modalities])  # of one modality they are the same
        return [names for names in sets if self.id_head is None or names != self.modalities]

    def losses(
        self,
        inputs: typing.Mapping[str, typing.Any],
        label: typing.Any,
        is_row: typing.Any,
        weight: typing.Any = None,
        negative_rate: typing.Any = None,
    ) -> dict[str, typing.Any]:
        """Returns the click losses of a batch in training, float32 [] each: their sum is what training lowers.

        Args:
            inputs: of the model.
            label: int [B], 0 or 1.
            is_row: bool [B], False where the batch is filled up.
            weight, negative_rate: what each row counts and how negatives were sampled, see `make.model.loss`.
        Returns:
            `loss`, of the rows as they are; with a `hidden_weight`, `loss_hidden`: that weight times the sum, over
            `hidden_sets`, of the loss with these modalities hidden from the target; with an `id_head`, `loss_id`: of
            ids alone. Rows without any vector left count in `loss_id` only, where there is one.
        """
        outputs = self(inputs, training=True)

        def loss(name: str, hidden: typing.Collection[str]) -> typing.Any:
            counts = is_row
            if self.id_head is not None:
                left = [vectors_lib.take(inputs, m, vectors_lib.TARGET).mask for m in self.dims if m not in hidden]
                counts = ops.logical_and(is_row, ops.any(ops.stack(left, axis=1), axis=1))
            return make_model.loss(outputs[name], label, counts, weight, negative_rate)

        result = {"loss": loss("logit", ())}
        hidden = [loss(hidden_name(names), names) for names in self.hidden_sets()]
        if hidden:
            result["loss_hidden"] = self.settings.hidden_weight * sum(hidden[1:], hidden[0])
        if self.id_head is not None:
            result["loss_id"] = make_model.loss(outputs["id_logit"], label, is_row, weight, negative_rate)
        return result

    def integrations_of(self, modality: str, sequence: Sequence) -> list[integrations.Integration]:
        """Returns the layers of a modality and a sequence, in the methods' order."""
        methods = integrations.of_sequence(self.methods, sequence)
        return [self.integrations[integrations.layer_name(m.name, modality, sequence.name)] for m in methods]

    def get_config(self) -> dict[str, typing.Any]:
        return {
            **super().get_config(),
            "config": config_lib.to_dict(self.settings),
            "make_config": config_lib.to_dict(self.make_settings),
            "feature_set": config_lib.to_dict(self.feature_set),
            "sizes": self.sizes,
            "dims": self.dims,
            "methods": [config_lib.to_dict(method) for method in self.methods],
        }

    def tiers(
        self, inputs: typing.Mapping[str, typing.Any], modality: str, sequence: str = "behavior"
    ) -> typing.Any:
        """Returns a modality's SimTier histogram, float32 [B, N]; zeros where the target has no embedding."""
        target = vectors_lib.take(inputs, modality, vectors_lib.TARGET)
        behaviors = vectors_lib.take(inputs, modality, sequence)
        context = integrations.Context(None, None, None, target, behaviors, False)
        return self.integrations[integrations.layer_name("simtier", modality, sequence)].parts(context)[0]

    def make_blocks(self) -> list[tuple[str, MAKEBlock]]:
        """Returns the blocks of MAKE and of its subclasses, each with its `make.model.block_name`."""
        return [(name, layer.block) for name, layer in self._makes()]

    def _makes(self) -> list[tuple[str, integrations.MAKE]]:
        return [
            (make_model.block_name(modality, sequence.name), layer)
            for modality in self.dims
            for sequence in self.feature_set.sequences
            for layer in self.integrations_of(modality, sequence)
            if isinstance(layer, integrations.MAKE)
        ]

    def start_at(self, click_rate: float) -> None:
        """Lets an untrained model score all rows by about the click rate, in (0, 1)."""
        for head in (self.head, self.id_head):
            if head is not None:
                head.start_at(math.log(click_rate / (1.0 - click_rate)))

    def fit_vectors(self, modality: str, vectors: typing.Any) -> None:
        """Lets the methods learn from a modality's vectors, float32 [n, D], before training begins."""
        for sequence in self.feature_set.sequences:
            for layer in self.integrations_of(modality, sequence):
                layer.fit_vectors(vectors)

    def take_make(self, extractor: make_model.MAKEModel) -> None:
        """Copies pre-trained MAKE weights.

        Raises:
            ValueError: a modality or sequence was not pre-trained, or with vectors of another dim.
        """
        for modality, dim in self.dims.items():
            if extractor.dims.get(modality) != dim:
                raise ValueError(
                    f"MAKE must be pre-trained on {modality!r} vectors of {dim} values. It "
                    f"knows {extractor.dims}. Pre-train it on the same index snapshot."
                )
        for name, block in self.make_blocks():
            if name not in extractor.blocks:
                raise ValueError(
                    f"MAKE must be pre-trained on {name!r}. It knows {sorted(extractor.blocks)}. Pre-train it with "
                    "the same sequences."
                )
            block.set_weights(extractor.blocks[name].get_weights())

    def freeze_make(self, is_frozen: bool = True) -> None:
        """Keeps MAKE's weights as they are in training (section 4.3), but those to fine-tune; or lets all train."""
        for _, layer in self._makes():
            layer.block.trainable = layer.fine_tune or not is_frozen


def hidden_name(hidden: typing.Collection[str]) -> str:
    """Returns the output with the logit as if no target had a vector in some modalities.

    >>> hidden_name(["image", "text"])  # no name holds a +
    'logit_without_image+text'
    """
    return f"logit_without_{'+'.join(hidden)}"


def padding_inputs(feature_set: FeatureSet, dims: typing.Mapping[str, int]) -> dict[str, typing.Any]:
    """Returns the inputs of one row in which everything is missing."""
    inputs = {
        c.input: ops.zeros((1, *c.shape), "int32") if c.feature.is_embedded else ops.full((1, *c.shape), float("nan"))
        for c in feature_set.columns
    }
    for modality, dim in dims.items():
        for sequence in (None, *feature_set.sequences):
            side = vectors_lib.TARGET if sequence is None else sequence.name
            length = None if sequence is None else sequence.length
            specs = vectors_lib.spec(dim, 1, length, is_sequence=sequence is not None)
            zeros = vectors_lib.Vectors(*(ops.zeros(shape, dtype) for shape, dtype in specs))
            inputs |= vectors_lib.named(modality, side, zeros)
    return inputs


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
        feature_set=config_lib.to_dict(model.feature_set),
        sizes=model.sizes,
        dims=model.dims,
        methods=[config_lib.to_dict(method) for method in model.methods],
        **facts,
    )


def load_model(model_dir: str | pathlib.Path) -> CTRModel:
    """Loads what `save_model` wrote.

    Raises:
        FileNotFoundError: the folder is not complete.
        ValueError: it holds another kind of artifact.
    """
    manifest = artifacts.read_manifest(model_dir, KIND, ("feature_set", "sizes", "methods"))
    model = CTRModel(
        manifest["config"],
        manifest["make_config"],
        manifest["feature_set"],
        manifest["sizes"],
        manifest["dims"],
        manifest["methods"],
    )
    model.build()
    model.load_weights(pathlib.Path(model_dir) / WEIGHTS)
    return model
