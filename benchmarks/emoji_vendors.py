"""Does an encoder find what it never saw, on real pairs, better than pixels and TF-IDF do?

Pairs of the emoji_vendors data: one emoji as two vendors draw it, and real keywords with the emoji's name. Of the bases
30 % are held out, no base or its siblings of other gender, age and skin tone on both sides. Beside the encoders: pixels
(16 x 16, each picture's mean taken off, cosine) and TF-IDF of characters with a query's training names added to it.
Settings were chosen with `--validate`, which holds out bases of the training side and never looks at the others; the
interval over seeds is Student's.

    python benchmarks/emoji_vendors.py --seeds 3
    python benchmarks/emoji_vendors.py --validate --modalities text --settings '{"learning_rate": 0.004}'
"""

import argparse
import collections
import dataclasses
import json
import pathlib
import tempfile
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.feature_extraction.text import TfidfVectorizer

from tfmm import fingerprints
from tfmm.config import SCLConfig, to_dict
from tfmm.metrics import top_n_accuracy
from tfmm.pretrain.encoders import make_encoder
from tfmm.pretrain.heldout import Heldout
from tfmm.pretrain.train import fit

IMAGE = SCLConfig(
    image_size=32, width=16, dim=256, epochs=16, memory_bank_size=0, augment=True, triplet_weight=0.0,
    oriented_gradients=True,
)  # fmt: skip
TEXT = SCLConfig(
    modality="text", dim=256, batch_size=256, learning_rate=3e-3, temperature=0.25, text_ngrams=(2, 3, 4)
)  # fmt: skip
MAX_SECONDS = 240.0  # a seed, on two cores
TRAIN_SHARE = 0.7
SPLIT_SEED, VALIDATION_SEED = 1234, 4321
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


def write_pairs(source: pathlib.Path, output_dir: pathlib.Path, is_validation: bool = False) -> None:
    """Writes `<output_dir>/{image,text}/{train,heldout}.parquet`, as `tfmm.data.pairs` does.

    Image: query twemoji's drawing, positive noto's, hard negative noto's drawing of another emoji of the same base
    (skin tone), else of the same subgroup. Text: query a keyword, positive the name. All emoji of a `sibling_form` are
    on one side of the split, 30 % of the bases held out; of these, base emoji only. For validation the training side is
    split once more, in the same way, and what is held out is left out.
    """
    items = sorted(pq.read_table(source / "items.parquet").to_pylist(), key=lambda row: row["item_id"])
    images = pq.read_table(source / "images.parquet", columns=["item_id", "vendor", "png"]).to_pylist()
    drawn = {(row["vendor"], row["item_id"]): row["png"] for row in images}
    keywords = pq.read_table(source / "query_item_pairs.parquet").to_pylist()

    heldout = heldout_bases({row["base_item_id"] for row in items})
    if is_validation:
        items = [row for row in items if row["base_item_id"] not in heldout]
        heldout = heldout_bases({row["base_item_id"] for row in items}, VALIDATION_SEED)
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


def heldout_bases(bases, seed=SPLIT_SEED):
    """Returns which bases are held out: whole sibling forms, drawn until they are their share of all."""
    of_form = collections.defaultdict(set)
    for base in bases:
        of_form[sibling_form(base)].add(base)
    forms, heldout = sorted(of_form), set()
    for place in np.random.RandomState(seed).permutation(len(forms)):
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


def pixels(pairs_dir):
    """Returns Acc@1 and Acc@5 of pixels of the held-out pairs, and of nothing that was learned."""
    heldout = Heldout(make_encoder(SCLConfig(image_size=16)), pairs_dir / "heldout.parquet")
    read = [heldout.contents.fetch(place)[0].numpy() for place in (heldout.pairs.query, heldout.positive)]
    flat = [pictures.reshape(len(pictures), -1) for pictures in read]
    return _accuracies([rows - rows.mean(axis=1, keepdims=True) for rows in flat], heldout)


def tf_idf(pairs_dir):
    """Returns Acc@1 and Acc@5 of TF-IDF of 2- to 4-grams of characters, a query's training names added to it."""
    encoder = make_encoder(TEXT)
    heldout = Heldout(encoder, pairs_dir / "heldout.parquet")
    train = pq.read_table(pairs_dir / "train.parquet").to_pydict()
    of_query = collections.defaultdict(list)
    for query, name in zip(train["query"], train["positive"], strict=True):
        of_query[query].append(name)
    text = [content.decode() for content in heldout.pairs.contents]
    names = [text[row] for row in heldout.positive]
    queries = [" ".join([text[row], *of_query.get(text[row], [])]) for row in heldout.pairs.query]
    words = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True)
    words.fit([*dict.fromkeys(names), *dict.fromkeys(train["positive"])])
    return _accuracies([words.transform(given).toarray().astype(np.float32) for given in (queries, names)], heldout)


def _accuracies(rows, heldout):
    found = top_n_accuracy(*rows, positive_ids=heldout.pairs.item_ids)
    return {f"acc_at_{n}": value for n, value in found.items()}


MODALITIES = {"image": (IMAGE, "pixels", pixels), "text": (TEXT, "TF-IDF", tf_idf)}
FIGURES = ("acc_at_1", "acc_at_5", "acc_at_1_untrained", "acc_at_1_siblings", "alignment", "uniformity", "epochs")


def measure(config: SCLConfig, pairs_dir: pathlib.Path) -> dict[str, float]:
    """Trains one encoder; returns its figures, wall and processor seconds."""
    started, worked = time.perf_counter(), time.process_time()
    facts = fit(config, pairs_dir).facts
    seconds = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - worked}
    return {name: float(facts[name]) for name in FIGURES} | seconds


def bars(results):
    """Returns the project's bars of what was measured, means over the seeds."""
    import recording  # beside a script alone; the tests take the pairs from here

    found = {}
    if "image" in results:
        image, pixel = results["image"]["mean"], results["image"]["pixels"]
        found["image Acc@1"] = recording.bar(image["acc_at_1"], max(0.5, pixel["acc_at_1"] + 0.08), beside=pixel)
        found["image Acc@5"] = recording.bar(image["acc_at_5"], 0.7, beside=pixel)
    if "text" in results:
        text, words = results["text"]["mean"], results["text"]["TF-IDF"]
        found["text Acc@1"] = recording.bar(text["acc_at_1"], max(0.29, words["acc_at_1"]), beside=words)
        found["text Acc@5"] = recording.bar(text["acc_at_5"], max(0.45, words["acc_at_5"]), beside=words)
    for name, result in results.items():
        most = max(run["cpu_seconds"] for run in result["seeds"].values()) / 2.0
        found[f"{name} seconds a seed on two cores"] = recording.bar(most, at_most=MAX_SECONDS)
    return found


def main() -> None:
    import recording

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, default=recording.RESULTS.parents[2] / "shared/data/emoji_vendors")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--modalities", nargs="+", choices=list(MODALITIES), default=list(MODALITIES))
    parser.add_argument("--validate", action="store_true", help="hold out bases of the training side; record nothing")
    parser.add_argument("--settings", type=json.loads, default={}, help="of the encoders, as JSON")
    options = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        write_pairs(options.data, pathlib.Path(folder), options.validate)
        for name in options.modalities:
            config, baseline, read = MODALITIES[name]
            config, pairs_dir = dataclasses.replace(config, **options.settings), pathlib.Path(folder) / name
            result = {"config": to_dict(config), baseline: read(pairs_dir), "seeds": {}}
            for seed in range(options.seeds):
                result["seeds"][seed] = measure(dataclasses.replace(config, seed=seed), pairs_dir)
                print(name, seed, json.dumps(result["seeds"][seed]), flush=True)
            by_figure = {key: [run[key] for run in result["seeds"].values()] for key in (*FIGURES, "cpu_seconds")}
            result["mean"] = {key: float(np.mean(values)) for key, values in by_figure.items()}
            result["interval"] = {key: recording.interval(by_figure[key]) for key in ("acc_at_1", "acc_at_5")}
            print(name, baseline, result[baseline], "mean", result["mean"], flush=True)
            results[name] = result
    if not options.validate:
        recording.write("emoji_vendors", __doc__.splitlines()[0], results, bars=bars(results))


if __name__ == "__main__":
    main()
