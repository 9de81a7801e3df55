"""Converts Online Retail (UCI; Chen et al. 2012): a year of invoices of a gift-ware shop, with descriptions.

Purchases are real; impressions are first-time purchases and, for each, four drawn items that the user did not
own, so click-through rates and calibration mean nothing. There are no searches and no images: encoders learn
from the text of adjacent invoice lines (co-purchase pairs), not from the paper's queries and purchased items.

Columns for a run to declare: an item's `price`, the source's median over the whole year, so that it holds a little of
what came later; and a user's `country`, that of most of the user's invoice lines.
"""

from __future__ import annotations

import pathlib
import typing

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tfmm import artifacts
from tfmm.data import behaviors as behaviors_lib
from tfmm.data import schema

SEED = 20_240_807  # of the order of rows of one minute
_SPLITS = {"train": "train", "test": "eval"}
_UNSPECIFIED = "Unspecified"  # a country


def convert(src: str | pathlib.Path, dst: str | pathlib.Path) -> dict[str, typing.Any]:
    """Writes items, users, behaviors and impressions.

    Args:
        src: folder of items, purchases, transactions_raw and ctr_samples, each `.parquet`.
        dst: made where missing.
    Returns:
        The manifest: rows per table.
    Raises:
        FileNotFoundError: a file of `src` is missing.
    """
    source, folder = pathlib.Path(src), pathlib.Path(dst).absolute()  # pyarrow takes others for URIs
    items, raw, bought, shown = (
        _read(source, name, columns)
        for name, columns in (
            ("items", ["stock_code", "description", "first_seen", "median_price"]),
            ("transactions_raw", ["invoice_no", "stock_code", "customer_id", "country"]),
            ("purchases", ["customer_id", "invoice_no", "invoice_date", "stock_code"]),
            ("ctr_samples", ["user_id", "item_id", "timestamp", "label", "split", "invoice_no"]),
        )
    )
    folder.mkdir(parents=True, exist_ok=True)
    known = pc.is_in(bought["stock_code"], value_set=items["stock_code"].combine_chunks())
    bought = bought.filter(known)
    bought_at = _invoice_times(bought["invoice_no"], bought["invoice_date"], bought)
    shown_at = _invoice_times(shown["invoice_no"], shown["timestamp"], bought)
    tables = {
        "items": pa.table(
            {
                "item_id": items["stock_code"],
                "title": items["description"],
                "created_at": items["first_seen"].cast(pa.timestamp("us")),
            }
        ),
        "behaviors": _by_time(
            pa.table(
                {
                    "user_id": bought["customer_id"],
                    "item_id": bought["stock_code"],
                    "timestamp": bought_at,
                    "action": pa.array(["purchase"] * bought.num_rows),
                    "order_id": bought["invoice_no"],
                    "order_line": _order_lines(raw, bought),
                }
            )
        ),
        "impressions": _by_time(
            pa.table(
                {
                    "user_id": shown["user_id"],
                    "item_id": shown["item_id"],
                    "timestamp": shown_at,
                    "label": shown["label"].cast(pa.int64()),
                    "split": pa.array([_SPLITS[split] for split in shown["split"].to_pylist()]),
                }
            )
        ),
    }
    tables = {name: schema.conform(table, name) for name, table in tables.items()}
    tables["items"] = tables["items"].append_column("price", items["median_price"])
    tables["users"] = _users(raw)
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=65_536)
    rows = {name: table.num_rows for name, table in tables.items()}
    return artifacts.write_manifest(folder, "data", source="online_retail", rows=rows)


def _read(folder: pathlib.Path, name: str, columns: list[str]) -> pa.Table:
    path = folder / f"{name}.parquet"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. `src` must hold Online Retail's tables as Parquet.")
    return pq.ParquetFile(path).read(columns=columns)


def _users(raw: pa.Table) -> pa.Table:
    """Returns each customer's country: that of most of the customer's lines, the first by name where two have as many.

    A country that the shop did not specify is null.
    """
    named = pc.if_else(pc.equal(raw["country"], _UNSPECIFIED), None, raw["country"])
    lines = pa.table({"user_id": raw["customer_id"], "country": named}).filter(pc.is_valid(raw["customer_id"]))
    counts = lines.group_by(["user_id", "country"]).aggregate([("country", "count")])  # 0 of null
    counts = counts.sort_by([("user_id", "ascending"), ("country_count", "descending"), ("country", "ascending")])
    _, first = np.unique(counts["user_id"].to_numpy(), return_index=True)
    return counts.take(pa.array(first)).select(["user_id", "country"])


def _invoice_times(invoices: pa.ChunkedArray, times: pa.ChunkedArray, bought: pa.Table) -> pa.Array:
    """Gives all lines of an invoice its first minute: a few span two, and are not one another's history."""
    keys, minutes = schema.fingerprints(bought["invoice_no"]), schema.microseconds(bought["invoice_date"])
    order = np.lexsort((minutes, keys))
    first_keys, first = np.unique(keys[order], return_index=True)
    first_minutes = minutes[order][first]
    wanted = schema.fingerprints(invoices)
    places = np.minimum(np.searchsorted(first_keys, wanted), len(first_keys) - 1)
    found = np.where(first_keys[places] == wanted, first_minutes[places], schema.microseconds(times))
    return pa.array(found, pa.timestamp("us"))


def _order_lines(raw: pa.Table, bought: pa.Table) -> np.ndarray:
    """Returns int64 [n]: the place of each purchase in its invoice, as the shop wrote the lines down."""
    invoices = schema.fingerprints(raw["invoice_no"])
    _, starts, codes = np.unique(invoices, return_index=True, return_inverse=True)
    keys, rows = np.unique(behaviors_lib.tie_break(invoices, schema.fingerprints(raw["stock_code"])), return_index=True)
    wanted = behaviors_lib.tie_break(
        schema.fingerprints(bought["invoice_no"]), schema.fingerprints(bought["stock_code"])
    )
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    if not (keys[places] == wanted).all():
        raise ValueError("Every purchase must be a line of transactions_raw. Received one that is none.")
    lines = np.arange(raw.num_rows) - starts[codes]
    return lines[rows[places]]


def _by_time(table: pa.Table) -> pa.Table:
    """Sorts by time, rows of one minute at random: the source's order tells labels."""
    draw = np.random.default_rng(SEED).random(table.num_rows)
    return table.take(pa.array(np.lexsort((draw, schema.microseconds(table["timestamp"])))))
