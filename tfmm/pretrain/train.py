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
from tfmm.pretrain import accuracy, contact_sheet, frozen, looking
from tfmm.pretrain.encoders import Encoder, make_encoder
from tfmm.pretrain.evaluations import Evaluations, told
from tfmm.pretrain.heldout import Heldout, keep_back, load
from tfmm.pretrain.keras_cv_import import load_keras_cv
from tfmm.pretrain.pair_table import NONE, ContentTable, PairTable, content_hash
from tfmm.pretrain.plan import make_plan
from tfmm.pretrain.scl import SCL, Batch
from tfmm.scl_config import BEST, BOTH, KEPT, LAST, POSITIVES, QUERIES
from tfmm.training import devices, loop, precision, replicas
from tfmm.training.checkpoint import Checkpoint
from tfmm.training.progress import Progress, silent

_QUERY, _POSITIVE, _NEGATIVE = range(3)  # roles in a pair
WEIGHTS = "{}.weights.h5"  # beside the manifest: the weights `last` and `best`, where some pairs are kept back
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
    D] of length 1, zeros for what cannot be decoded), `history.json`, `contact_sheet.json` and, last, `manifest.json`.
    With `validation_fraction`, `last.weights.h5` and `best.weights.h5` of the model too, of which `exported` says the
    one in `encoder/`.

    Args:
        config: the stage's settings; the same settings, seed and data give the same encoder on the same
            machine.
        pairs_dir: holds train.parquet and heldout.parquet of one modality.
        output_dir: where the artifact goes; an older one there is replaced.
        training: on what devices, and how exactly; what is exported computes in float32.
        checkpoint_dir: where a stopped run goes on from; None trains without a way back.
        progress: stage name "pretrain_<modality>".
    Returns:
        The manifest: encoder_version, modality, dim; what `accuracy.judge` says of acc_at_1 and acc_at_5; what
        `looking.look` sees; the number of pairs and items; the settings in effect, see `plan.Plan`; `evaluations`:
        step, loss, temperature and Acc@N of each; `kept`: after how many steps the last and the best weights were
        taken; `warnings`: sentences on few pairs, and where training did not raise Acc@1.
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
    _write_kept(output_dir, fitted)
    (output_dir / "history.json").write_text(json.dumps(fitted.history, indent=2) + "\n")
    (output_dir / contact_sheet.FILE).write_text(json.dumps(fitted.sheet, indent=1) + "\n")
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


def _write_kept(output_dir: pathlib.Path, fitted: Fitted) -> None:
    """Writes the weights `last` and `best`; removes those of an artifact before, where there are none."""
    model = fitted.encoder.model
    exported = model.get_weights()
    for name in KEPT:
        path = output_dir / WEIGHTS.format(name)
        path.unlink(missing_ok=True)
        if name in fitted.kept:
            model.set_weights(fitted.kept[name])
            model.save_weights(path)
    model.set_weights(exported)


class Fitted(typing.NamedTuple):
    """A trained encoder, its history per evaluation, what is worth knowing about both, and pairs to look at.

    `sheet` is `contact_sheet.make`'s; `kept` has the weights `last` and `best`, as `encoder.model.set_weights` takes
    them, none without validation pairs.
    """

    encoder: Encoder
    history: list[dict[str, float]]
    facts: dict[str, typing.Any]
    sheet: list[dict[str, typing.Any]] = []
    kept: dict[str, list[np.ndarray]] = {}


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
    if config.by_keras_cv:
        load_keras_cv()  # what is not installed is said before any work
    train_path, heldout_path = (pathlib.Path(pairs_dir) / f"{name}.parquet" for name in ("train", "heldout"))
    encoder = make_encoder(config)
    pairs, contents, unusable = load(encoder, train_path)
    heldout, validation = Heldout(encoder, heldout_path), None
    if config.validation_fraction:
        pairs, back = keep_back(pairs, config.validation_fraction, config.seed)
        validation = Heldout.of(encoder, back, contents)
    plan = make_plan(config, pairs.query, pairs.positive, pairs.item_ids, replicas.count())
    stage = f"pretrain_{config.modality}"
    sizes = {**dataclasses.asdict(plan), "steps": plan.steps}
    progress(stage, 0, plan.steps, **sizes)
    scl = SCL(dataclasses.replace(config.with_bank, memory_bank_size=plan.memory_bank_size), encoder, plan.steps)
    evaluations = Evaluations(plan, config.evaluate_every, heldout, validation)
    checkpoint = None
    if checkpoint_dir is not None:
        code = source.digest_of(__name__), own_classes.source_digest([config.encoder])
        trained = dataclasses.replace(config, exported=LAST)  # the other weights of a checkpoint need no training
        settings, pairs_hash = (to_dict(trained), to_dict(training)), content_hash(train_path, heldout_path)
        key = artifacts.fingerprint(settings, sizes, pairs_hash, code)
        best = {} if evaluations.best is None else {BEST: evaluations.best.variables()}
        checkpoint = Checkpoint(checkpoint_dir, key, {**scl.variables(), **best})
    untrained = heldout.vectors()
    history = loop.run(
        scl.train_step,
        lambda part: batches(config, pairs, contents, plan.batch_size, *evaluations.steps(part)),
        evaluations.count,
        checkpoint=checkpoint,
        progress=progress,
        stage=stage,
        evaluate=evaluations,
    )
    kept, chosen = evaluations.keep(config.exported)
    vectors = heldout.vectors()
    ranks = heldout.ranks(vectors)
    facts: dict[str, typing.Any] = {
        **accuracy.judge(ranks, heldout.ranks(untrained), heldout.pairs.item_ids),
        **looking.look(heldout, vectors, untrained, ranks),
        **sizes,
        **chosen,
        "train_pairs": len(pairs),
        "heldout_pairs": len(heldout.pairs),
        "heldout_items": heldout.num_items,
        "unusable_contents": unusable + heldout.unusable,
        "evaluations": told(history),
    }
    found = (_pairs_warning(pathlib.Path(pairs_dir)), accuracy.no_better(facts, config.modality))
    precision.to_float32(encoder.model)
    facts["warnings"] = [warning for warning in found if warning]
    return Fitted(encoder, history, facts, contact_sheet.make(heldout, vectors, ranks, config.seed), kept)


def epoch_batches(
    config: SCLConfig, pairs: PairTable, contents: ContentTable, batch_size: int, epoch: int
) -> tf.data.Dataset:
    """Returns the batches of one epoch, counted from 0, see `batches`."""
    steps = _steps_per_epoch(config, pairs, batch_size)
    return batches(config, pairs, contents, batch_size, epoch * steps, (epoch + 1) * steps)


def batches(
    config: SCLConfig, pairs: PairTable, contents: ContentTable, batch_size: int, first: int, last: int
) -> tf.data.Dataset:
    """Returns the batches of some steps of a training, shuffled and augmented as the seed and their epoch say.

    Of more than `config.max_pairs_seen` pairs an epoch sees so many, the first of its order. What a step sees does not
    depend on where evaluations part them.

    Args:
        config: the stage's settings.
        pairs: those to train on.
        contents: of the pairs.
        batch_size: in effect.
        first, last: steps, counted from 0 over all epochs; the last is left out.
    """
    steps = _steps_per_epoch(config, pairs, batch_size)
    drawn = []
    for epoch in range(first // steps, -(-last // steps)):
        rng = np.random.default_rng((config.seed, epoch))
        order = rng.permutation(len(pairs))[: steps * batch_size].reshape(steps, batch_size)
        seeds = rng.integers(0, 2**31, (steps, 3, 2)).astype(np.int32)
        taken = slice(max(first - epoch * steps, 0), last - epoch * steps)
        drawn.append((order[taken], seeds[taken]))
    order, seeds = (np.concatenate(parts) for parts in zip(*drawn))
    negative = pairs.negative[order]
    has_negative = negative != NONE
    # Rows without a hard negative repeat their positive, so that batch normalization sees real items.
    rows = np.stack(
        [pairs.query[order], pairs.positive[order], np.where(has_negative, negative, pairs.positive[order])],
        axis=1,
    )
    with_negatives = pairs.has_negatives and config.triplet_weight > 0.0
    of_side = {QUERIES: (_QUERY,), POSITIVES: (_POSITIVE, _NEGATIVE), BOTH: (_QUERY, _POSITIVE, _NEGATIVE)}
    augmented = of_side[config.augmented] if config.is_augmented else ()

    def features(row, seed, role):
        fetched = contents.fetch(row[role])
        return contents.encoder.augment(fetched, seed[role]) if role in augmented else fetched

    def make_batch(row, seed, has_negative, item_ids):
        return Batch(
            features(row, seed, _QUERY),
            features(row, seed, _POSITIVE),
            features(row, seed, _NEGATIVE) if with_negatives else (),
            has_negative,
            item_ids,
        )

    dataset = tf.data.Dataset.from_tensor_slices((rows, seeds, has_negative, pairs.item_ids[order]))
    return dataset.map(make_batch, num_parallel_calls=2, deterministic=True).prefetch(2)


def _steps_per_epoch(config: SCLConfig, pairs: PairTable, batch_size: int) -> int:
    return min(len(pairs), config.max_pairs_seen) // batch_size


def _pairs_warning(pairs_dir: pathlib.Path) -> str | None:
    """Returns what the builder of the pairs warned of; pairs of other makers say nothing."""
    if not (pairs_dir / artifacts.MANIFEST).exists():
        return None
    return artifacts.read_manifest(pairs_dir).get("warning")
