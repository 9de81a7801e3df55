"""Semantic ids: item vectors turned into a few codes by residual k-means, and the codes embedded."""

from __future__ import annotations

import typing

import keras
import numpy as np
from keras import ops

from tfmm.layers import checks
from tfmm.layers.compilation import first_of
from tfmm.layers.similarity import unit_vectors

CODE_COMBINATIONS = ("sum", "concat")
_WAY_OUT = "turn int8 rows with their scales into vectors of norm 1, by `unit_vectors`."


def fit_codebooks(
    vectors: np.ndarray, num_levels: int, codebook_size: int, num_iterations: int = 20, seed: int = 0
) -> np.ndarray:
    """Fits one k-means codebook per level, each to what the levels before it leave over.

    Args:
        vectors: float [n, D], n >= codebook_size. num_levels: codes per item. codebook_size: centers per
            level.
        num_iterations: of Lloyd's algorithm, per level. seed: of the first centers.
    Returns:
        float32 [num_levels, codebook_size, D].
    Raises:
        ValueError: fewer vectors than centers, vectors that are not float (int8 rows want their scales:
            `unit_vectors`), values that are not finite, or counts below 1.

    >>> points = np.float32([[0, 0], [0, 1], [9, 0], [9, 1]])
    >>> codebooks = fit_codebooks(points, num_levels=2, codebook_size=2)
    >>> sorted(codebooks[0, :, 0].tolist())
    [0.0, 9.0]
    """
    num_levels = checks.require_int("num_levels", num_levels)
    num_iterations = checks.require_int("num_iterations", num_iterations)
    codebook_size = checks.require_int("codebook_size", codebook_size)
    vectors = np.asarray(vectors)
    checks.require_float("vectors", vectors, _WAY_OUT)
    residual = np.array(vectors, np.float32)
    checks.require(residual.ndim == 2, "`vectors` must have 2 axes [n, D].", residual.shape)
    checks.require(
        1 <= codebook_size <= len(residual),
        f"`codebook_size` must lie between 1 and the number of vectors ({len(residual)}).",
        codebook_size,
    )
    checks.require(bool(np.isfinite(residual).all()), "`vectors` must be finite.", "NaN or infinity")
    rng = np.random.default_rng(seed)
    codebooks = []
    for _ in range(num_levels):
        centers = _k_means(residual, codebook_size, num_iterations, rng)
        codebooks.append(centers)
        residual = residual - centers[_nearest(residual, centers)[0]]
    return np.stack(codebooks)


def _nearest(points: np.ndarray, centers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns each point's nearest center int64 [n], and its squared distance float32 [n]."""
    nearest, distance = [], []
    for start in range(0, len(points), 8192):
        part = points[start : start + 8192]
        squared = (centers**2).sum(1) - 2 * part @ centers.T
        nearest.append(squared.argmin(1))
        distance.append(squared.min(1) + (part**2).sum(1))
    return np.concatenate(nearest), np.concatenate(distance)


def _k_means(points: np.ndarray, size: int, num_iterations: int, rng: np.random.Generator) -> np.ndarray:
    centers = points[rng.integers(len(points), size=1)]
    while len(centers) < size:  # spread: new centers are drawn by their squared distance to those before
        distance = np.maximum(_nearest(points, centers)[1], 0.0).astype(np.float64)
        wanted = min(len(centers), size - len(centers))
        total = distance.sum()
        odds = distance / total if total > 0 else None
        drawn = rng.choice(
            len(points), size=wanted, p=odds, replace=odds is None or (odds > 0).sum() < wanted
        )
        centers = np.concatenate([centers, points[drawn]])
    for _ in range(num_iterations):
        nearest, distance = _nearest(points, centers)
        order = np.argsort(nearest, kind="stable")
        counts = np.bincount(nearest, minlength=size)
        used = counts > 0
        starts = (np.cumsum(counts) - counts)[used]
        moved = centers.copy()
        moved[used] = np.add.reduceat(points[order], starts, axis=0) / counts[used, None]
        if not used.all():  # an empty center goes to a point that is far from its own
            moved[~used] = points[np.argsort(-distance, kind="stable")[: int((~used).sum())]]
        if np.array_equal(moved, centers):
            break
        centers = moved
    return centers


def residual_codes(vectors: typing.Any, codebooks: typing.Any) -> typing.Any:
    """Assigns each vector the nearest center of each level, of what the levels before it leave over.

    Args:
        vectors: float [..., D]; codebooks: float32 [levels, size, D].
    Returns:
        int32 [..., levels], each in [0, size).
    Raises:
        ValueError: vectors that are not float, or whose dim is not the codebooks'.

    >>> residual_codes(np.float32([[9.0, 1.1]]), np.float32([[[0, 0], [9, 0]], [[0, 0], [0, 1]]])).numpy()
    array([[1, 1]], dtype=int32)
    """
    vectors, codebooks = ops.convert_to_tensor(vectors), ops.cast(codebooks, "float32")
    checks.require_float("vectors", vectors, _WAY_OUT)
    checks.require_same_dim("vectors", vectors.shape[-1], "codebooks", codebooks.shape[-1])
    residual = ops.stop_gradient(ops.cast(vectors, "float32"))
    codes = []
    for level in range(codebooks.shape[0]):
        centers = codebooks[level]
        half_norm = ops.sum(centers * centers, axis=-1) / 2.0
        code = ops.cast(
            ops.argmax(ops.matmul(residual, ops.transpose(centers)) - half_norm, axis=-1), "int32"
        )
        codes.append(code)
        residual = residual - ops.take(centers, code, axis=0)
    return ops.stack(codes, axis=-1)


@keras.saving.register_keras_serializable(package="tfmm")
class SemanticId(keras.layers.Layer):
    """Embeds the residual k-means codes of item vectors (semantic ids).

    The codebooks are fitted once, by `SemanticId.from_vectors`, and never trained; each level has embeddings
    that are.

    Args:
        num_levels: codes per item; codebook_size: centers per level; dim: E, width of an embedding.
        combine: "concat" (levels * E values) or "sum" (E values).

    Call arguments:
        vectors: float [..., D], or int8 [..., D] with `vectors_scales` float32 [...].
            A scale of 0, and a value that is NaN or infinite, stand for a missing embedding.
        vectors_mask: bool [...], True where there is an embedding; elsewhere the result is zero. The mask that
            travels with the output of `FrozenEmbedding` is found.
        mask: the same; Keras fills this name where `vectors` is the only tensor. `vectors_mask` comes first.

    Returns:
        float [..., levels * E] or [..., E], in the layer's compute dtype.

    Raises:
        ValueError: arguments outside their range, a dim that is not the codebooks', a mask or scales of another
            shape, int8 rows without scales, or codebooks that were neither fitted nor loaded.

    Source: the semantic ids that the paper's section 4.1 cites as a simpler use of vectors; residual k-means is
    ours.

    >>> layer = SemanticId.from_vectors(np.eye(4), num_levels=2, codebook_size=2, dim=3)
    >>> layer(ops.ones((5, 4))).shape
    TensorShape([5, 6])
    """

    def __init__(
        self, num_levels: int, codebook_size: int, dim: int, combine: str = "concat", **kwargs: typing.Any
    ) -> None:
        kwargs.pop("autocast", None)
        super().__init__(autocast=False, **kwargs)  # rounded vectors may fall to another center
        self.num_levels = checks.require_int("num_levels", num_levels)
        self.codebook_size = checks.require_int("codebook_size", codebook_size)
        self.dim = checks.require_int("dim", dim)
        checks.require(combine in CODE_COMBINATIONS, f"`combine` must be one of {CODE_COMBINATIONS}.", combine)
        self.combine = combine
        self.supports_masking = True
        self._has_codebooks = False

    @classmethod
    def from_vectors(
        cls,
        vectors: np.ndarray,
        num_levels: int,
        codebook_size: int,
        dim: int,
        seed: int = 0,
        **kwargs: typing.Any,
    ) -> SemanticId:
        """Builds the layer with codebooks fitted to a table of vectors, float [n, D] (see `fit_codebooks`)."""
        layer = cls(num_levels, codebook_size, dim, **kwargs)
        layer.build((None, np.shape(vectors)[-1]))
        layer.codebooks.assign(fit_codebooks(vectors, num_levels, codebook_size, seed=seed))
        return layer

    def build(self, vectors_shape: typing.Any) -> None:
        self.codebooks = self.add_weight(
            name="codebooks",
            shape=(self.num_levels, self.codebook_size, vectors_shape[-1]),
            dtype="float32",
            initializer="zeros",  # stands for codebooks that were never fitted
            trainable=False,
            autocast=False,
        )
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=(self.num_levels * self.codebook_size, self.dim),
            initializer=keras.initializers.RandomNormal(stddev=0.01),
        )
        self.built = True

    def codes(self, vectors: typing.Any, vectors_scales: typing.Any = None) -> typing.Any:
        """Returns int32 [..., levels], the codes of vectors (a missing one has codes as well, without meaning).

        Raises:
            ValueError: see the class.
        """
        vectors = ops.convert_to_tensor(vectors)
        self._require_inputs(vectors, vectors_scales=vectors_scales)
        self._require_codebooks()
        if vectors_scales is not None:
            vectors = unit_vectors(vectors, vectors_scales)
        return residual_codes(vectors, self.codebooks)

    def _require_inputs(
        self,
        vectors: typing.Any,
        vectors_mask: typing.Any = None,
        vectors_scales: typing.Any = None,
        mask: typing.Any = None,
    ) -> None:
        checks.require_scales("vectors", vectors, "vectors_scales", vectors_scales)
        checks.require_same_dim("vectors", vectors.shape[-1], "codebooks", self.codebooks.shape[-1])
        for name, given in (("vectors_mask", vectors_mask), ("mask", mask)):
            if given is not None:
                checks.require_shape(name, given, tuple(vectors.shape)[:-1])

    def _require_codebooks(self) -> None:
        if not self._has_codebooks:
            first = first_of(self.codebooks)
            rule = "The codebooks are not fitted: use `SemanticId.from_vectors`, or load the layer's weights."
            checks.require(first is None or bool(first.any()), rule, "zeros")
            self._has_codebooks = first is not None

    def call(
        self,
        vectors: typing.Any,
        vectors_mask: typing.Any = None,
        vectors_scales: typing.Any = None,
        mask: typing.Any = None,
    ) -> typing.Any:
        codes = self.codes(vectors, vectors_scales)
        rows = codes + ops.arange(self.num_levels, dtype="int32") * self.codebook_size
        embedded = ops.cast(ops.take(self.embeddings, rows, axis=0), self.compute_dtype)
        if self.combine == "sum":
            embedded = ops.sum(embedded, axis=-2)
        else:
            shape = ops.shape(embedded)
            embedded = ops.reshape(embedded, (*shape[:-2], self.num_levels * self.dim))
        mask = mask if vectors_mask is None else vectors_mask
        exists = ops.all(ops.isfinite(ops.cast(vectors, "float32")), axis=-1)
        given = checks.as_mask("vectors_mask", mask, tuple(vectors.shape)[:-1], scales=vectors_scales)
        exists = exists if given is None else ops.logical_and(exists, given)
        return ops.where(ops.expand_dims(exists, -1), embedded, ops.zeros_like(embedded))

    def compute_output_spec(self, *args: typing.Any, **kwargs: typing.Any) -> typing.Any:
        self._require_inputs(*args, **kwargs)
        return super().compute_output_spec(*args, **kwargs)

    def compute_output_shape(self, vectors_shape: typing.Any) -> tuple[int | None, ...]:
        return (*vectors_shape[:-1], self.dim * (self.num_levels if self.combine == "concat" else 1))

    def compute_mask(self, inputs: typing.Any, previous_mask: typing.Any) -> None:
        return None

    def get_config(self) -> dict[str, typing.Any]:
        return {
            **super().get_config(),
            "num_levels": self.num_levels,
            "codebook_size": self.codebook_size,
            "dim": self.dim,
            "combine": self.combine,
        }
