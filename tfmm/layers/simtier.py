"""SimTier (section 4.2): how many of a user's behaviors are how similar to the target item."""

from __future__ import annotations

import inspect
import typing

import keras
from keras import ops

from tfmm.layers import checks
from tfmm.layers.compilation import is_traced_for_xla
from tfmm.layers.packed_counts import packed_counts
from tfmm.layers.similarity import Comparison, compare, require_inputs, verify_similarity

TIER_OUTPUTS = ("count", "log1p", "ratio")
TIER_RULES = ("paper", "muse")
MUSE_NUM_TIERS = 22


def tier_index(similarity: typing.Any, num_tiers: int, tiers: str = "paper") -> typing.Any:
    """Finds the tier of each similarity: floor((s + 1) * (N / 2)), s clipped to [-1, 1], the last tier closed.

    Float32 in exactly this form, which NumPy, plain TensorFlow and XLA round alike; the clip before the sum
    also keeps a compiler from contracting it with the scale of `s` into one fused multiply-add, which rounds
    once. The sum s + 1 rounds: with N = 20, a similarity less than 1.2e-7 below an edge may go to the tier above
    it, and none goes below; with another N, one within 2e-7 of an edge may lie on its other side. Nor is an edge
    such as -0.8 a float32: the nearest float32 is less, and lies in the tier below.

    Args:
        similarity: float [...]; num_tiers: int N; tiers: "paper", or "muse" for ceil(10 s) + 10 (N = 22).
    Returns:
        int32 [...], in [0, N); N, which is no tier, where the similarity is NaN.
    Raises:
        ValueError: N < 1 or not a whole number, or an unknown `tiers`, or "muse" with another N.

    >>> tier_index([-1.0, -0.6, 0.0, 0.5, 1.0, 1.0000002], 4).numpy()
    array([0, 0, 2, 3, 3, 3], dtype=int32)
    """
    return _tier_where(None, similarity, _require_tiers(num_tiers, tiers), tiers)


def _tier_where(mask: typing.Any, similarity: typing.Any, num_tiers: int, tiers: str) -> typing.Any:
    """The tier of each similarity; N where the mask is False or the similarity NaN."""
    similarity = ops.cast(similarity, "float32")
    counted = ops.equal(similarity, similarity)  # not NaN
    counted = counted if mask is None else ops.logical_and(counted, mask)
    similarity = ops.clip(similarity, -1.0, 1.0)
    if tiers == "muse":
        tier = ops.ceil(similarity * 10.0) + 10.0
    else:
        tier = ops.floor((similarity + 1.0) * (num_tiers / 2.0))
    tier = ops.cast(ops.minimum(tier, num_tiers - 1.0), "int32")
    return ops.where(counted, tier, num_tiers)


def _require_tiers(num_tiers: typing.Any, tiers: str) -> int:
    num_tiers = checks.require_int("num_tiers", num_tiers)
    checks.require(tiers in TIER_RULES, f"`tiers` must be one of {TIER_RULES}.", tiers)
    checks.require(
        tiers == "paper" or num_tiers == MUSE_NUM_TIERS,
        f"`tiers='muse'` has {MUSE_NUM_TIERS} tiers; pass that as `num_tiers`.",
        num_tiers,
    )
    return num_tiers


def tier_counts(similarity: typing.Any, mask: typing.Any, num_tiers: int, tiers: str = "paper") -> typing.Any:
    """Counts the behaviors in each similarity tier (SimTier, section 4.2, equation 2).

    Args:
        similarity: float [B, L], cosine of target and behavior, in [-1, 1]; values outside are clipped.
        mask: bool [B, L] (or [1, L]), True where a behavior with an embedding exists; None: everywhere.
        num_tiers: int N > 0; tier n covers [-1 + 2n/N, -1 + 2(n+1)/N), the last one closed.
        tiers: "paper", or "muse" (see `tier_index`).
    Returns:
        float32 [B, N]; row b sums to the number of True in mask[b], less those whose similarity is NaN, which
        counts in no tier.
    Raises:
        ValueError: another rank, a mask of another shape, or a tier rule that `tier_index` refuses.

    Differs from the paper: the mask and the clip are ours.

    >>> tier_counts([[-1.0, 0.1, 0.2, 1.0]], [[True, True, True, False]], 2).numpy()
    array([[1., 2.]], dtype=float32)
    """
    num_tiers = _require_tiers(num_tiers, tiers)
    if isinstance(similarity, keras.KerasTensor):
        return SimTierLayer(num_tiers, tiers=tiers)(similarity=similarity, behaviors_mask=mask)
    similarity = ops.convert_to_tensor(similarity)
    checks.require_rank("similarity", similarity, 2, "[B, L]")
    mask = checks.as_mask("mask", mask, tuple(similarity.shape), (1, similarity.shape[1]))
    tier = _tier_where(mask, ops.stop_gradient(similarity), num_tiers, tiers)
    if is_traced_for_xla() and tier.shape[1] is not None:
        return packed_counts(tier, num_tiers)
    return _segment_counts(tier, num_tiers)


def _segment_counts(tier: typing.Any, num_tiers: int) -> typing.Any:
    """One pass that adds each behavior to its (row, tier); the tier N collects what is masked."""
    shape = ops.shape(tier)
    row = ops.expand_dims(ops.arange(shape[0], dtype="int32"), -1)
    segments = ops.reshape(row * (num_tiers + 1) + tier, (-1,))
    ones = ops.ones_like(segments, dtype="float32")
    counts = ops.segment_sum(ones, segments, shape[0] * (num_tiers + 1))
    return ops.reshape(counts, (-1, num_tiers + 1))[:, :num_tiers]


@keras.saving.register_keras_serializable(package="tfmm")
class SimTierLayer(keras.layers.Layer):
    """Counts of behaviors per tier of similarity to the target (SimTier, section 4.2, equation 2).

    Call it with vectors, `layer(target, behaviors, behaviors_mask=mask)`, or with similarities that are
    ready, `layer(similarity=similarity, behaviors_mask=mask)`. Everything is computed in float32 whatever the
    dtype policy, depends on no order of the behaviors, and passes no gradient to the vectors: a count has none.
    A similarity that is NaN counts in no tier; missing is not zero: nor does a behavior whose mask is False or
    whose scale is 0.

    Several targets [C, D] may share one history [1, L, D] (a ranking request): one matrix product then serves
    all. Its batch size must be known to be 1: `keras.Input(batch_shape=(1, L, D))`, and in a SavedModel
    `model.export(path, input_signature=[...])` with `tf.TensorSpec([1, L, D])` for the history, [1, L] for its
    masks and scales, [None, D] for the targets. A plain `export` leaves the size unknown: the counts are the
    same, the form is slower.

    int8 rows count alike on every device. Of float vectors the products round: on GPUs that have TensorFloat-32
    (NVIDIA Ampere and later) by 1e-3, unless `tf.config.experimental.enable_tensor_float_32_execution(False)`.

    Args:
        num_tiers: int N > 0; tier n covers [-1 + 2n/N, -1 + 2(n+1)/N), the last one closed (see `tier_index`).
        tier_output: "count" (the paper), "log1p" (log(1 + count)) or "ratio" (count / number of unmasked
            behaviors).
        coarse_num_tiers: further resolutions, each a divisor of `num_tiers`; their counts, sums of the fine
            ones, follow after the fine ones.
        count_missing: append one value: how many behaviors exist without having an embedding
            (`behaviors_present` True, `behaviors_mask` False or scale 0), scaled as `tier_output` says, a ratio
            being of the behaviors present.
        tier_embedding_dim: int E: give E values per tier, the tier's value times a learned row; None: the
            value.
        tiers: "paper", or "muse" for the 22 tiers ceil(10 s) + 10 of alimama-tech/MUSE.
        check: also verify values: NaN, vectors that are not of norm 1 (after scaling) or ready similarities
            outside [-1, 1] raise a ValueError where values can be read and give NaN in a compiled graph. Costs
            a pass over the vectors.

    Call arguments:
        target: float [B, D], vectors of norm 1; or int8 [B, D] rows with `target_scales`; or [C, D] with one
            history.
        behaviors: float [B, L, D] or int8 [B, L, D] with `behaviors_scales`; or [1, L, D].
        behaviors_mask: bool [B, L] (or [1, L] with one history), True where a behavior with an embedding
            exists; None: all do.
        target_mask: bool [B], True where the target has an embedding; a row without one counts 0 in each tier
            (how many behaviors are missing is still told).
        target_scales: float32 [B], 1 / norm of each row, 0 where the embedding is missing.
        behaviors_scales: float32 [B, L] (or [1, L]), likewise.
        behaviors_present: bool [B, L] (or [1, L]), True where a behavior exists, with or without embedding.
        similarity: float [B, L] in [-1, 1], in place of target, behaviors and scales; values outside are
            clipped.

    Returns:
        float32 [B, W]; W = N + the coarse tiers + 1 if `count_missing`, times E if there is a tier embedding
        (the missing count is not embedded).

    Raises:
        ValueError: arguments outside their range; shapes that do not fit, int8 rows without scales (when a
            functional model is built, too); with `check`, the values named there.

    Differs from the paper: the body of its Algorithm 1 did not survive in our copy, so the edges follow
    section 4.2's text, with half-open tiers and clipping (identical items land in the last tier). Masks,
    log1p, ratio, further resolutions, the missing count and the tier embedding are ours.

    >>> layer = SimTierLayer(num_tiers=4)
    >>> similarity = ops.array([[-1.0, -0.5, 0.1, 1.0]])
    >>> layer(similarity=similarity, behaviors_mask=ops.array([[True, True, True, False]])).numpy()
    array([[1., 1., 1., 0.]], dtype=float32)
    """

    def __init__(
        self,
        num_tiers: int = 20,
        tier_output: str = "count",
        coarse_num_tiers: typing.Sequence[int] = (),
        count_missing: bool = False,
        tier_embedding_dim: int | None = None,
        tiers: str = "paper",
        check: bool = False,
        **kwargs: typing.Any,
    ) -> None:
        kwargs.pop("autocast", None)
        super().__init__(autocast=False, **kwargs)  # a cosine rounded to bfloat16 lands in another tier
        self.num_tiers = _require_tiers(num_tiers, tiers)
        checks.require(tier_output in TIER_OUTPUTS, f"`tier_output` must be one of {TIER_OUTPUTS}.", tier_output)
        self.coarse_num_tiers = checks.require_ints("coarse_num_tiers", coarse_num_tiers)
        for coarse in self.coarse_num_tiers:
            divides = self.num_tiers % coarse == 0
            checks.require(divides, f"`coarse_num_tiers` must divide `num_tiers` ({num_tiers}).", coarse)
        if tier_embedding_dim is not None:
            tier_embedding_dim = checks.require_int("tier_embedding_dim", tier_embedding_dim)
        self.tier_output = tier_output
        self.count_missing = checks.require_bool("count_missing", count_missing)
        self.tier_embedding_dim = tier_embedding_dim
        self.tiers = tiers
        self.check = checks.require_bool("check", check)
        self.supports_masking = True

    def build(self, target_shape: typing.Any = None, similarity_shape: typing.Any = None) -> None:
        if self.tier_embedding_dim is not None:
            self.tier_embedding = self.add_weight(
                name="tier_embedding",
                shape=(self._num_values, self.tier_embedding_dim),
                dtype="float32",
                initializer=keras.initializers.RandomUniform(0.0, 1.0),
                autocast=False,
            )
        self.built = True

    def call(
        self,
        target: typing.Any = None,
        behaviors: typing.Any = None,
        behaviors_mask: typing.Any = None,
        target_mask: typing.Any = None,
        target_scales: typing.Any = None,
        behaviors_scales: typing.Any = None,
        behaviors_present: typing.Any = None,
        similarity: typing.Any = None,
    ) -> typing.Any:
        inputs = (target, behaviors, behaviors_mask, target_mask, target_scales, behaviors_scales)
        compared = compare(*inputs, behaviors_present, similarity)
        self._require_missing(behaviors_mask, behaviors_scales, behaviors_present)
        similarity = ops.stop_gradient(compared.similarity)
        mask = compared.both_exist()
        counts = tier_counts(similarity, mask, self.num_tiers, self.tiers)
        values = [counts]
        for coarse in self.coarse_num_tiers:
            values.append(ops.sum(ops.reshape(counts, (-1, coarse, self.num_tiers // coarse)), axis=-1))
        result = self._scale(ops.concatenate(values, axis=-1), mask)
        if self.tier_embedding_dim is not None:
            result = ops.reshape(
                ops.expand_dims(result, -1) * ops.cast(self.tier_embedding, "float32"),
                (-1, self._num_values * self.tier_embedding_dim),
            )
        if self.count_missing:
            result = ops.concatenate([result, self._missing(result, compared)], axis=-1)
        if self.check:
            valid = verify_similarity(similarity, mask, *inputs)
            result = ops.where(valid, result, ops.full_like(result, float("nan")))
        return result

    @property
    def _num_values(self) -> int:
        return self.num_tiers + sum(self.coarse_num_tiers)

    def _scale(self, counts: typing.Any, mask: typing.Any) -> typing.Any:
        if self.tier_output == "log1p":
            return ops.log1p(counts)
        if self.tier_output == "ratio":
            length = ops.sum(ops.cast(mask, "float32"), axis=-1, keepdims=True)
            return counts / ops.maximum(length, 1.0)
        return counts

    def _require_missing(
        self, behaviors_mask: typing.Any, behaviors_scales: typing.Any, behaviors_present: typing.Any
    ) -> None:
        is_told = behaviors_present is not None and (behaviors_mask is not None or behaviors_scales is not None)
        rule = "`count_missing=True` needs `behaviors_present`, and `behaviors_mask` or `behaviors_scales`."
        checks.require(is_told or not self.count_missing, rule, None)

    def _missing(self, result: typing.Any, compared: Comparison) -> typing.Any:
        missing = ops.logical_and(compared.present, ops.logical_not(compared.has_embedding))
        count = ops.sum(ops.cast(missing, "float32"), axis=-1, keepdims=True)
        count = self._scale(count, compared.present)
        return count + ops.zeros_like(result[:, :1])  # one shared history gives one count for all targets

    def compute_output_shape(
        self, target_shape: typing.Any = None, similarity_shape: typing.Any = None
    ) -> tuple[int | None, int]:
        batch = (target_shape if target_shape is not None else similarity_shape)[0]
        return (batch, self._num_values * (self.tier_embedding_dim or 1) + int(self.count_missing))

    def compute_output_spec(self, *args: typing.Any, **kwargs: typing.Any) -> typing.Any:
        inputs = inspect.signature(self.call).bind(*args, **kwargs).arguments
        require_inputs(**inputs)
        names = ("behaviors_mask", "behaviors_scales", "behaviors_present")
        self._require_missing(*(inputs.get(name) for name in names))
        spec = super().compute_output_spec(*args, **kwargs)
        return keras.KerasTensor(spec.shape, dtype="float32")

    def compute_mask(self, inputs: typing.Any, previous_mask: typing.Any) -> None:
        return None

    def get_config(self) -> dict[str, typing.Any]:
        return {
            **super().get_config(),
            "num_tiers": self.num_tiers,
            "tier_output": self.tier_output,
            "coarse_num_tiers": list(self.coarse_num_tiers),
            "count_missing": self.count_missing,
            "tier_embedding_dim": self.tier_embedding_dim,
            "tiers": self.tiers,
            "check": self.check,
        }
