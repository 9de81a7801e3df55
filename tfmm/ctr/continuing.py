"""Training that goes on over rows as they come (section 5): from a state and rows to the state after them."""

from __future__ import annotations

import functools
import math
import typing

import tensorflow as tf

from tfmm.config import CTRConfig
from tfmm.ctr.hidden_vectors import hide_behaviors
from tfmm.ctr.optimizer import HeldRate
from tfmm.ctr.state import State
from tfmm.features import LABEL, FeatureSet
from tfmm.index import item_vectors
from tfmm.index.item_vectors import ItemVectors
from tfmm.training import checkpoint as checkpoint_lib
from tfmm.training import examples as examples_lib
from tfmm.training import loop, sources
from tfmm.training import progress as progress_lib
from tfmm.training.labels import weighing

Evaluate = typing.Callable[[], typing.Mapping[str, float]]
Line = dict[str, typing.Any]


def model_inputs(
    batch: typing.Mapping[str, tf.Tensor], tables: typing.Mapping[str, ItemVectors], feature_set: FeatureSet
) -> dict[str, tf.Tensor]:
    """Returns the inputs of CTRModel, [B, ...] by name, for a batch of `training.sources`.

    Args:
        batch: what a step reads of B rows, float32, int64 or int32 [B, ...] by name.
        tables: item vectors by modality; their slots in the batch are looked up.
        feature_set: whose columns the model takes.
    """
    own = {column.input: batch[column.input] for column in feature_set.columns}
    return own | item_vectors.vector_inputs(batch, tables, feature_set)


def step_of(state: State) -> loop.StepFn:
    """Returns the step of training: a batch of `training.sources` -> its losses, after one update of the weights."""
    model, tables, feature_set, optimizer = state.model, state.tables, state.model.feature_set, state.optimizer

    def step(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        with tf.GradientTape() as tape:
            inputs, counts = model_inputs(batch, tables, feature_set), weighing(batch, feature_set.label)
            losses = model.losses(inputs, batch[LABEL], batch[examples_lib.IS_ROW], **counts)
            loop.apply_gradients(tape, tf.add_n(list(losses.values())), model.trainable_variables, optimizer)
        return losses

    return step


def continue_over(
    state: State,
    config: CTRConfig,
    rows: sources.ExampleSource,
    *,
    checkpoint: checkpoint_lib.Checkpoint | None = None,
    progress: progress_lib.Progress = progress_lib.silent,
    evaluate: Evaluate = dict,
    evaluations: int = 1,
    step: loop.StepFn | None = None,
) -> tuple[State, list[Line]]:
    """Trains a state on rows in time order, shuffled inside blocks; called again and again, over rows after those.

    What is drawn (the order inside blocks, hidden vectors) follows from the seed and from how many segments the state
    has been trained over in its life, the optimizer goes on with its moments and its count of steps: so two calls over
    the halves of some rows are one over all of them, where the halves are whole segments of equal length and the rate
    does not fall (`config.decay_from=1`). It is held and falls within each call.

    Args:
        state: to go on from; trained further, not copied.
        config: rates, sizes of batch, block and segment, epochs.
        rows: any source: examples of a span, or what a stream has brought.
        checkpoint: of `state.variables`, to go on from after a stop; keyed by the state, the config and the rows.
        progress: called with the steps done.
        evaluate: further figures for the history, at the end of each epoch.
        evaluations: how often per epoch, at the ends of segments; at the last one always.
        step: `step_of` this state, which `loop.compiled` made, so that many calls trace it once; it holds the rates of
            the first of them, so `config.decay_from` must be 1. None: it is made here.
    Returns:
        The state, and a line of history per segment.
    Raises:
        ValueError: there are no rows.
    """
    if not rows.num_rows:
        raise ValueError("`rows` must hold at least one row to train on. Received: none.")
    if step is not None and config.decay_from < 1.0:
        raise ValueError(
            "`config.decay_from` must be 1 where `step` is given, which is traced with one rate. Received: "
            f"{config.decay_from}."
        )
    tables, feature_set, first = state.tables, state.model.feature_set, state.segments
    num_rows = rows.num_rows
    segment_rows = config.block_rows * math.ceil(num_rows / config.block_rows / config.segments)
    starts = range(0, num_rows, segment_rows)
    steps = sum(math.ceil(min(segment_rows, num_rows - start) / config.batch_size) for start in starts)
    rate = HeldRate(config.learning_rate, config.epochs * steps, config.decay_from, state.steps)
    state.set_rates(rate, config.embedding_learning_rate)

    evaluated = {round(len(starts) * part / evaluations) - 1 for part in range(1, evaluations + 1)}

    def segment_data(segment: int) -> tf.data.Dataset:
        start, number = starts[segment % len(starts)], first + segment
        order = examples_lib.blocked_order(
            min(segment_rows, num_rows - start), config.block_rows, config.seed, number
        )
        hide = functools.partial(hide_behaviors, config, list(tables), feature_set, number)
        return sources.dataset(rows, start + order, config.batch_size, hide)

    history = loop.run(
        step or step_of(state),
        segment_data,
        config.epochs * len(starts),
        checkpoint=checkpoint,
        progress=progress,
        stage="ctr_multimodal" if tables else "ctr_id",
        evaluate=lambda segment: evaluate() if (segment % len(starts)) in evaluated else {},
    )
    state.segments = first + len(history)
    lines: list[Line] = [
        {**line, "epoch": segment // len(starts), "segment": segment % len(starts)}
        for segment, line in enumerate(history)
    ]
    return state, lines
