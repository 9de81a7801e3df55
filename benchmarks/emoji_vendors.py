"""Pairs of the emoji_vendors data: one emoji as two vendors draw it, and real keywords with the emoji's name."""

import collections
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tfmm import fingerprints

TRAIN_SHARE = 0.7
SPLIT_SEED = 1234
PERSON = "1f9d1"
_TONES = {f"1f3f{last}" for last in "bcdef"}
_NO_FORM = {"200d", "fe0f", "2640", "2642", *_TONES}  # joiner, variation selector, signs of gender, skin tones
_FORMS = {  # neutral code point: those that differ from it by gender, age or number
    PERSON: ("1f466", "1f467", "1f468", "1f469", "1f46a", "1f471", "1f474", "1f475", "1f476", "1f9d2", "1f9d3",
             "1f9d4"),
    "1f46d": ("1f46b", "1f46c"), "1fac5": ("1f934", "1f478"), "1f385": ("1f936",), "1f57a": ("1f483",),
    "1fac4": ("1f930", "1fac3"),
}
_NEUTRAL = {form: neutral for neutral, forms in _FORMS.items() for form in forms}
_WHOLE = {  # what persons are joined to, where one code point of its own says the same
    (PERSON, "2764", "1f48b"): "1f48f", (PERSON, "2764"): "1f491", (PERSON, "1f91d"): "1f46d",
    (PERSON, "1f384"): "1f385", (PERSON, "1f37c"): "1f931",
}


def sibling_form(item_id: str) -> tuple[str, ...]:
    """Returns the code points that an emoji has in common with its siblings of other gender, age and skin tone.

    >>> sibling_form("1f468-1f3fd-200d-1f692") == sibling_form("1f9d1-200d-1f692")  # firefighters
    True
    >>> sibling_form("1f3c3-200d-2640"), sibling_form("1f3c3"), sibling_form("1f468-200d-1f469-200d-1f466")
    (('1f3c3',), ('1f3c3',), ('1f9d1',))
    >>> sibling_form("1f1e6-1f1e8") == sibling_form("1f1e8-1f1e6")  # flags
    False
    """
    points = [_NEUTRAL.get(point, point) for point in item_id.split("-") if point not in _NO_FORM]
    form = tuple(dict.fromkeys(points)) or (item_id,)
    return (_WHOLE[form],) if form in _WHOLE else form


def write_pairs(source: pathlib.Path, output_dir: pathlib.Path) -> None:
    """Writes `<output_dir>/{image,text}/{train,heldout}.parquet`, as `tfmm.data.pairs` does.

    Image: query twemoji's drawing, positive noto's, hard negative noto's drawing of another emoji of the same base
    (skin tone), else of the same subgroup. Text: query a keyword, positive the name. All emoji of a `sibling_form` are
    on one side of the split, 30 % of the bases held out; of these, base emoji only.
    """
    items = sorted(pq.read_table(source / "items.parquet").to_pylist(), key=lambda row: row["item_id"])
    images = pq.read_table(source / "images.parquet", columns=["item_id", "vendor", "png"]).to_pylist()
    drawn = {(row["vendor"], row["item_id"]): row["png"] for row in images}
    keywords = pq.read_table(source / "query_item_pairs.parquet").to_pylist()

    heldout = heldout_bases({row["base_item_id"] for row in items})
    sides: dict[str, list[dict]] = {"train": [], "heldout": []}
    for row in items:
        is_base = row["item_id"] == row["base_item_id"]
        if row["base_item_id"] not in heldout:
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


def heldout_bases(bases):
    """Returns which bases are held out: whole sibling forms, drawn until they are their share of all."""
    of_form = collections.defaultdict(set)
    for base in bases:
        of_form[sibling_form(base)].add(base)
    forms, heldout = sorted(of_form), set()
    for place in np.random.RandomState(SPLIT_SEED).permutation(len(forms)):
        if len(heldout) < round((1.0 - TRAIN_SHARE) * len(bases)):
            heldout |= of_form[forms[place]]
    return heldout


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
