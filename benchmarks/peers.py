"""How fast are SimTier, a ranking request and a training step beside the same work in PyTorch?

One interleaved run with equal thread counts; PyTorch in a process of its own (`torch_peers.py`), eager and under
torch.compile, on the same arrays, weights and constants. Results must agree before anything is timed: tiers to the
last count, scores and a step's loss to 1e-4, and the loss of a second step, which the first one's gradients and
optimizer have moved, to 5e-4, which is at most a tenth of how far it moved. Sides:

- SimTier of 256 rows and 1,000 behaviors, int8 rows of 128 values;
- a request: 500 candidates and one history of 1,000, item vectors in a table; PyTorch's model takes rows, so that its
  history is repeated per candidate, or is written anew with the history shared (`factorised`);
- a training step of 1,000 rows and 1,000 behaviors, forward, backward and optimizer, as `tfmm.ctr.train` runs it:
  the ID-only DIN model, and the model with SimTier over all behaviors and a frozen MAKE over the 100 that
  `behavior_search` finds. `factorised` is PyTorch with DIN's first layer split by hand as in our layer.

An environment with PyTorch:

    python3.12 -m venv torch-environment && torch-environment/bin/pip install torch numpy
    python benchmarks/peers.py --torch-python torch-environment/bin/python
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

import graphs
import keras
import numpy as np
import recording
import tensorflow as tf

from tfmm import config as config_lib
from tfmm import vectors as vectors_lib
from tfmm.ctr import continuing
from tfmm.ctr import model as model_lib
from tfmm.ctr import state as state_lib
from tfmm.ctr.optimizer import HeldRate
from tfmm.features import LABEL
from tfmm.index import item_vectors
from tfmm.layers import SimTierLayer
from tfmm.training import loop
from tfmm.training.examples import IS_ROW

NUM_ITEMS, NUM_USERS, NUM_CATEGORIES, DIM = 200_000, 50_000, 200, 128
ROWS, LENGTH, CANDIDATES, SELECTED = 1000, 1000, 500, 100
SECOND = "second step"
NUM_TIERS, SIMTIER_ROWS, KNOWLEDGE_SCALE = 20, 256, 0.1
CONSTANTS = "constants.json"  # in the folder that the other process reads
# The largest difference from PyTorch. Sums of float32 in another order differ by some 1e-6; Adam divides a gradient by
# its size, so that one that is nearly 0 may move a weight by the whole rate on either side.
TOLERANCE = {"simtier": 0.0, "rank": 1e-4, "step": 1e-4, SECOND: 5e-4}
MODALITY = "image"
METHODS = (
    config_lib.Method("simtier", {"num_tiers": NUM_TIERS}),
    config_lib.Method("behavior_search", {"num_selected": SELECTED}),
    config_lib.Method("make", {"knowledge_scale": KNOWLEDGE_SCALE}),
)
STEPS = ("id", "multimodal")


class Ours:
    """The library's sides, on arrays that the other process reads as well."""

    def __init__(self, rng: np.random.Generator):
        rows, scales = graphs.quantized(graphs.unit(rng, NUM_ITEMS, DIM))
        self.table = item_vectors.ItemVectors(np.arange(1, NUM_ITEMS + 1), rows, scales)
        run = config_lib.RunConfig(data=config_lib.DataConfig(max_behaviors=LENGTH))
        self.config, self.make, self.feature_set = run.ctr, run.make, run.feature_set
        self.sizes = {"user_id": NUM_USERS, "item_id": NUM_ITEMS + 2, "category": NUM_CATEGORIES}
        items, behaviors = (rng.integers(1, NUM_ITEMS + 1, size=n).astype(np.int32) for n in (ROWS, (ROWS, LENGTH)))
        mask = rng.random(behaviors.shape) < 0.9
        self.arrays = {
            "user": rng.integers(2, NUM_USERS, size=ROWS).astype(np.int32),
            "item": items + 1,
            "category": items % (NUM_CATEGORIES - 2) + 2,
            "behaviors": np.where(mask, behaviors + 1, 0),
            "behavior_categories": np.where(mask, behaviors % (NUM_CATEGORIES - 2) + 2, 0),
            "mask": mask,
            "target_slots": np.where(rng.random(ROWS) < 0.95, items, item_vectors.NO_EMBEDDING),
            "slots": np.where(mask & (rng.random(mask.shape) < 0.95), behaviors, item_vectors.NO_EMBEDDING),
            "label": rng.integers(0, 2, size=ROWS).astype(np.int32),
            "table": np.concatenate([np.zeros((1, DIM), np.int8), rows]),
            "scales": np.concatenate([np.zeros(1, np.float32), scales]),
        }
        target, history = self.arrays["target_slots"][:SIMTIER_ROWS], self.arrays["slots"][:SIMTIER_ROWS]
        self.arrays |= {
            "simtier_target": self.arrays["table"][target], "simtier_target_scales": self.arrays["scales"][target],
            "simtier_rows": self.arrays["table"][history], "simtier_scales": self.arrays["scales"][history],
            "simtier_mask": (history != 0) & (target != 0)[:, None],
        }
        keras.utils.set_random_seed(0)
        self.models = {name: self._model(name) for name in STEPS}

    def _model(self, name: str) -> model_lib.CTRModel:
        dims = {MODALITY: DIM} if name == "multimodal" else {}
        model = model_lib.CTRModel(self.config, self.make, self.feature_set, self.sizes, dims, METHODS)
        model.build()
        model.freeze_make()
        return model

    def batch(self, rows: int = ROWS, histories: int = ROWS) -> dict[str, tf.Tensor]:
        """A batch as `training.sources` gives it, or the rows of a request."""
        a = {name: values[:rows] for name, values in self.arrays.items()}
        side = {name: self.arrays[name][:histories] for name in ("user", "behaviors", "behavior_categories", "slots")}
        columns = {
            "user_id_index": side["user"],
            "item_id_index": a["item"],
            "category_index": a["category"],
            "behavior_item_ids_index": side["behaviors"],
            "behavior_categories_index": side["behavior_categories"],
            item_vectors.slots_name(MODALITY, vectors_lib.TARGET): a["target_slots"],
            item_vectors.slots_name(MODALITY, "behavior"): side["slots"],
            LABEL: a["label"],
            IS_ROW: np.ones(rows, bool),
        }
        return {name: tf.constant(values) for name, values in columns.items()}

    def sides(self) -> dict[str, graphs.Call]:
        """Every side by name; a call returns NumPy arrays."""
        parts = ("target", "target_scales", "rows", "scales", "mask")
        inputs = [tf.constant(self.arrays[f"simtier_{part}"]) for part in parts]
        found = {"simtier": graphs.compiled(_simtier, *inputs, jit_compile=True), "rank": self._rank()}
        for name, model in self.models.items():
            found[f"{name} step"] = self._step(model)
        return found

    def _rank(self) -> graphs.Call:
        """As a served model does it: lookups, then one compiled core with the user's side once."""
        model, tables = self.models["multimodal"], {MODALITY: self.table}
        request = self.batch(CANDIDATES, 1)
        core = tf.function(lambda inputs: model(inputs, training=False)["score"], jit_compile=True, autograph=False)
        features = self.feature_set
        rank = tf.function(lambda batch: core(continuing.model_inputs(batch, tables, features)), autograph=False)
        return lambda: rank(request).numpy()

    def _step(self, model: model_lib.CTRModel) -> graphs.Call:
        """As `train` runs it."""
        tables, optimizer = {MODALITY: self.table} if model.dims else {}, state_lib.optimizer_of(model, self.config)
        state = state_lib.State(model, optimizer, tables)
        rate = HeldRate(self.config.learning_rate, 1_000_000, self.config.decay_from)
        state.set_rates(rate, self.config.embedding_learning_rate)
        step = continuing.step_of(state)
        step, batch = loop.compiled(step, tf.distribute.get_strategy()), self.batch()
        return lambda: sum(float(loss) for loss in step(batch).values())

    def constants(self, threads: int) -> dict[str, float]:
        """What the other process holds to, by the names that it has for them."""
        return {
            "num_tiers": NUM_TIERS, "num_selected": SELECTED, "knowledge_scale": KNOWLEDGE_SCALE,
            "candidates": CANDIDATES, "threads": threads, "learning_rate": self.config.learning_rate,
            "embedding_learning_rate": self.config.embedding_learning_rate,
            "epsilon": state_lib.optimizer_of(self.models["id"], self.config).epsilon,
        }

    def weights(self, name: str) -> dict[str, np.ndarray]:
        """A model's weights by the names that the other process has for them."""
        model = self.models[name]
        tables = {"user": "user_id", "item": "item_id", "category": "category"}
        found = {f"{name}_table": model.embeddings[of].embeddings for name, of in tables.items()}
        found |= _attention("attention", model.attention["behavior"])
        found |= _head("head", model.head)
        if model.id_head is not None:
            found |= _head("id_head", model.id_head)
            (_, block), = model.make_blocks()
            found |= _attention("make_attention", block.attention)
            found |= _layers("make", [*block.dense_layers, block.logit_layer], block.activation_layers)
        return {name: np.array(value) for name, value in found.items()}


def _simtier(target, target_scales, behaviors, behaviors_scales, mask):
    layer = SimTierLayer(NUM_TIERS)
    scales = {"target_scales": target_scales, "behaviors_scales": behaviors_scales}
    return layer(target, behaviors, behaviors_mask=mask, **scales)


def _attention(name, layer):
    parts = {"kernel": layer.kernel, "bias": layer.bias, "alpha": layer.activation_layers[0].alpha[0]}
    parts |= {"out": layer.dense_layers[0].kernel, "out_bias": layer.dense_layers[0].bias}
    return {f"{name}_{part}": value for part, value in parts.items()}


def _head(name, head):
    return _layers(name, [*head.hidden, head.output_layer], head.activations)


def _layers(name, dense, activations):
    found = {}
    for i, layer in enumerate(dense):
        found |= {f"{name}_kernel_{i}": layer.kernel, f"{name}_bias_{i}": layer.bias}
    return found | {f"{name}_alpha_{i}": layer.alpha for i, layer in enumerate(activations)}


class Torch:
    """The other process: sides by name, which it times itself."""

    def __init__(self, python: str, folder: pathlib.Path, threads: int):
        limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | limits
        self._folder = folder
        self._process = subprocess.Popen(
            [python, "-c", "import torch_peers; torch_peers.main()", str(folder)],
            cwd=pathlib.Path(__file__).parent,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )
        self.facts = self._read()

    def seconds(self, side: str, calls: int) -> float:
        return self._ask(side=side, calls=calls)["seconds"]

    def digits(self, side: str) -> np.ndarray:
        self._ask(side=side, calls=1, digits=True)
        return np.load(self._folder / "digits.npy")

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, **asked):
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self):
        line = self._process.stdout.readline()
        if not line:
            raise ChildProcessError("The PyTorch side ended. Does its Python have torch? See its error above.")
        return json.loads(line)


def _seconds(call: graphs.Call, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def measure(ours: dict[str, graphs.Call], torch: Torch, repeats: int) -> dict[str, list[float]]:
    """Returns seconds per call of every side, a value a round; a short side is called several times in a row."""
    timed = {f"ours {name}": lambda calls, call=call: _seconds(call, calls) for name, call in ours.items()}
    timed |= {f"torch {name}": lambda calls, name=name: torch.seconds(name, calls) for name in torch.facts["sides"]}
    calls = {name: max(1, int(10 * graphs.BLOCK_S / max(side(1), side(1)))) for name, side in timed.items()}
    return {name: list(values) for name, values in zip(timed, zip(*(
        [side(calls[name]) for name, side in timed.items()] for _ in range(repeats)
    )))}


def differences(ours: dict[str, graphs.Call], torch: Torch) -> dict[str, float]:
    """Returns the largest difference of each PyTorch side from ours, and of a step's second loss, before any timing."""
    expected = {name: np.asarray(call()) for name, call in ours.items()}
    second = {name: np.asarray(call()) for name, call in ours.items() if name.endswith("step")}
    found = {}
    for name in torch.facts["sides"]:
        of = next(own for own in expected if name.startswith(own))
        kind = "step" if of in second else of
        found[name] = _agreed(name, torch.digits(name), expected[of], TOLERANCE[kind])
        if of in second:
            moved = abs(float(second[of]) - float(expected[of]))
            if moved < 10 * TOLERANCE[SECOND]:
                raise ValueError(f"A step must move the loss by 10 times what is let pass. Received, {of}: {moved}.")
            found[f"{name}, second"] = _agreed(f"second {name}", torch.digits(name), second[of], TOLERANCE[SECOND])
    return found


def _agreed(name: str, theirs: np.ndarray, own: np.ndarray, tolerance: float) -> float:
    """Returns the largest difference; raises ValueError where it is above the tolerance."""
    difference = float(np.abs(theirs - own).max())
    if not difference <= tolerance:
        raise ValueError(
            f"PyTorch's {name} must give what ours gives, to {tolerance:g}. Received: a difference of {difference}."
        )
    return difference


def bars(ratios: dict[str, float], own: float) -> dict[str, dict]:
    """The project's bars, for what was measured."""
    beside = {name: value for name, value in ratios.items() if name.startswith("multimodal")}
    return {
        "multimodal step, of the ID-only step": recording.bar(own, at_most=1.5),
        "multimodal step, times PyTorch eager": recording.bar(
            beside.pop("multimodal step eager"), at_least=3, beside=beside),
        "multimodal step, times torch.compile": recording.bar(
            beside.pop("multimodal step compile"), at_least=1.2, beside=beside),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python", help="the Python of an environment with PyTorch")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    if arguments.torch_python is None:
        print("Not run: `--torch-python` names no environment with PyTorch.")
        return
    tf.config.threading.set_intra_op_parallelism_threads(arguments.threads)
    tf.config.threading.set_inter_op_parallelism_threads(arguments.threads)
    library = Ours(np.random.default_rng(0))
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        np.savez(folder / "arrays.npz", **library.arrays)
        (folder / CONSTANTS).write_text(json.dumps(library.constants(arguments.threads)))
        for of in STEPS:
            np.savez(folder / f"{of}.npz", **library.weights(of))
        torch = Torch(os.path.abspath(arguments.torch_python), folder, arguments.threads)
        ours = library.sides()
        agreement = differences(ours, torch)
        seconds = measure(ours, torch, arguments.repeats)
        torch.close()
    ratios = {}
    for side in torch.facts["sides"]:
        own = seconds[f"ours {next(name for name in ours if side.startswith(name))}"]
        ratios[side] = statistics.median(b / a for a, b in zip(own, seconds[f"torch {side}"]))
    pairs = zip(seconds["ours multimodal step"], seconds["ours id step"])
    of_id = statistics.median(multimodal / id_only for multimodal, id_only in pairs)
    results = {
        "torch": torch.facts["torch"],
        "threads": torch.facts["threads"],
        "seconds": {side: recording.spread(values) for side, values in seconds.items()},
        "times_ours": ratios,
        "multimodal_of_id_step": of_id,
        "largest_difference": agreement,
        "tolerance": TOLERANCE,
    }
    recording.write("peers", __doc__.splitlines()[0], results, seed=0, bars=bars(ratios, of_id))


if __name__ == "__main__":
    main()
