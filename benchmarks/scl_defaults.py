"""Do pre-training's defaults leave vectors better than untrained ones, and than a bank of twice the catalog did?

Sides: the encoder before training; `large_bank`, a bank that holds a small catalog twice (K = 8,192, batch 64, 50,000
pairs, D = 64); `default`, the run's own. Where clicks exist the criterion is the probe: GAUC of the
largest cosine between target and history, on the last fifth of the train impressions, with pairs from before them, so
that choosing by it leaves the eval split clean. Beside it Acc@1 of held-out pairs; on emoji_vendors alone. Seeds are of
weights and batches; the interval is the mean's, 95 %, by t, of the difference on equal seeds.

    python benchmarks/scl_defaults.py --data ../shared/data --seeds 3
"""

import argparse
import dataclasses
import pathlib
import tempfile
import time

import emoji_vendors
import recording
import validation

from tfmm import presets
from tfmm.config import MarketplaceConfig, PairsConfig, SCLConfig, to_dict
from tfmm.data import examples, pairs
from tfmm.data.sources import online_retail
from tfmm.marketplace import generator
from tfmm.pretrain.encoders import make_encoder
from tfmm.pretrain.train import fit

LARGE_BANK = SCLConfig(dim=64, batch_size=64, memory_bank_size=8_192, memory_bank_share=1e9, max_pairs_seen=1 << 40)
LARGE_BANK_PAIRS = PairsConfig(max_pairs=50_000)
SETS = {"online_retail": ("text",), "marketplace": ("text", "image"), "emoji_vendors": ("text", "image")}


def measure(config: SCLConfig, pairs_dir: pathlib.Path, folder: pathlib.Path | None,
            rows: examples.Columns | None) -> dict[str, float]:
    started = time.process_time()
    fitted = fit(config, pairs_dir)
    found = {name: fitted.facts[name] for name in ("acc_at_1", "acc_at_1_untrained", "train_pairs", "memory_bank_size",
                                                   "batch_size", "epochs", "steps")}
    found["cpu_seconds"] = time.process_time() - started
    if folder is not None and rows is not None:
        for name, encoder in (("gauc", fitted.encoder), ("gauc_untrained", make_encoder(config))):
            found[name] = validation.probe_gauc(encoder, folder, rows)
    return found


def mean_interval(values: list[float]) -> dict[str, object]:
    found = recording.interval(values)
    return {"values": values, "mean": found["mean"], "half_interval_95": found["high"] - found["mean"]}


def summary(runs: dict[str, list[dict[str, float]]]) -> dict[str, object]:
    """Returns each side's figures, and the differences of the default on equal seeds."""
    criterion = "gauc" if "gauc" in runs["default"][0] else "acc_at_1"
    sides = {side: {name: mean_interval([row[name] for row in rows]) if isinstance(rows[0][name], float) else
                    rows[0][name] for name in rows[0]} for side, rows in runs.items()}
    default = [row[criterion] for row in runs["default"]]
    others = {"untrained": [row[f"{criterion}_untrained"] for row in runs["default"]],
              "large_bank": [row[criterion] for row in runs["large_bank"]]}
    gains = {f"default - {name}": mean_interval([a - b for a, b in zip(default, values)])
             for name, values in others.items()}
    bank = [row[criterion] - row[f"{criterion}_untrained"] for row in runs["large_bank"]]
    return {"criterion": criterion, "gains": {**gains, "large_bank - untrained": mean_interval(bank)}, "sides": sides}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=pathlib.Path, default=recording.RESULTS.parents[2] / "shared/data")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    options = parser.parse_args()
    run, results, bars = presets.quickstart(), {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        root = pathlib.Path(temporary)
        for name in options.sets:
            folder = rows = None
            places = {side: root / name / f"pairs_{side}" for side in ("default", "large_bank")}
            if name == "emoji_vendors":
                for place in places.values():
                    emoji_vendors.write_pairs(options.data / name, place)
            else:
                if name == "marketplace":
                    generator.generate(MarketplaceConfig(), root / name / "data")
                else:
                    online_retail.convert(options.data / name, root / name / "data")
                folder = validation.write_tables(root / name / "data", root / name / "validation")
                rows = validation.heldout_rows(folder)
                pairs.build_pairs(folder, run.pairs, places["default"])
                pairs.build_pairs(folder, LARGE_BANK_PAIRS, places["large_bank"])
            for modality in SETS[name]:
                default = getattr(run, modality)
                sides = {"default": default,
                         "large_bank": dataclasses.replace(LARGE_BANK, modality=modality, epochs=default.epochs)}
                runs = {side: [] for side in sides}
                for seed in range(options.seeds):
                    for side, config in sides.items():
                        config = dataclasses.replace(config, seed=seed)
                        runs[side].append(measure(config, places[side] / modality, folder, rows))
                        print(name, modality, side, seed, runs[side][-1], flush=True)
                title = f"{name} {modality}"
                results[title] = summary(runs)
                gain = results[title]["gains"]["default - untrained"]
                bars[f"{title}: {results[title]['criterion']} over untrained"] = recording.bar(gain["mean"], 0.0)
                recording.write("scl_defaults", __doc__.splitlines()[0], {"large_bank": to_dict(LARGE_BANK), **results},
                                bars=bars)


if __name__ == "__main__":
    main()
