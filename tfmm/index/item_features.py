"""Items' features as rows of the index: they travel as vectors do, as int8 values of one length per item.

A row is the bytes of the features' values as examples hold them (`data.declared.values`): int64 of ids and times,
float32 of numbers and booleans. So one log, one snapshot, one table in the graph and one upsert carry both.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import typing

import numpy as np

from tfmm import artifacts
from tfmm import config as config_lib
from tfmm.features import STORED, Column, Feature, FeatureSet
from tfmm.index import store

if typing.TYPE_CHECKING:
    import tensorflow as tf

    from tfmm.vectors import Vectors

class Packed(typing.NamedTuple):
    """One item's row."""

    version: str  # of its layout
    row: np.ndarray  # int8 [dim]
    given: np.ndarray | None = None  # bool [dim], see `store.TableRows`


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which features a row holds, and where.

    >>> layout = Layout.of(FeatureSet(), {"category": "int64"})
    >>> layout.dim, layout.unpack(layout.pack({"category": np.array([7, 0])}))
    (8, {'category': array([7, 0])})
    """

    features: tuple[Feature, ...]  # by name, with what matters here alone
    id_types: typing.Mapping[str, str]  # "int64" or "string", of those of ids

    @classmethod
    def of(cls, feature_set: FeatureSet, id_types: typing.Mapping[str, str]) -> Layout:
        """Returns the layout of what a run declares."""
        own = [
            Feature(f.name, f.role, f.kind, f"items.{f.column}", max_values=f.max_values if f.kind == "ids" else 1)
            for f in sorted(feature_set.stored, key=lambda feature: feature.name)
        ]
        return cls(tuple(own), {f.name: id_types.get(f.name, "int64") for f in own if f.kind in ("id", "ids")})

    @property
    def text(self) -> str:
        """The layout as JSON, which the index keeps beside the rows."""
        values = {"features": [config_lib.to_dict(f) for f in self.features], "id_types": dict(self.id_types)}
        return json.dumps(values, sort_keys=True)

    @functools.cached_property
    def version(self) -> str:
        """Hash of the layout; rows of two layouts are never mixed."""
        return artifacts.fingerprint(self.text)

    @property
    def dim(self) -> int:
        """Bytes of a row."""
        return max((end for _, end in self.places.values()), default=0)

    @functools.cached_property
    def places(self) -> dict[str, tuple[int, int]]:
        """The first byte of each feature, and the one after its last; those of 8 bytes come first."""
        result, start = {}, 0
        for feature in sorted(self.features, key=lambda f: Column(f.name, f).is_float):
            end = start + (4 if Column(feature.name, feature).is_float else 8 * feature.max_values)
            result[feature.name] = (start, end)
            start = end
        return result

    def common(self, other: Layout) -> tuple[str, ...]:
        """Returns the features that both hold in the same form."""
        return tuple(
            f.name
            for f in self.features
            if f in other.features and self.id_types.get(f.name) == other.id_types.get(f.name)
        )

    def pack(self, values: typing.Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns rows, int8 [n, dim].

        Args:
            values: by feature, int64 or float32 [n], or int64 [n, M] of multi-valued ids.
        """
        parts = []
        for name in self.places:
            own = np.asarray(values[name])
            if own.dtype.kind == "f":
                own = np.where(np.isnan(own), np.float32(np.nan), own).astype(np.float32)  # one NaN: equal bytes
            parts.append(np.ascontiguousarray(own).view(np.int8).reshape(len(own), -1))
        return np.concatenate(parts, axis=1)

    def unpack(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Returns what `pack` packed."""
        result = {}
        for name, (start, end) in self.places.items():
            feature = next(f for f in self.features if f.name == name)
            own = np.ascontiguousarray(rows[:, start:end]).view(np.float32 if self._is_float(name) else np.int64)
            result[name] = own if feature.kind == "ids" else own[:, 0]
        return result

    def given(self, names: typing.Collection[str]) -> np.ndarray:
        """Returns bool [dim], True for the bytes of some features."""
        result = np.zeros(self.dim, bool)
        for name in names:
            result[slice(*self.places[name])] = True
        return result

    def unpack_tensors(self, found: Vectors) -> dict[str, tf.Tensor]:
        """Returns the features of rows that were looked up in a graph; missing where there is no row.

        Args:
            found: rows int8 [..., dim], scales (not used), mask bool [...].
        Returns:
            By feature, int64 or float32 [...], or int64 [..., M] of multi-valued ids.
        """
        import tensorflow as tf  # here, so that writers of events need none

        result = {}
        for feature in self.features:
            start, end = self.places[feature.name]
            dtype, size = (tf.float32, 4) if self._is_float(feature.name) else (tf.int64, 8)
            part = found.rows[..., start:end]
            shape = tf.concat([tf.shape(part)[:-1], [(end - start) // size, size]], axis=0)
            values = tf.bitcast(tf.reshape(part, shape), dtype)
            values = tf.ensure_shape(values, [*part.shape[:-1], (end - start) // size])
            if feature.kind != "ids":
                values = values[..., 0]
            if dtype == tf.float32:
                values = tf.where(found.mask, values, tf.constant(np.nan, tf.float32))
            result[feature.name] = values
        return result

    def _is_float(self, name: str) -> bool:
        return any(Column(f.name, f).is_float for f in self.features if f.name == name)


@functools.lru_cache(maxsize=64)
def from_text(text: str) -> Layout:
    """Returns the layout that `Layout.text` gives."""
    values = json.loads(text)
    return Layout(tuple(config_lib.from_dict(Feature, f) for f in values["features"]), values["id_types"])


def layouts(index: store.IndexStore) -> list[Layout]:
    """Returns the layouts of an index's features, the active one last."""
    found = sorted((entry for entry in index.encoders() if entry.modality == STORED), key=lambda entry: entry.active)
    return [from_text(entry.layout) for entry in found]
