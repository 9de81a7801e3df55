"""How similar targets are to the behaviors beside them, as a histogram of SimTier's tiers: what a model looked at.

Held beside the same of what is served, it tells whether items, encoders or users have moved away from training's.
"""

from __future__ import annotations

import os
import typing

import numpy as np

from tfmm.data import shards as shards_lib
from tfmm.features import FeatureSet
from tfmm.index import snapshot as snapshot_lib
from tfmm.layers.simtier import tier_index
from tfmm.training import examples as examples_lib
from tfmm.vectors import Vectors

NUM_TIERS = 20
ROWS = 20_000  # that are looked at, drawn of all
_PIECE = 65_536  # behaviors whose vectors are held at once
LookUp = typing.Callable[[np.ndarray], Vectors]


class Tiers(typing.NamedTuple):
    """Pairs of a target and a behavior.

    Attributes:
        counts: int64 [NUM_TIERS], pairs by tier, from the least similar to the most.
        unknown: pairs of which an item has no vector.
    """

    counts: np.ndarray
    unknown: int

    def to_dict(self) -> dict[str, typing.Any]:
        """Returns the same as plain values."""
        return {"counts": self.counts.tolist(), "unknown": self.unknown}


def tiers(targets: np.ndarray, behaviors: np.ndarray, look_up: LookUp) -> Tiers:
    """Counts pairs by tier, equation 2 summed over rows.

    Args:
        targets: int64 [n]; behaviors: int64 [n, L], 0 is padding.
        look_up: returns the vectors of int64 [...] items.

    >>> rows = np.array([[1, 0], [0, 1], [-1, 0]], np.int8)
    >>> look_up = lambda ids: Vectors(rows[ids - 1], np.ones(ids.shape, np.float32), ids > 0)
    >>> found = tiers(np.array([1]), np.array([[1, 2, 3, 0]]), look_up)
    >>> np.flatnonzero(found.counts), found.unknown
    (array([ 0, 10, 19]), 0)
    """
    counts, unknown = np.zeros(NUM_TIERS, np.int64), 0
    piece = max(1, _PIECE // max(1, behaviors.shape[1]))
    for start in range(0, len(targets), piece):
        own, others = targets[start : start + piece], behaviors[start : start + piece]
        target, behavior = look_up(own), look_up(others)
        dots = np.einsum("nd,nld->nl", target.rows.astype(np.float32), behavior.rows.astype(np.float32))
        cosines = dots * np.asarray(target.scales)[:, None] * behavior.scales
        is_pair = others != 0
        has_both = is_pair & target.mask[:, None] & behavior.mask
        found = np.asarray(tier_index(cosines[has_both].astype(np.float32), NUM_TIERS))
        counts += np.bincount(found, minlength=NUM_TIERS)[:NUM_TIERS]
        unknown += int(is_pair.sum() - has_both.sum())
    return Tiers(counts, unknown)


def report(
    files: typing.Sequence[str],
    feature_set: FeatureSet,
    snapshot_dir: str | os.PathLike[str],
    num_rows: int,
    seed: int = 0,
) -> dict[str, dict[str, typing.Any]]:
    """Returns the tiers of examples by modality, as `Tiers.to_dict`, over all sequences; of `ROWS` rows at most.

    Empty where no sequence is declared: there is no pair then.

    Args:
        files: of the examples.
        feature_set: what they hold.
        snapshot_dir: what the model was trained with.
        num_rows: of the examples.
        seed: of the rows drawn.
    """
    names = [sequence.item_ids for sequence in feature_set.sequences]
    if not names:
        return {}
    rows = np.arange(num_rows)
    if num_rows > ROWS:
        rows = np.sort(np.random.default_rng(seed).choice(num_rows, ROWS, replace=False))
    columns = _gather(files, feature_set, ("item_id", *names), rows)
    behaviors = np.concatenate([columns[name] for name in names], 1)
    snapshot = snapshot_lib.load_snapshot(str(snapshot_dir))
    found = {name: tiers(columns["item_id"], behaviors, snapshot[name].lookup) for name in snapshot.modalities}
    return {name: one.to_dict() for name, one in found.items()}


def _gather(
    files: typing.Sequence[str], feature_set: FeatureSet, names: typing.Collection[str], rows: np.ndarray
) -> dict[str, np.ndarray]:
    """Returns columns of some rows, ascending, piece by piece."""
    if shards_lib.is_shards(files):
        return shards_lib.Shards(files).gather(rows, names)
    parts, start = [], 0
    for piece in examples_lib.read_pieces(files, feature_set, names):
        count = len(piece["item_id"])
        own = rows[(rows >= start) & (rows < start + count)] - start
        parts.append({name: values[own] for name, values in piece.items()})
        start += count
    return {name: np.concatenate([part[name] for part in parts]) for name in names}
