"""The ways to bring item vectors into the click model, in one protocol (sections 4 and 6.1.3).

A run names them in order (`RunConfig.methods`). One of a user's own is a subclass of `Integration`, named by module and
class: `Method("my_team.methods:Recency", {"units": 8})`.
"""

from __future__ import annotations

import typing

import keras
import numpy as np
from keras import ops

from tfmm import layers, own_classes
from tfmm.config import MAKEConfig, Method
from tfmm.features import FeatureSet, Sequence
from tfmm.make import model as make_model
from tfmm.vectors import Vectors


class Context(typing.NamedTuple):
    """What the click model knows of one sequence and one modality (B rows, L behaviors, E and D values).

    Attributes:
        target, behaviors: float32 [B, E] and [B, L, E], ID embeddings; or [1, L, E] shared by all targets.
        is_behavior: bool [B, L] (or [1, L]), True where a behavior exists.
        target_vectors, behavior_vectors: their item vectors.
        training: whether the model trains.
    """

    target: typing.Any
    behaviors: typing.Any
    is_behavior: typing.Any
    target_vectors: Vectors
    behavior_vectors: Vectors
    training: bool | None

    @property
    def both_exist(self) -> typing.Any:
        """Returns bool [B, L], True where target and behavior have vectors."""
        return ops.logical_and(self.target_vectors.mask[:, None], self.behavior_vectors.mask)

    def compared_by(self, layer: typing.Any, **more: typing.Any) -> typing.Any:
        """Returns what a layer, or function, makes of the target's vectors and the behaviors', with their masks."""
        target, behaviors = self.target_vectors, self.behavior_vectors
        return layer(
            target.rows,
            behaviors.rows,
            behaviors_mask=behaviors.mask,
            target_mask=target.mask,
            target_scales=target.scales,
            behaviors_scales=behaviors.scales,
            **more,
        )

    def similarity(self) -> typing.Any:
        """Returns the cosines of target and behaviors, float32 [B, L]."""
        return layers.cosine_similarity(
            self.target_vectors.rows,
            self.behavior_vectors.rows,
            target_scales=self.target_vectors.scales,
            behaviors_scales=self.behavior_vectors.scales,
        )


class Integration(keras.layers.Layer):
    """One way to use one modality's vectors on one sequence; the model makes one for each pair of these.

    A subclass says what it does in one or more of the methods below. `__init__` makes its layers; its arguments
    are its settings.
    """

    is_zero_without_target = False  # True: all of `parts` is zero where the target has no vector

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name=name)
        self.built = True  # the layers inside build themselves when they are called

    @property
    def is_beside(self) -> bool:
        """Whether it sets anything beside the ID embeddings."""
        return type(self).beside is not Integration.beside

    def start(self, dim: int) -> None:
        """Makes weights whose shape follows from D, the values of a vector; called once, before all else."""

    def fit_vectors(self, vectors: np.ndarray) -> None:
        """Learns from all item vectors, float32 [n, D], before training begins."""

    def search(self, context: Context) -> Context:
        """Returns the behaviors that the methods after this one see."""
        return context

    def beside(self, context: Context) -> tuple[typing.Any, typing.Any] | None:
        """Returns what the click model's own attention gets beside the ID embeddings.

        float32 [B, F] for targets and [B, L, F], or [1, L, F], for behaviors; None: nothing.
        """
        return None

    def parts(self, context: Context) -> list[typing.Any]:
        """Returns what the click model's MLP gets, float32 [B, ...] or [1, ...] each."""
        return []


class SimTier(Integration):
    """A histogram of the behaviors' similarities to the target (section 4.2)."""

    is_zero_without_target = True

    def __init__(self, num_tiers: int = 20, tier_output: str = "log1p", name: str | None = None) -> None:
        super().__init__(name=name)
        self.layer = layers.SimTierLayer(num_tiers, tier_output, name="simtier")

    def parts(self, context: Context) -> list[typing.Any]:
        return [context.compared_by(self.layer)]


class MAKE(Integration):
    """The knowledge of an extractor that was pre-trained on clicks (section 4.3).

    Differs from the paper: knowledge is scaled. Its inputs are hundreds, and at full size a step of each of their
    weights swings the logit: scores were ill-calibrated.
    """

    is_zero_without_target = True
    fine_tune = False  # True: what was pre-trained goes on learning with the click model

    def __init__(
        self, make: MAKEConfig, knowledge_scale: float = 0.1, name: str | None = None, fine_tune: bool = False
    ) -> None:
        super().__init__(name=name)
        if not isinstance(fine_tune, bool):
            raise ValueError(
                f"`fine_tune` must be true or false: whether MAKE goes on learning with the click model. Received: "
                f"{fine_tune!r}."
            )
        self.fine_tune = fine_tune
        self.block = make_model.build_block(make, name or "make")
        self.knowledge_scale = knowledge_scale

    def parts(self, context: Context) -> list[typing.Any]:
        outputs = make_model.extract(
            self.block, context.target_vectors, context.behavior_vectors, context.training
        )
        has_target = ops.cast(context.target_vectors.mask, "float32")[:, None]
        return [ops.multiply(self.block.knowledge(outputs), has_target * self.knowledge_scale)]


class Vector(Integration):
    """The vectors themselves beside the ID embeddings, in the attention and for the target (section 6.1.3)."""

    is_zero_without_target = True

    def __init__(self, scale_inputs: bool = True, name: str | None = None) -> None:
        super().__init__(name=name)
        self.layer = layers.VectorFusion(scale_inputs, name="fusion")

    def beside(self, context: Context) -> tuple[typing.Any, typing.Any]:
        fused = self.layer(
            context.target,
            context.behaviors,
            context.target_vectors.rows,
            context.behavior_vectors.rows,
            target_vectors_mask=context.target_vectors.mask,
            behaviors_vectors_mask=context.behavior_vectors.mask,
            target_scales=context.target_vectors.scales,
            behaviors_scales=context.behavior_vectors.scales,
        )
        return _added(fused, context)

    def parts(self, context: Context) -> list[typing.Any]:
        vectors = layers.unit_vectors(context.target_vectors.rows, context.target_vectors.scales)
        if self.layer.scale_inputs:
            vectors = vectors * vectors.shape[-1] ** 0.5
        return [ops.where(context.target_vectors.mask[:, None], vectors, 0.0)]


class SimScore(Integration):
    """The similarity to the target beside each behavior's ID embedding, in the attention (section 6.1.3)."""

    is_zero_without_target = True

    def __init__(self, flag_missing: bool = True, name: str | None = None) -> None:
        super().__init__(name=name)
        self.layer = layers.SimScore(flag_missing, name="simscore")

    def beside(self, context: Context) -> tuple[typing.Any, typing.Any]:
        similarity, both_exist = context.similarity(), context.both_exist
        return _added(
            self.layer(context.target, context.behaviors, similarity, similarity_mask=both_exist), context
        )


class SemanticId(Integration):
    """Embeddings of the residual k-means codes of the vectors, in the attention and for the target."""

    is_zero_without_target = True

    def __init__(
        self, num_levels: int = 3, codebook_size: int = 64, dim: int = 8, seed: int = 0, name: str | None = None
    ) -> None:
        super().__init__(name=name)
        self.layer = layers.SemanticId(num_levels, codebook_size, dim, name="semantic_id")
        self.seed = seed

    def start(self, dim: int) -> None:
        self.layer.build((None, dim))
        self.layer.codebooks.assign(np.ones(self.layer.codebooks.shape))  # until they are fitted, or loaded

    def fit_vectors(self, vectors: np.ndarray) -> None:
        codes = layers.fit_codebooks(vectors, self.layer.num_levels, self.layer.codebook_size, seed=self.seed)
        self.layer.codebooks.assign(codes)

    def _embed(self, vectors: Vectors) -> typing.Any:
        return self.layer(vectors.rows, vectors_mask=vectors.mask, vectors_scales=vectors.scales)

    def beside(self, context: Context) -> tuple[typing.Any, typing.Any]:
        return self._embed(context.target_vectors), self._embed(context.behavior_vectors)

    def parts(self, context: Context) -> list[typing.Any]:
        return [self._embed(context.target_vectors)]


class SemanticTargetAttention(Integration):
    """Attention on ID embeddings guided by similarity (SA-TA of MUSE, arXiv:2512.07216)."""

    def __init__(self, units: int = 32, temperature: float = 0.1, name: str | None = None) -> None:
        super().__init__(name=name)
        self.layer = layers.SemanticTargetAttention(units, temperature, name="attention")

    def parts(self, context: Context) -> list[typing.Any]:
        return [
            self.layer(
                context.target,
                context.behaviors,
                context.similarity(),
                behaviors_mask=context.is_behavior,
                similarity_mask=context.both_exist,
            )
        ]


class BehaviorSearch(Integration):
    """Only the behaviors most similar to the target reach the methods after it (the search unit of MUSE)."""

    is_zero_without_target = True

    def __init__(self, num_selected: int = 50, name: str | None = None) -> None:
        super().__init__(name=name)
        self.layer = layers.BehaviorSearch(num_selected, order="time", name="search")

    def search(self, context: Context) -> Context:
        found = context.compared_by(self.layer, behaviors_present=context.is_behavior)

        def gather(values: typing.Any) -> typing.Any:
            return layers.gather_behaviors(values, found["indices"])

        return context._replace(
            behaviors=gather(context.behaviors),
            is_behavior=ops.logical_and(gather(context.is_behavior), found["mask"]),
            behavior_vectors=Vectors(
                gather(context.behavior_vectors.rows),
                gather(context.behavior_vectors.scales),
                ops.logical_and(gather(context.behavior_vectors.mask), found["mask"]),
            ),
        )


def _added(fused: typing.Mapping[str, typing.Any], context: Context) -> tuple[typing.Any, typing.Any]:
    """Returns what a layer joined to the embeddings of a context."""
    width = context.target.shape[-1]
    return fused["target"][..., width:], fused["behaviors"][..., width:]


INTEGRATIONS: dict[str, type[Integration]] = {
    "simtier": SimTier,
    "make": MAKE,
    "vector": Vector,
    "simscore": SimScore,
    "semantic_id": SemanticId,
    "sa_ta": SemanticTargetAttention,
    "behavior_search": BehaviorSearch,
}


def find(name: str) -> type[Integration]:
    """Returns the class that a method's name stands for.

    Raises:
        ValueError: no such name, or what `module:Class` names cannot be imported or is no Integration.
    """
    if name in INTEGRATIONS:
        return INTEGRATIONS[name]
    if ":" not in name:
        raise ValueError(
            f"A method must be one of {', '.join(INTEGRATIONS)}, or `module:Class` of your own. Received: {name!r}."
        )
    return own_classes.find(name, Integration, "method")


def layer_name(method: str, modality: str, sequence: str) -> str:
    """Returns the name of a method's layer for a modality and a sequence, which no other three have.

    >>> layer_name("my_team.methods:Recency", "image", "clicks")
    'my_team.methods.Recency-image-clicks'
    """
    return "-".join((method.replace(":", "."), modality, sequence))


def in_words(methods: typing.Iterable[Method]) -> str:
    """Returns the names of methods for people, ours by their classes.

    >>> in_words([Method("simtier"), Method("make"), Method("my_team.methods:Recency")])
    'SimTier + MAKE + my_team.methods:Recency'
    """
    names = (method.name for method in methods)
    return " + ".join(INTEGRATIONS[name].__name__ if name in INTEGRATIONS else name for name in names)


def of_sequence(methods: typing.Iterable[Method], sequence: Sequence) -> tuple[Method, ...]:
    """Returns the methods that read a sequence: `simtier=False` and `make=False` leave out ours and their subclasses.

    Raises:
        ValueError: an unknown method.
    """
    switches = ((SimTier, sequence.simtier), (MAKE, sequence.make))
    left_out = tuple(kind for kind, is_on in switches if not is_on)
    return tuple(method for method in methods if not issubclass(find(method.name), left_out))


def make_sequences(methods: typing.Iterable[Method], feature_set: FeatureSet) -> tuple[str, ...]:
    """Returns the names of the sequences that MAKE, or a subclass of it, reads: () where it has nothing to learn."""
    kinds = [method for method in methods if issubclass(find(method.name), MAKE)]
    return tuple(sequence.name for sequence in feature_set.sequences if of_sequence(kinds, sequence))


def build(method: Method, make: MAKEConfig, dim: int, name: str) -> Integration:
    """Returns a method's layer for vectors of `dim` values.

    Raises:
        ValueError: an unknown method, a setting that it does not have, or a value that it refuses.
    """
    kind = find(method.name)
    given: dict[str, typing.Any] = {"name": name, **({"make": make} if issubclass(kind, MAKE) else {})}
    own_classes.require_settings(kind, method.settings, given, f"The method {method.name!r}")
    integration = kind(**given, **method.settings)
    integration.start(dim)
    return integration
