"""What makes a row unusable: the batch job sends such rows to its dead letters, `tfmm data check` reports them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tfmm.data import schema

Faults = list[tuple[str, str, np.ndarray]]  # column, rule, bool [n]: True where the row breaks it


def required_values(name: str, table: pa.Table) -> Faults:
    """Null, 0 or empty where a value must be."""
    faults: Faults = []
    for column in schema.TABLES[name].columns:
        if not column.required:
            continue
        null = _mask(pc.is_null(table[column.name]))
        faults.append((column.name, "must not be null", null))
        if column.kind == "id":
            faults.append((column.name, "must not be 0 or empty", (schema.fingerprints(table[column.name]) == 0) & ~null))
    return faults


def allowed_values(name: str, table: pa.Table) -> Faults:
    """A label, split or action outside the ones that exist."""
    faults: Faults = []
    for column, allowed, text in (("label", [0, 1], "must be 0 or 1"), ("split", schema.SPLITS, "must be train or eval"),
                                  ("action", schema.ACTIONS, f"must be one of {', '.join(schema.ACTIONS)}")):
        if column in table.column_names and column in {c.name for c in schema.TABLES[name].columns}:
            values = table[column]
            known = _mask(pc.is_in(values, value_set=pa.array(allowed, values.type)))
            null = _mask(pc.is_null(values))
            faults.append((column, text, ~known & ~null))
            if column == "split" and null.any() and not null.all():
                faults.append((column, "must not be null where other rows have a split", null))
    return faults


def known_items(items: np.ndarray, catalog_ids: np.ndarray, column: str = "item_id") -> Faults:
    """An item that the catalog lacks; `items` int64 [n] fingerprints (0 is passed over), `catalog_ids` sorted."""
    places = np.minimum(np.searchsorted(catalog_ids, items), max(len(catalog_ids) - 1, 0))
    known = catalog_ids[places] == items if len(catalog_ids) else np.zeros(len(items), bool)
    return [(column, "must be in the items table", ~known & (items != 0))]


def first_reasons(faults: Faults, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns per row whether it breaks a rule, bool [n], and the first one it breaks, object [n]."""
    bad, reasons = np.zeros(num_rows, bool), np.full(num_rows, "", object)
    for column, rule, broken in faults:
        reasons[broken & ~bad] = f"`{column}` {rule}"
        bad |= broken
    return bad, reasons


def _mask(values: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(values.to_numpy(), bool)
