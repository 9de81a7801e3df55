"""A SavedModel that answers vectors, or items, with the most similar items, by tensorflow-recommenders.

Its layers are of Keras 2, so that it runs in a process of its own:

    python -m tfmm.retrieval.top_k run/snapshot run/similar/1 --modality image --kind streaming
"""

from __future__ import annotations

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import typing

BRUTE_FORCE, STREAMING = KINDS = ("brute_force", "streaming")
_BATCH = 4_096  # candidates that the streaming kind compares at once


def export(
    snapshot_dir: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    modality: str,
    kind: str = BRUTE_FORCE,
    count: int = 100,
) -> None:
    """Writes the SavedModel, in a process of its own; `output_dir` is a version folder for TF Serving.

    Signatures: `serving_default`, from `vectors` float32 [B, D], and `similar_items`, from `item_ids` int64 [B] as the
    index has them (the item itself is the first answer; an unknown one is answered with zeros); both give `item_ids`
    int64 [B, K] and `scores` float32 [B, K], cosines where vectors have length 1, the most similar first.

    Args:
        snapshot_dir: of the item index.
        output_dir: made where missing.
        modality: whose vectors.
        kind: brute_force compares with all items in one product, B x items floats a request; streaming in batches of
            4,096. It holds the vectors in the graph, which ends at 2 GB: some 4 million items at D=64.
        count: K.
    Raises:
        ValueError: an unknown kind or modality, or it failed; with its last lines.
    """
    if kind not in KINDS:
        raise ValueError(f"`kind` must be one of {', '.join(KINDS)}. Received: {kind!r}.")
    words = [str(snapshot_dir), str(output_dir), "--modality", modality, "--kind", kind, "--count", str(count)]
    done = subprocess.run(
        [sys.executable, "-m", __name__, *words],
        env=legacy_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ValueError(f"The index of similar items could not be exported: {_last(done.stderr)}")


def legacy_environment() -> dict[str, str]:
    """Returns the environment of a process in which tensorflow-recommenders works."""
    return {**os.environ, "TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}


def _last(text: str) -> str:
    return " ".join([line for line in text.strip().splitlines() if line][-1:])


def _write(snapshot_dir: pathlib.Path, output_dir: pathlib.Path, modality: str, kind: str, count: int) -> None:
    import numpy as np
    import tensorflow as tf

    from tfmm import artifacts, extras
    from tfmm.index import snapshot

    tfrs = extras.require("tensorflow_recommenders", "tfrs")
    table = snapshot.load_snapshot(snapshot_dir)[modality]
    held = np.asarray(table.scales) > 0
    ids = table.ids[held]
    vectors = table.rows[held].astype(np.float32) * table.scales[held][:, None]
    count = min(count, len(ids))

    class Similar(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ids = tf.Variable(ids, trainable=False, name="item_ids")
            self.vectors = tf.Variable(vectors, trainable=False, name="vectors")
            if kind == BRUTE_FORCE:
                self.layer = tfrs.layers.factorized_top_k.BruteForce(k=count)
                self.layer.index(self.vectors, self.ids)
            else:
                self.layer = tfrs.layers.factorized_top_k.Streaming(k=count)
                candidates = tf.data.Dataset.from_tensor_slices((ids, vectors)).batch(_BATCH)
                self.layer.index_from_dataset(candidates)

        @tf.function(input_signature=[tf.TensorSpec([None, vectors.shape[1]], tf.float32, name="vectors")])
        def by_vectors(self, vectors: typing.Any) -> dict[str, typing.Any]:
            scores, found = self.layer(vectors)
            return {"item_ids": found, "scores": scores}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.int64, name="item_ids")])
        def by_items(self, item_ids: typing.Any) -> dict[str, typing.Any]:
            place = tf.minimum(tf.searchsorted(self.ids, item_ids), len(ids) - 1)  # ids of a snapshot ascend
            known = tf.gather(self.ids, place) == item_ids
            found = self.by_vectors(tf.gather(self.vectors, place))
            return {name: tf.where(known[:, None], values, tf.zeros_like(values)) for name, values in found.items()}

    module = Similar()
    signatures = {"serving_default": module.by_vectors, "similar_items": module.by_items}
    with artifacts.under_construction(output_dir) as building:  # no server sees half of it
        tf.saved_model.save(module, str(building), signatures=signatures)
        shutil.rmtree(output_dir, ignore_errors=True)
        building.replace(output_dir)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("snapshot", type=pathlib.Path)
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--modality", required=True)
    parser.add_argument("--kind", choices=KINDS, default=BRUTE_FORCE)
    parser.add_argument("--count", type=int, default=100)
    options = parser.parse_args()
    if os.environ.get("TF_USE_LEGACY_KERAS") != "1":
        parser.error("the process needs TF_USE_LEGACY_KERAS=1, since tensorflow-recommenders is of Keras 2")
    _write(options.snapshot, options.output, options.modality, options.kind, options.count)


if __name__ == "__main__":
    main()
