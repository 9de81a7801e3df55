"""The pre-training stage: pairs in, an encoder that every later stage loads out."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
import typing

import numpy as np
import tensorflow as tf

from tfmm import artifacts, own_classes, source
from tfmm.config import DEFAULT_TRAINING, SCLConfig, TrainingConfig, to_dict
from tfmm.metrics.top_n_accuracy import positive_ranks
from tfmm.pretrain import accuracy, frozen
from tfmm.pretrain.encoders import Encoder, make_encoder
from tfmm.pretrain.pair_table import NONE, ContentTable, PairTable, content_hash, read_pairs
from tfmm.pretrain.plan import make_plan
from tfmm.pretrain.scl import SCL, Batch
from tfmm.training import devices, loop, precision, replicas
from tfmm.training.checkpoint import Checkpoint
from tfmm.training.progress import Progress, silent

ENCODE_CHUNK = 256
_MEMORY = "`batch_size`, `memory_bank_size`, `image_size` or `text_buckets` of the encoder"


def train(
    config: SCLConfig,
    pairs_dir: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    training: TrainingConfig = DEFAULT_TRAINING,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
) -> dict[str, typing.Any]:
    """Trains one item encoder by semantic-aware contrastive learning and exports it; a frozen one is only exported.

    Writes `encoder/` (SavedModel: `serving_default`, input `content` string [B], output `vector` float32 [B,
    D] of length 1, zeros for what cannot be decoded), `history.json` and, last, `manifest.json`.

    Args:
        config: the stage's settings; the same settings, seed and data give the same encoder on the same
            machine.
        pairs_dir: holds train.parquet and heldout.parquet of one modality.
        output_dir: where the artifact goes; an older one there is replaced.
        training: on what devices, and how exactly; what is exported computes in float32.
        checkpoint_dir: where a stopped run goes on from; None trains without a way back.
        progress: stage name "pretrain_<modality>".
    Returns:
        The manifest: encoder_version, modality, dim; what `accuracy.judge` says of acc_at_1 and acc_at_5; the number
        of pairs and items; the settings in effect, see `plan.Plan`; `warnings`: sentences on few pairs, and where
        training did not raise Acc@1.
    Raises:
        ValueError: files or columns missing, fewer than two usable pairs; what `devices.placed` refuses, and
            a batch that the devices do not divide.
    """
    pairs_dir, output_dir = pathlib.Path(pairs_dir), pathlib.Path(output_dir)
    if config.frozen:  # nothing is trained, so neither devices nor precision may change what it encodes
        devices.by_chief(training, lambda: frozen.export(config, output_dir))
        return artifacts.read_manifest(output_dir)
    return _fit_and_export(
        config, pairs_dir, output_dir, training=training, checkpoint_dir=checkpoint_dir, progress=progress
    )


@devices.placed(_MEMORY)
def _fit_and_export(
    config: SCLConfig, pairs_dir: pathlib.Path, output_dir: pathlib.Path, *, training: TrainingConfig, **how: typing.Any
) -> dict[str, typing.Any]:
    fitted = fit(config, pairs_dir, training=training, **how)
    return devices.write(lambda: _export(config, pairs_dir, output_dir, fitted), output_dir)


def _export(
    config: SCLConfig, pairs_dir: pathlib.Path, output_dir: pathlib.Path, fitted: Fitted
) -> dict[str, typing.Any]:
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / artifacts.MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(output_dir / "encoder", ignore_errors=True)
    fitted.encoder.export(output_dir / "encoder")
    (output_dir / "history.json").write_text(json.dumps(fitted.history, indent=2) + "\n")
    parents = [pairs_dir, pairs_dir.parent]
    return artifacts.write_manifest(
        output_dir,
        "encoder",
        config,
        parents,
        modality=config.modality,
        dim=config.dim,
        encoder_version=fitted.encoder.version(),
        content_form=dataclasses.asdict(fitted.encoder.form),
        **fitted.facts,
    )


class Fitted(typing.NamedTuple):
    """A trained encoder, its history per epoch, and what is worth knowing about both."""

    encoder: Encoder
    history: list[dict[str, float]]
    facts: dict[str, typing.Any]


@devices.placed(_MEMORY)
def fit(
    config: SCLConfig,
    pairs_dir: str | os.PathLike[str],
    *,
    training: TrainingConfig = DEFAULT_TRAINING,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
) -> Fitted:
    """Trains one item encoder; as `train`, which also exports it. `plan.make_plan` fits the settings to the pairs."""
    devices.require_divisible(config.batch_size)
    train_path, heldout_path = (pathlib.Path(pairs_dir) / f"{name}.parquet" for name in ("train", "heldout"))
    encoder = make_encoder(config)
    pairs, contents, unusable = _load(encoder, train_path)
    heldout = Heldout(encoder, heldout_path)
    plan = make_plan(config, pairs.query, pairs.positive, pairs.item_ids, replicas.count())
    stage = f"pretrain_{config.modality}"
    sizes = {**dataclasses.asdict(plan), "steps": plan.steps}
    progress(stage, 0, plan.steps, **sizes)
    scl = SCL(dataclasses.replace(config.with_bank, memory_bank_size=plan.memory_bank_size), encoder, plan.steps)
    checkpoint = None
    if checkpoint_dir is not None:
        code = source.digest_of(__name__), own_classes.source_digest([config.encoder])
        settings, pairs_hash = (to_dict(config), to_dict(training)), content_hash(train_path, heldout_path)
        key = artifacts.fingerprint(settings, sizes, pairs_hash, code)
        checkpoint = Checkpoint(checkpoint_dir, key, scl.variables())
    untrained = heldout.ranks()
    history = loop.run(
        scl.train_step,
        lambda epoch: epoch_batches(config, pairs, contents, plan.batch_size, epoch),
        plan.epochs,
        checkpoint=checkpoint,
        progress=progress,
        stage=stage,
        evaluate=lambda epoch: accuracy.at_n(heldout.ranks()),
    )
    facts: dict[str, typing.Any] = {
        **accuracy.judge(heldout.ranks(), untrained, heldout.pairs.item_ids),
        **sizes,
        "train_pairs": len(pairs),
        "heldout_pairs": len(heldout.pairs),
        "heldout_items": heldout.num_items,
        "unusable_contents": unusable + heldout.unusable,
    }
    found = (_pairs_warning(pathlib.Path(pairs_dir)), accuracy.no_better(facts, config.modality))
    precision.to_float32(encoder.model)
    facts["warnings"] = [warning for warning in found if warning]
    return Fitted(encoder, history, facts)


def epoch_batches(
    config: SCLConfig, pairs: PairTable, contents: ContentTable, batch_size: int, epoch: int
) -> tf.data.Dataset:
    """Returns the batches of one epoch, shuffled and augmented as the seed and the epoch's number say.

    Of more than `config.max_pairs_seen` pairs an epoch sees so many, the first of its order.
    """
    rng = np.random.default_rng((config.seed, epoch))
    steps = min(len(pairs), config.max_pairs_seen) // batch_size
    order = rng.permutation(len(pairs))[: steps * batch_size].reshape(steps, batch_size)
    seeds = rng.integers(0, 2**31, (steps, 3, 2)).astype(np.int32)
    negative = pairs.negative[order]
    has_negative = negative != NONE
    # Rows without a hard negative repeat their positive, so that batch normalization sees real items.
    rows = np.stack(
        [pairs.query[order], pairs.positive[order], np.where(has_negative, negative, pairs.positive[order])],
        axis=1,
    )
    with_negatives = pairs.has_negatives and config.triplet_weight > 0.0

    def features(row, seed, role):
        fetched = contents.fetch(row[role])
        return contents.encoder.augment(fetched, seed[role]) if config.augment else fetched

    def make_batch(row, seed, has_negative, item_ids):
        return Batch(
            features(row, seed, 0),
            features(row, seed, 1),
            features(row, seed, 2) if with_negatives else (),
            has_negative,
            item_ids,
        )

    dataset = tf.data.Dataset.from_tensor_slices((rows, seeds, has_negative, pairs.item_ids[order]))
    return dataset.map(make_batch, num_parallel_calls=2, deterministic=True).prefetch(2)


class Heldout:
    """Held-out pairs, ready to be ranked after every epoch: Acc@N over the set of all held-out positives."""

    def __init__(self, encoder: Encoder, path: pathlib.Path) -> None:
        self.encoder = encoder
        self.pairs, self.contents, self.unusable = _load(encoder, path)
        _, first, own = np.unique(self.pairs.item_ids, return_index=True, return_inverse=True)
        self.num_items = len(first)
        self._positive = self.pairs.positive[first][own]  # one content per item
        self._rows, inverse = np.unique(np.concatenate([self.pairs.query, self._positive]), return_inverse=True)
        self._query_place, self._positive_place = np.split(inverse, 2)

    def ranks(self) -> np.ndarray:
        """Returns int64 [n]: each pair's positive among all positives, by the encoder as it is now."""
        with precision.in_float32(self.encoder.model):
            chunks = [
                self.encoder.model(
                    list(self.contents.fetch(self._rows[start : start + ENCODE_CHUNK])), training=False
                ).numpy()
                for start in range(0, len(self._rows), ENCODE_CHUNK)
            ]
        vectors = np.concatenate(chunks)
        queries, positives = vectors[self._query_place], vectors[self._positive_place]
        return positive_ranks(queries, positives, positive_ids=self.pairs.item_ids)


def _pairs_warning(pairs_dir: pathlib.Path) -> str | None:
    """Returns what the builder of the pairs warned of; pairs of other makers say nothing."""
    if not (pairs_dir / artifacts.MANIFEST).exists():
        return None
    return artifacts.read_manifest(pairs_dir).get("warning")


def _load(encoder: Encoder, path: pathlib.Path) -> tuple[PairTable, ContentTable, int]:
    pairs = read_pairs(path)
    contents = ContentTable(encoder, pairs.contents)
    pairs = pairs.without(~contents.valid)
    unusable = int((~contents.valid).sum())
    if len(pairs) < 2:
        raise ValueError(
            f"{path} must hold at least two pairs that can be used. Received: {len(pairs)} "
            f"({unusable} contents could not be decoded)."
        )
    return pairs, contents, unusable
