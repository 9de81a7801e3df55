"""Does a click model gain from each declared feature that has an effect, and from none whose values were shuffled?

The rich marketplace has effects planted, whose worth in AUC its truth tells; per seed (another marketplace, other
weights) the ID-only model is trained with all features, with each left out, and with each shuffled among the rows of
its table; histories are short, which takes less time and leaves the comparison fair. Scores are means over a few draws
of weights: between two draws of one model AUC differs by as much as a feature may be worth. A gain is that over the
model without the feature, on the same eval rows. Bars hold it to Student's interval over the seeds, declared and
shuffled alike; beside it stands the interval over resampled users of all seeds, which knows nothing of the weights'
chance. Online Retail has items' price and users' country, and nobody knows what they are worth; its seeds are of
weights, a draw each.

    python benchmarks/declared_features.py --set marketplace --seeds 0 1 2
    python benchmarks/declared_features.py --set online_retail --seeds 0 1 2 --data ../shared/data
"""

import argparse
import dataclasses
import json
import pathlib
import tempfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import recording

from tfmm import metrics, preprocessing, presets
from tfmm.config import RunConfig
from tfmm.ctr import model as model_lib
from tfmm.ctr import train
from tfmm.data import join, transform
from tfmm.data.sources import online_retail
from tfmm.features import DEFAULT_FEATURES, LABEL, Feature, FeatureSet
from tfmm.marketplace import generator
from tfmm.training import examples as examples_lib
from tfmm.training import sources

LENGTH = 10  # of histories
DRAWS = 4  # of weights, per seed of the marketplace
METRICS = ("auc", "gauc", "log_loss")
SHUFFLED = "_shuffled"
PLANTED = {"price": "price", "city": "city_category", "hour": "time_of_day", "position": "position"}  # its effect
RETAIL = (Feature("country", "user", dim=4), Feature("price", "item", "number", scaling="log"))
Scores = dict[str, np.ndarray]  # by variant, and of the rows: user_id, label


def with_shuffled(run: RunConfig, names: tuple[str, ...]) -> FeatureSet:
    """Returns the run's features, and beside each of `names` one whose column holds its values shuffled."""
    declared = run.feature_set
    extra = [
        dataclasses.replace(declared[name], name=name + SHUFFLED, source=f"{declared[name].table}.{name}{SHUFFLED}")
        for name in names
    ]
    return dataclasses.replace(declared, features=(*declared.features, *extra))


def add_shuffled(data: pathlib.Path, declared: FeatureSet, names: tuple[str, ...], seed: int) -> None:
    """Adds to the tables the columns that `with_shuffled` declares: each a permutation of the feature's."""
    generator = np.random.default_rng(seed)
    for name in names:
        path = data / f"{declared[name].table}.parquet"
        table = pq.read_table(path)
        order = pa.array(generator.permutation(table.num_rows))
        column = table[declared[name].column].take(order)
        pq.write_table(table.append_column(name + SHUFFLED, column), path, row_group_size=65_536)


def variants(run: RunConfig, names: tuple[str, ...]) -> dict[str, FeatureSet]:
    """Returns the feature sets to train: all, none of `names`, and without and with a shuffled one of each."""
    declared, both = run.feature_set, with_shuffled(run, names)

    def of(features: list[Feature]) -> FeatureSet:
        return dataclasses.replace(declared, features=tuple(features))

    result = {"all": declared, "none": of([f for f in declared.features if f.name not in names])}
    for name in names:
        rest = [feature for feature in declared.features if feature.name != name]
        result[f"without {name}"] = of(rest)
        result[f"{name} shuffled"] = of([*rest, both[name + SHUFFLED]])
    return result


def train_all(
    data: pathlib.Path, run: RunConfig, names: tuple[str, ...], folder: pathlib.Path, seeds: list[int], shuffle: int
) -> list[Scores]:
    """Returns, per seed of the weights, the scores of the eval rows under each variant; examples are built once.

    Args:
        data: the tables, which get the shuffled columns.
        run: what is trained, with the features `names` among the declared ones.
        names: features to leave out and to shuffle.
        folder: where examples and models go.
        seeds: of the weights.
        shuffle: seed of the shuffling.
    """
    declared = with_shuffled(run, names)
    add_shuffled(data, run.feature_set, names, shuffle)
    join.write_examples(data, run.data, declared, folder / "examples")
    transform.fit(folder / "examples", folder / "vocabulary")
    patterns = [str(folder / "examples" / f"{split}-*") for split in ("train", "eval")]
    vocabularies, result = folder / "vocabulary", []
    for seed in seeds:
        scores: Scores = {}
        for name, features in variants(run, names).items():
            output = folder / f"{name}-{seed}".replace(" ", "_")
            config = dataclasses.replace(run.ctr, seed=seed)
            manifest = train.train(config, *patterns, vocabularies, output, features)
            preprocessor = preprocessing.load(features, vocabularies)
            rows = sources.open_source(examples_lib.example_files(patterns[1]), features, {}, preprocessor)
            scores |= {"user_id": rows.column("user_id"), "label": rows.column(LABEL)}
            scores[name] = train.predict(model_lib.load_model(output), {}, rows)
            print(seed, name, manifest["metrics"], flush=True)
        result.append(scores)
    return result


def paired(metric: str, scores: Scores, variant: str, base: str) -> dict[str, float]:
    """Returns the gain of a variant and its interval over users; of the log loss, what it falls by."""
    found = metrics.user_bootstrap(
        metric, scores["label"], scores[variant], scores["user_id"], baseline_scores=scores[base]
    )
    if metric == "log_loss":
        return {"value": -found.value, "low": -found.high, "high": -found.low}
    return {"value": found.value, "low": found.low, "high": found.high}


def together(runs: list[Scores], same_users: bool) -> Scores:
    """Stacks the rows of all seeds; where each seed has other users, they are told apart."""
    result = {name: np.concatenate([run[name] for run in runs]) for name in runs[0]}
    if not same_users:
        seeds = np.repeat(np.arange(len(runs)), [len(run["user_id"]) for run in runs])
        _, result["user_id"] = np.unique(np.stack([seeds, result["user_id"]]), axis=1, return_inverse=True)
    return result


def averaged(draws: list[Scores]) -> Scores:
    """Returns the means of the scores of several draws of weights, on the same rows."""
    rows = ("user_id", "label")
    return {name: draws[0][name] if name in rows else np.mean([d[name] for d in draws], 0) for name in draws[0]}


def over_seeds(values: list[float]) -> dict[str, float]:
    found = recording.interval(values)
    return {"value": found.pop("mean"), **found}


def gains(runs: list[Scores], names: tuple[str, ...], same_users: bool) -> dict[str, dict]:
    """Returns per feature, declared and shuffled, and per metric: the gain over the model without it."""
    result: dict[str, dict] = {}
    pooled = together(runs, same_users)
    for name in names:
        sides = {"declared": "all", "shuffled": f"{name} shuffled"}
        result[name] = {
            side: {
                metric: {
                    "all_users": paired(metric, pooled, variant, f"without {name}"),
                    "seeds": (each := [paired(metric, run, variant, f"without {name}") for run in runs]),
                    "over_seeds": over_seeds([found["value"] for found in each]),
                }
                for metric in METRICS
            }
            for side, variant in sides.items()
        }
    result["all of them"] = {
        "declared": {metric: {"all_users": paired(metric, pooled, "all", "none")} for metric in METRICS}
    }
    return result


def bars(found: dict[str, dict], run: RunConfig) -> dict[str, dict]:
    result = {}
    for name in PLANTED:
        ranking = "gauc" if run.feature_set[name].role == "item" else "auc"
        for metric in (ranking, "log_loss"):
            gain, noise = (found[name][side][metric] for side in ("declared", "shuffled"))
            low, mean = gain["over_seeds"]["low"], noise["over_seeds"]["value"]
            half = noise["over_seeds"]["high"] - mean
            result[f"{name}: {metric}, low end of the gain's interval over seeds"] = recording.bar(
                low, 0.0, beside=gain["all_users"]
            )
            result[f"{name} shuffled: {metric}, distance of the gain from 0, within half its interval over seeds"] = (
                recording.bar(abs(mean), at_most=half, beside=noise["all_users"])
            )
    return result


def with_short_histories(run: RunConfig) -> RunConfig:
    return dataclasses.replace(run, sequences=tuple(dataclasses.replace(s, length=LENGTH) for s in run.sequences))


def measure_marketplace(seeds: list[int], root: pathlib.Path) -> None:
    run, runs, worth = with_short_histories(presets.rich()), [], {}
    for seed in seeds:
        folder, config = root / str(seed), dataclasses.replace(run.marketplace, seed=seed)
        generator.generate(config, folder / "data")
        worth[seed] = json.loads((folder / "data" / "truth" / "effects.json").read_text())
        draws = [seed * DRAWS + draw for draw in range(DRAWS)]
        runs.append(averaged(train_all(folder / "data", run, tuple(PLANTED), folder, draws, seed)))
    found = gains(runs, tuple(PLANTED), same_users=False)
    results = {"worth_by_truth": worth, "gains": found}
    recording.write("declared_features", __doc__.splitlines()[0], results, bars=bars(found, run))


def measure_online_retail(seeds: list[int], root: pathlib.Path, source: pathlib.Path) -> None:
    run = dataclasses.replace(presets.quickstart(), features=(*DEFAULT_FEATURES, *RETAIL))
    online_retail.convert(source, root / "data")
    names = tuple(feature.name for feature in RETAIL)
    runs = train_all(root / "data", with_short_histories(run), names, root, seeds, 0)
    question = "What does a click model gain on Online Retail from items' price and users' country?"
    recording.write("declared_features_online_retail", question, {"gains": gains(runs, names, same_users=True)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=["marketplace", "online_retail"], default="marketplace")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", type=pathlib.Path, default=recording.RESULTS.parents[2] / "shared/data")
    options = parser.parse_args()
    if not 2 <= len(options.seeds) <= 5:
        parser.error(f"name 2 to 5 seeds, not {len(options.seeds)}")
    with tempfile.TemporaryDirectory() as temporary:
        if options.set == "marketplace":
            measure_marketplace(options.seeds, pathlib.Path(temporary))
        else:
            measure_online_retail(options.seeds, pathlib.Path(temporary), options.data / "online_retail")


if __name__ == "__main__":
    main()
