"""A table of item vectors that is looked up and never trained: item id -> int8 row, scale and mask."""

from __future__ import annotations

import typing

import keras
import numpy as np
from keras import ops

from tfmm.layers import checks
from tfmm.layers.compilation import first_of, is_symbolic, is_traced_for_xla
from tfmm.layers.similarity import MAX_INT8_DIM, unit_vectors

FROZEN_OUTPUTS = ("vector", "rows")


@keras.saving.register_keras_serializable(package="tfmm")
class FrozenEmbedding(keras.layers.Layer):
    """Looks item ids up in a frozen table of quantised vectors.

    Ids that the table lacks, and 0 (padding), give a zero row, scale 0 and False in the mask: missing is not
    similarity 0. With `output_form="vector"` the mask travels with the output, so that the layers of this
    package find it by themselves.

    Args:
        num_items: int, rows of the table.
        dim: int D, values per row.
        by_index: the ids are row numbers 1..num_items (as vocabulary indices are) and are not searched for.
        output_form: "vector": float32 [..., D] of norm 1; "rows": dict of "rows" int8 [..., D], "scales"
            float32 [...] and "mask" bool [...], on which similarities are exact.

    Call arguments:
        ids: int64 or int32 [...], item ids; 0 is padding. `keras.Input` gives float32 unless told
            `dtype="int64"`. JAX without JAX_ENABLE_X64=1 has 32 bits: host arrays are checked where the layer is
            called, but `jax.jit` and a model around the layer cut larger ids before it sees them.

    Raises:
        ValueError: arguments outside their range, ids that are not integers or that do not fit 32 bits on such a
            JAX, or a table that was neither set
            nor loaded. (A subclassed model is built before its weights are loaded by a call with `keras.Input`.)

    >>> table = FrozenEmbedding.from_table(ids=[7, 3], rows=[[3, 4], [0, 5]], scales=[0.2, 0.2])
    >>> table(np.array([[3, 9, 0]])).numpy()
    array([[[0., 1.],
            [0., 0.],
            [0., 0.]]], dtype=float32)
    """

    def __init__(
        self,
        num_items: int,
        dim: int,
        output_form: str = "vector",
        by_index: bool = False,
        **kwargs: typing.Any,
    ) -> None:
        kwargs.pop("autocast", None)
        kwargs["trainable"] = False
        super().__init__(autocast=False, **kwargs)
        self.num_items = checks.require_int("num_items", num_items)
        self.dim = checks.require_int("dim", dim)
        checks.require(self.dim <= MAX_INT8_DIM, f"`dim` must lie in 1..{MAX_INT8_DIM}.", dim)
        checks.require(output_form in FROZEN_OUTPUTS, f"`output_form` must be one of {FROZEN_OUTPUTS}.", output_form)
        self.output_form = output_form
        self.by_index = checks.require_bool("by_index", by_index)
        self.supports_masking = True
        self._has_table = False

    def build(self, ids_shape: typing.Any = None) -> None:
        def weight(name: str, shape: tuple[int, ...], dtype: str) -> typing.Any:
            return self.add_weight(
                name=name, shape=shape, dtype=dtype, initializer="zeros", trainable=False, autocast=False
            )

        self.ids = weight("ids", (self.num_items,), checks.id_dtype())
        # One row more than items: the last is zero and stands for every id that is missing.
        self.rows = weight("rows", (self.num_items + 1, self.dim), "int8")
        self.scales = weight("scales", (self.num_items + 1,), "float32")
        self.built = True

    @classmethod
    def from_table(cls, ids: typing.Any, rows: typing.Any, scales: typing.Any, **kwargs: typing.Any) -> FrozenEmbedding:
        """Builds the layer around a table.

        Args:
            ids: int64 [n], unique, not 0, in any order (with `by_index`: 1..n); rows: int8 [n, D]; scales:
                float32 [n], 1 / norm of each row (0 withdraws the item).
        Raises:
            ValueError: a repeated id, an id of 0, other shapes or types, or a scale that is not 1 / norm.
        """
        rows = np.asarray(rows)
        checks.require(rows.ndim == 2, "`rows` must have 2 axes [n, D].", rows.shape)
        layer = cls(num_items=rows.shape[0], dim=rows.shape[1], **kwargs)
        layer.build()
        layer.set_table(ids, rows, scales)
        return layer

    def set_table(self, ids: typing.Any, rows: typing.Any, scales: typing.Any) -> None:
        """Puts another table of the same size into the layer (see `from_table`).

        Raises:
            ValueError: what `from_table` refuses, or a table of another size.
        """
        ids, rows, scales = np.asarray(ids), np.asarray(rows), np.asarray(scales, np.float32)
        shape = (self.num_items, self.dim)
        checks.require(rows.shape == shape, f"`rows` must have the shape {shape}.", rows.shape)
        checks.require(
            ids.shape == shape[:1] and ids.dtype.kind in "iu",
            f"`ids` must be integers [{shape[0]}].",
            (ids.shape, str(ids.dtype)),
        )
        checks.require(scales.shape == shape[:1], f"`scales` must have the shape {shape[:1]}.", scales.shape)
        checks.require(
            rows.dtype.kind in "iu" and np.abs(rows.astype(np.int32)).max() <= 127,
            "`rows` must be whole numbers in -127..127.",
            str(rows.dtype),
        )
        checks.require(not (ids == 0).any(), "`ids` must not hold 0, which is padding.", 0)
        order = np.argsort(ids, kind="stable")
        ids, rows, scales = ids[order], rows[order], scales[order]
        checks.require(
            bool((ids[1:] != ids[:-1]).all()),
            "`ids` must be unique.",
            ids[1:][ids[1:] == ids[:-1]][:3].tolist(),
        )
        numbered = np.array_equal(ids, np.arange(1, self.num_items + 1))
        checks.require(numbered or not self.by_index, "With `by_index`, `ids` must be 1..n.", ids[:3].tolist())
        norms = np.sqrt((rows.astype(np.float32) ** 2).sum(1))
        wrong = ~(np.abs(norms * scales - 1.0) < 1e-3) & ~((scales == 0.0) & np.isfinite(scales))
        checks.require(
            not wrong.any(),
            "`scales` must be 1 / norm of each row, or 0 where an item is withdrawn.",
            scales[wrong][:3].tolist(),
        )
        checks.require_ids_fit("ids", ids)
        self.ids.assign(ids.astype(checks.id_dtype()))
        self.rows.assign(np.pad(rows.astype(np.int8) * (scales > 0)[:, None], ((0, 1), (0, 0))))
        self.scales.assign(np.pad(scales, (0, 1)))

    def lookup(self, ids: typing.Any) -> tuple[typing.Any, typing.Any, typing.Any]:
        """Returns rows int8 [..., D], scales float32 [...] and mask bool [...] of ids int [...].

        Raises:
            ValueError: ids that are not integers or do not fit the table's type, or a table that was neither set
                nor loaded.
        """
        self._require_table()
        checks.require_ids_fit("ids", ids)
        ids = ops.convert_to_tensor(ids)
        if not is_symbolic():  # a subclassed model is built with float placeholders
            _require_integers(ids)
        ids = ops.cast(ids, checks.id_dtype())
        if self.by_index:
            place = ids - 1
            found = ops.logical_and(place >= 0, place < self.num_items)
        else:
            table = ops.convert_to_tensor(self.ids)
            place = ops.minimum(self._search(table, ids), self.num_items - 1)
            found = ops.equal(ops.take(table, place, axis=0), ids)
        place = ops.where(found, place, self.num_items)
        rows = ops.take(ops.convert_to_tensor(self.rows), place, axis=0)
        scales = ops.take(ops.convert_to_tensor(self.scales), place, axis=0)
        return rows, scales, scales > 0.0

    def _require_table(self) -> None:
        if not self._has_table:
            first = first_of(self.ids) if self.built else 0
            rule = "The table is empty: use `FrozenEmbedding.from_table` or `set_table`, or load the layer's weights."
            checks.require(first is None or bool(first != 0), rule, f"a layer of {self.num_items} items, none set")
            self._has_table = first is not None  # no table holds the id 0

    def _search(self, table: typing.Any, ids: typing.Any) -> typing.Any:
        """Returns int32 [...]: how many ids of the sorted table are smaller than each id."""
        if not is_traced_for_xla():
            place = ops.searchsorted(table, ops.reshape(ids, (-1,)))
            return ops.cast(ops.reshape(place, ops.shape(ids)), "int32")
        place = ops.zeros_like(ids, dtype="int32")  # XLA's own search compares every id with the whole table
        for bit in reversed(range(self.num_items.bit_length())):
            step = place + 2**bit
            last = ops.take(table, ops.minimum(step, self.num_items) - 1, axis=0)
            place = ops.where(ops.logical_and(step <= self.num_items, last < ids), step, place)
        return place

    def __call__(self, ids: typing.Any, *args: typing.Any, **kwargs: typing.Any) -> typing.Any:
        checks.require_ids_fit("ids", ids)  # before Keras converts them
        return super().__call__(ids, *args, **kwargs)

    def call(self, ids: typing.Any) -> typing.Any:
        rows, scales, mask = self.lookup(ids)
        if self.output_form == "rows":
            return {"rows": rows, "scales": scales, "mask": mask}
        return unit_vectors(rows, scales)

    def compute_mask(self, ids: typing.Any, previous_mask: typing.Any = None) -> typing.Any:
        if self.output_form == "rows" or isinstance(ids, keras.KerasTensor):
            return None
        return self.lookup(ids)[2]

    def compute_output_shape(self, ids_shape: typing.Any) -> typing.Any:
        shape = tuple(ids_shape)
        if self.output_form == "vector":
            return (*shape, self.dim)
        return {"rows": (*shape, self.dim), "scales": shape, "mask": shape}

    def compute_output_spec(self, ids: typing.Any) -> typing.Any:
        _require_integers(ids)
        shapes = self.compute_output_shape(ids.shape)
        if self.output_form == "vector":
            return keras.KerasTensor(shapes, dtype="float32")
        dtypes = {"rows": "int8", "scales": "float32", "mask": "bool"}
        return {name: keras.KerasTensor(shape, dtype=dtypes[name]) for name, shape in shapes.items()}

    def get_config(self) -> dict[str, typing.Any]:
        return {
            **super().get_config(),
            "num_items": self.num_items,
            "dim": self.dim,
            "output_form": self.output_form,
            "by_index": self.by_index,
        }


def _require_integers(ids: typing.Any) -> None:
    dtype = keras.backend.standardize_dtype(ids.dtype)
    is_integer = dtype.startswith(("int", "uint")) and dtype != "uint64"
    checks.require(is_integer, "`ids` must be integers: pass int64, or `keras.Input(..., dtype='int64')`.", dtype)
