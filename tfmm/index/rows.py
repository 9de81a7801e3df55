"""Embeddings as parallel arrays: what the index, its snapshots and the replicator pass around."""

from __future__ import annotations

import dataclasses
import typing

import numpy as np

from tfmm.scl_config import MAX_DIM as MAX_DIM


@dataclasses.dataclass(frozen=True, eq=False)
class IndexRows:
    """Embeddings of one modality and encoder version."""

    ids: np.ndarray  # int64 [n]
    rows: np.ndarray  # int8 [n, D]
    scales: np.ndarray  # float32 [n]; 0: withdrawn, no embedding
    sequences: np.ndarray  # int64 [n]
    event_times_us: np.ndarray  # int64 [n]

    def __len__(self) -> int:
        return len(self.ids)


Record = tuple[int, bytes, float, int, int]


def from_records(records: typing.Sequence[Record], dim: int) -> IndexRows:
    """Returns records of (id, row, scale, sequence, event time) as arrays.

    >>> from_records([(7, bytes([3, 252]), 0.2, 1, 1000)], 2).rows.tolist()
    [[3, -4]]
    """
    ids, blobs, scales, sequences, times = zip(*records) if records else ((), (), (), (), ())
    return IndexRows(
        np.array(ids, np.int64),
        np.frombuffer(b"".join(blobs), np.int8).reshape(-1, dim),
        np.array(scales, np.float32),
        np.array(sequences, np.int64),
        np.array(times, np.int64),
    )


def concatenate(parts: typing.Sequence[IndexRows]) -> IndexRows:
    """Returns the rows of all `parts`, of which there must be one at least."""
    names = [field.name for field in dataclasses.fields(IndexRows)]
    return IndexRows(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})
