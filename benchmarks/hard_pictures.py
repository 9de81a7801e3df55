"""Does the image encoder find held-out products by bad pictures: 128 pixels, cut, in any light, with JPEG's noise?

Products are drawn as the marketplace draws them: the catalog upright on a light ground, a query as a shopper's snapshot
(turned, shifted, on any ground), of which a random crop is kept, lit unevenly, and stored as a JPEG of low quality.
Hard negatives share shape and palette. Items that are held out are in no training pair. Beside Acc@1 of the trained
encoder stands that of fresh weights on the same pairs; the bar is five times it, the mean of the seeds.

    python benchmarks/hard_pictures.py --seeds 3
"""

import argparse
import dataclasses
import json
import pathlib
import tempfile
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import recording
import tensorflow as tf

from tfmm.config import SCLConfig, to_dict
from tfmm.marketplace import drawing
from tfmm.pretrain.train import fit

SIZE = 128  # pixels of the files
NUM_ITEMS, QUERIES, HELDOUT = 1_500, 3, 0.2
LEAST_AREA, LEAST_QUALITY, MOST_QUALITY = 0.6, 15, 50
CONFIG = SCLConfig(image_size=32, epochs=16, memory_bank_size=0)
FIGURES = ("acc_at_1", "acc_at_5", "acc_at_1_untrained", "acc_at_1_siblings", "acc_at_1_siblings_untrained")


def spoil(pictures: np.ndarray, rng: np.random.Generator) -> list[bytes]:
    """Returns JPEG files of a crop of each picture, uint8 [n, S, S, 3], under a light that falls off to one side."""
    files, ramp = [], np.linspace(-1.0, 1.0, pictures.shape[1])
    for picture in pictures:
        side = round(len(picture) * float(np.sqrt(rng.uniform(LEAST_AREA, 1.0))))
        top, left = rng.integers(0, len(picture) - side + 1, 2)
        angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0.0, 0.4)
        light = 1.0 + strength * (np.cos(angle) * ramp[None, :] + np.sin(angle) * ramp[:, None])
        lit = np.clip(picture * light[:, :, None], 0, 255).astype(np.uint8)[top : top + side, left : left + side]
        files.append(tf.io.encode_jpeg(lit, quality=int(rng.integers(LEAST_QUALITY, MOST_QUALITY))).numpy())
    return files


def write_pairs(folder: pathlib.Path, seed: int, num_items: int) -> None:
    """Writes train.parquet and heldout.parquet of freshly drawn products."""
    rng = np.random.default_rng(seed)
    look = drawing.Look(
        *(rng.integers(0, count, num_items) for count in (len(drawing.SHAPES), drawing.NUM_PALETTES,
                                                          len(drawing.PATTERNS))),
        rng.uniform(size=(num_items, 6)),
    )  # fmt: skip
    shown = [tf.io.encode_png(picture).numpy() for picture in drawing.draw_catalog(look, SIZE, rng)]
    items = np.repeat(np.arange(num_items), QUERIES)
    queries = spoil(drawing.draw_query(look[items], SIZE, rng), rng)
    is_held = rng.permutation(num_items) < HELDOUT * num_items
    kinds = look.shape * drawing.NUM_PALETTES + look.palette
    negatives = []
    for item in items:
        alike = np.flatnonzero((kinds == kinds[item]) & (is_held == is_held[item]) & (np.arange(num_items) != item))
        negatives.append(shown[rng.choice(alike)] if len(alike) else None)
    for name, rows in (("train", np.flatnonzero(~is_held[items])), ("heldout", np.flatnonzero(is_held[items]))):
        pq.write_table(
            pa.table({
                "query": [queries[row] for row in rows],
                "positive": [shown[items[row]] for row in rows],
                "positive_item_id": items[rows] + 1,
                "negative": pa.array([negatives[row] for row in rows], pa.binary()),
                "positive_category": [drawing.SHAPES[look.shape[items[row]]] for row in rows],
            }),
            folder / f"{name}.parquet",
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--items", type=int, default=NUM_ITEMS)
    parser.add_argument("--settings", type=json.loads, default={}, help="of the encoder, as JSON")
    options = parser.parse_args()
    config, runs = dataclasses.replace(CONFIG, **options.settings), []
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            write_pairs(pathlib.Path(folder), seed, options.items)
            started = time.process_time()
            facts = fit(dataclasses.replace(config, seed=seed), folder).facts
        names = (*FIGURES, "heldout_pairs", "heldout_items", "categories")
        runs.append({name: facts[name] for name in names} | {"cpu_seconds": time.process_time() - started})
        print(seed, json.dumps({name: runs[-1][name] for name in (*FIGURES, "cpu_seconds")}), flush=True)
    means = {name: float(np.mean([run[name] for run in runs])) for name in (*FIGURES, "cpu_seconds")}
    ratio = means["acc_at_1"] / means["acc_at_1_untrained"]
    recording.write("hard_pictures", __doc__.splitlines()[0],
                    {"config": to_dict(config), "items": options.items, "mean": means, "seeds": runs},
                    bars={"Acc@1 over untrained": recording.bar(ratio, 5.0, beside=means)})


if __name__ == "__main__":
    main()
