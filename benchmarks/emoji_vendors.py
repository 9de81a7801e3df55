"""Pairs of the emoji_vendors data: one emoji as two vendors draw it, and real keywords with the emoji's name."""

import collections
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tfmm import fingerprints

TRAIN_SHARE = 0.7
SPLIT_SEED = 1234


def write_pairs(source: pathlib.Path, output_dir: pathlib.Path) -> None:
    """Writes `<output_dir>/{image,text}/{train,heldout}.parquet`, as `tfmm.data.pairs` does.

    Image: query twemoji's drawing, positive noto's, hard negative noto's drawing of another emoji of the same base
    (skin tone), else of the same subgroup. Text: query a keyword, positive the name. All emoji of a base are on one
    side of the split; held out are base emoji only.
    """
    items = sorted(pq.read_table(source / "items.parquet").to_pylist(), key=lambda row: row["item_id"])
    images = pq.read_table(source / "images.parquet", columns=["item_id", "vendor", "png"]).to_pylist()
    drawn = {(row["vendor"], row["item_id"]): row["png"] for row in images}
    keywords = pq.read_table(source / "query_item_pairs.parquet").to_pylist()

    bases = sorted({row["base_item_id"] for row in items if row["n_vendors"] == 2})
    order = np.random.RandomState(SPLIT_SEED).permutation(len(bases))
    heldout_bases = {bases[place] for place in order[round(TRAIN_SHARE * len(bases)) :]}
    sides: dict[str, list[dict]] = {"train": [], "heldout": []}
    for row in items:
        is_base = row["item_id"] == row["base_item_id"]
        if row["base_item_id"] not in heldout_bases:
            sides["train"].append(row)
        elif is_base:
            sides["heldout"].append(row)
    for name, rows in sides.items():
        both = [row for row in rows if row["n_vendors"] == 2]
        _write_images(output_dir / "image" / f"{name}.parquet", both, drawn)
        names = {row["item_id"]: row["name"] for row in rows if row["item_id"] == row["base_item_id"]}
        found = [(row["query"], row["item_id"]) for row in keywords if row["item_id"] in names]
        _write(output_dir / "text" / f"{name}.parquet", [query for query, _ in found],
               [names[item] for _, item in found], [item for _, item in found])


def _write_images(path, rows, drawn):
    rng = np.random.default_rng(0)
    alike = collections.defaultdict(list)
    for row in rows:
        for key in ("base_item_id", "subgroup"):
            alike[key, row[key]].append(row["item_id"])
    negatives = []
    for row in rows:
        for key in ("base_item_id", "subgroup"):
            others = [item for item in alike[key, row[key]] if item != row["item_id"]]
            if others:
                break
        negatives.append(drawn["noto", others[rng.integers(len(others))]] if others else None)
    ids = [row["item_id"] for row in rows]
    _write(path, [drawn["twemoji", i] for i in ids], [drawn["noto", i] for i in ids], ids, negatives)


def _write(path, queries, positives, item_ids, negatives=None):
    columns = {"query": queries, "positive": positives, "positive_item_id": fingerprints.fingerprint(item_ids)}
    if negatives is not None:
        columns["negative"] = negatives
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
