"""The epoch loop of every trainer: our own step under tf.distribute, resumable after each epoch.

A trainer brings one function of a batch that updates its variables and returns scalars, and one function that
makes the tf.data of an epoch from the epoch's number alone. The loop runs them, averages the scalars, reports
progress, checkpoints, and goes on where a stopped run was.
"""

from __future__ import annotations

import collections
import math
import time
import typing

import numpy as np
import tensorflow as tf

from tfmm.training import precision, replicas
from tfmm.training.checkpoint import Checkpoint
from tfmm.training.progress import Progress, silent

StepFn = typing.Callable[[typing.Any], typing.Mapping[str, tf.Tensor]]
REPORT_INTERVAL_S = 1.0
_READ_EVERY = 256  # steps, after which their scalars leave the device


def run(
    step_fn: StepFn,
    dataset_for_epoch: typing.Callable[[int], tf.data.Dataset],
    epochs: int,
    *,
    checkpoint: Checkpoint | None = None,
    progress: Progress = silent,
    stage: str = "train",
    evaluate: typing.Callable[[int], typing.Mapping[str, float]] | None = None,
) -> list[dict[str, float]]:
    """Trains for `epochs` epochs, going on after those that the checkpoint holds.

    A resumed run ends like an uninterrupted one if `dataset_for_epoch` depends on its argument alone (draw
    shuffles and augmentation from `np.random.default_rng((seed, epoch))`) and the checkpoint names every variable that
    a step changes. To train on several devices call it, and create the variables, inside `strategy.scope()` (as
    `devices.placed` does): each dataset's batch is the global one, of which replica r of R gets the r-th of R equal
    parts in the order of its rows, whatever the dataset reads. The step's gradients must go through `apply_gradients`,
    and what it returns is averaged over the replicas, see `replicas`.

    Args:
        step_fn: takes one element of the dataset, updates variables, returns float [] tensors by name. It is
            compiled with tf.function once per shape: use `drop_remainder=True` where the last batch may be
            smaller. What `compiled` made is taken as it is, for callers that run it again and again.
        dataset_for_epoch: int epoch, counted from 0, -> batched tf.data.
        epochs: int >= 0, in all, those before a restart included.
        checkpoint: None trains without a way back.
        progress: called at most once a second with the steps done and to do (0 before the number is known),
            and at the end of each epoch; metrics: epoch, the step's scalars, steps_per_s. A note says what a
            checkpoint gave.
        stage: name passed to `progress`.
        evaluate: int epoch -> further floats for the history, after each epoch.
    Returns:
        The history: per epoch {"epoch", "seconds", "steps", the scalars' means, evaluate's floats}.
    Raises:
        FloatingPointError: a mean is not finite; the checkpoint keeps the epoch before.
        ValueError: an epoch has no batch.
    """
    done, history = checkpoint.restore() if checkpoint is not None else (0, [])
    history = history[:epochs]
    steps_done = int(sum(entry["steps"] for entry in history))
    if done and checkpoint is not None:
        note = f"{done} of {epochs} parts were trained before, and are taken from {checkpoint.path}"
        progress(stage, steps_done, round(steps_done * max(done, epochs) / done), note=note)
    strategy = tf.distribute.get_strategy()
    step = step_fn if isinstance(step_fn, tf.types.experimental.PolymorphicFunction) else compiled(step_fn, strategy)
    for epoch in range(done, epochs):
        dataset = dataset_for_epoch(epoch)
        steps_per_epoch = max(int(dataset.cardinality()), 0)
        values: dict[str, list[float]] = collections.defaultdict(list)
        latest: list[dict[str, tf.Tensor]] = []  # on the device; read together, so that a step need not wait
        steps = 0
        started = reported = time.perf_counter()
        for batch in _split(dataset, strategy):
            latest.append(step(batch))
            steps += 1
            if len(latest) == _READ_EVERY:
                _read(latest, values)
            now = time.perf_counter()
            if now - reported >= REPORT_INTERVAL_S:
                reported = now
                progress(
                    stage,
                    steps_done + steps,
                    steps_done + max((epochs - epoch) * steps_per_epoch, steps),
                    note="",
                    epoch=epoch,
                    steps_per_s=steps / (now - started),
                    **_last(latest, values),
                )
        _read(latest, values)
        if not steps:
            raise ValueError(
                f"Epoch {epoch} of {stage!r} must have at least one batch. Received: an empty dataset. "
                "Are there fewer rows than one batch?"
            )
        means = {name: float(np.mean(found)) for name, found in values.items()}
        for name, value in means.items():
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"`{name}` must stay finite. Received: {value} in epoch {epoch} of {stage!r}. "
                    "Lower the learning rate; in training.precision=mixed_float16, take mixed_bfloat16."
                )
        seconds = time.perf_counter() - started
        steps_done += steps
        entry: dict[str, float] = {"epoch": epoch, "seconds": round(seconds, 3), "steps": steps, **means}
        if evaluate is not None:
            entry.update({name: float(value) for name, value in evaluate(epoch).items()})
        history.append(entry)
        if checkpoint is not None and (epoch + 1 == epochs or checkpoint.is_due()):
            checkpoint.save(epoch + 1, history)
        shown = {name: value for name, value in entry.items() if name not in ("epoch", "seconds", "steps")}
        progress(
            stage,
            steps_done,
            steps_done + (epochs - epoch - 1) * steps,
            note="",
            epoch=epoch,
            steps_per_s=steps / seconds,
            **shown,
        )
    return history


def _read(latest: list[dict[str, tf.Tensor]], values: dict[str, list[float]]) -> None:
    """Moves the scalars of the latest steps into lists of floats by name."""
    for scalars in latest:
        for name, value in scalars.items():
            values[name].append(float(value))
    latest.clear()


def _last(latest: list[dict[str, tf.Tensor]], values: dict[str, list[float]]) -> dict[str, float]:
    """Returns the scalars of the step before, wherever they are."""
    if latest:
        return {name: float(value) for name, value in latest[-1].items()}
    return {name: found[-1] for name, found in values.items()}


def apply_gradients(
    tape: tf.GradientTape,
    loss: tf.Tensor,
    variables: typing.Sequence[typing.Any],
    optimizer: typing.Any,
    *,
    is_dense: bool = False,
) -> None:
    """Applies the gradients of a loss inside a step; its mean over the replicas is that over the global batch.

    Keras sums gradients over replicas, so the loss is divided by their number. `optimizer` may be built on more
    variables; those without a gradient stay as they are.

    Args:
        tape: the tape that saw the loss computed; the scaling is recorded on it, so call this inside its
            `with`.
        loss: float [].
        variables: Keras variables.
        optimizer: a Keras optimizer, or what `precision.scaled` makes of one.
        is_dense: True adds up the rows of sparse gradients first: a norm of them needs each row once.
    """
    loss = loss / tf.cast(replicas.count(), loss.dtype)
    if isinstance(optimizer, precision.LossScaled):
        loss = loss * optimizer.scale
    with tape.stop_recording():
        gradients = tape.gradient(loss, [variable.value for variable in variables])
        pairs = [(g, v) for g, v in zip(gradients, variables, strict=True) if g is not None]
        if is_dense:
            pairs = [(tf.convert_to_tensor(g), v) for g, v in pairs]
        optimizer.apply([g for g, _ in pairs], [v for _, v in pairs])


def _split(dataset: tf.data.Dataset, strategy: tf.distribute.Strategy) -> typing.Iterable[typing.Any]:
    """Returns the batches, each in one equal part per replica.

    TensorFlow's own split would give each process other files, so that a global batch is not the dataset's.
    """
    count = strategy.num_replicas_in_sync
    if count == 1:
        return dataset
    structure = dataset.element_spec

    def part(column: tf.Tensor) -> tf.Tensor:
        shape = tf.shape(column)
        tf.debugging.assert_equal(shape[0] % count, 0, f"A batch must have a multiple of {count} rows, one part each.")
        rows = tf.reshape(column, tf.concat([[count, shape[0] // count], shape[1:]], axis=0))
        size = column.shape[0]
        return tf.ensure_shape(rows, [count, None if size is None else size // count, *column.shape[1:]])

    def parts_of_process(context: tf.distribute.InputContext) -> tf.data.Dataset:
        local = count // context.num_input_pipelines
        first = context.input_pipeline_id * local

        def cut(*batch: typing.Any) -> typing.Any:
            columns = [part(column)[first : first + local] for column in tf.nest.flatten(batch)]
            return tf.nest.pack_sequence_as(structure, columns)

        return dataset.map(cut, num_parallel_calls=1, deterministic=True).unbatch().prefetch(2 * local)

    return strategy.distribute_datasets_from_function(parts_of_process)


def compiled(step_fn: StepFn, strategy: tf.distribute.Strategy) -> typing.Callable[[typing.Any], dict]:
    """Returns the step as `run` calls it: a graph on every replica, whose scalars are averaged over them."""

    @tf.function
    def step(batch: typing.Any) -> dict[str, tf.Tensor]:
        metrics = strategy.run(step_fn, args=(batch,))
        return {
            name: strategy.reduce(tf.distribute.ReduceOp.MEAN, value, axis=None)
            for name, value in metrics.items()
        }

    return step
