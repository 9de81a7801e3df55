"""The devices that a training runs on: one, all of this machine, or those of several processes (TF_CONFIG)."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import pathlib
import typing

import tensorflow as tf

from tfmm import artifacts
from tfmm.config import MIRRORED, MULTI_WORKER, ONE, TrainingConfig
from tfmm.training import cluster, precision

_Function = typing.TypeVar("_Function", bound=typing.Callable[..., typing.Any])


def start(config: TrainingConfig) -> None:
    """Meets the other processes of a multi_worker training; a process calls it before it computes anything.

    Does nothing for the other strategies.

    Raises:
        ValueError: TF_CONFIG is missing or wrong, or TensorFlow has computed something before.
    """
    if config.strategy == MULTI_WORKER:
        _strategy(config.strategy)


@functools.cache
def _strategy(name: str) -> tf.distribute.Strategy:
    if name == MIRRORED:
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    cluster.require(os.environ.get(cluster.VARIABLE, ""))
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except RuntimeError as error:
        raise ValueError(
            "`training.strategy=multi_worker` must be started before TensorFlow computes anything in the process: call "
            f"tfmm.training.devices.start first, or use `tfmm pretrain` and `tfmm train`. Received: {error}"
        ) from error


def is_chief(config: TrainingConfig) -> bool:
    """Returns whether this process writes: the chief, or worker 0 where there is none; alone a process always does."""
    return config.strategy != MULTI_WORKER or bool(_strategy(config.strategy).extended.should_checkpoint)


def by_chief(config: TrainingConfig, work: typing.Callable[[], object]) -> None:
    """Does `work` in the chief and lets the others wait for it; they see its files on a file system that all share."""
    if is_chief(config):
        work()
    if config.strategy == MULTI_WORKER:
        _meet(_strategy(config.strategy))


def write(work: typing.Callable[[], dict[str, typing.Any]], folder: pathlib.Path) -> dict[str, typing.Any]:
    """Lets the chief write an artifact at the end of what is `placed`; returns the manifest in every process."""
    strategy = tf.distribute.get_strategy()
    manifest = work() if strategy.extended.should_checkpoint else None
    _meet(strategy)
    return artifacts.read_manifest(folder) if manifest is None else manifest


def _meet(strategy: tf.distribute.Strategy) -> None:
    """Waits until every process of a cluster is here."""
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        with _told(strategy, ""):
            float(_meeting(strategy)())


@functools.cache
def _meeting(strategy: tf.distribute.Strategy) -> typing.Callable[[], tf.Tensor]:
    """Returns a sum over all processes, traced once."""

    def meet() -> tf.Tensor:
        return strategy.reduce("SUM", strategy.run(lambda: tf.constant(1.0)), axis=None)

    return tf.function(meet, autograph=False)


def placed(lower: str) -> typing.Callable[[_Function], _Function]:
    """Runs a trainer as its argument `training` says: inside the strategy's scope, layers made in the precision.

    Args:
        lower: the settings that take memory, for the message where a device has too little.
    Raises:
        ValueError: of the decorated function: TF_CONFIG is missing or wrong.
        MemoryError: a device has too little memory.
        ConnectionError: a process of the cluster was lost.
    """

    def decorate(function: _Function) -> _Function:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def run(*args: typing.Any, **kwargs: typing.Any) -> typing.Any:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            with _scope(bound.arguments["training"], lower):
                return function(*args, **kwargs)

        return typing.cast(_Function, run)

    return decorate


@contextlib.contextmanager
def _scope(config: TrainingConfig, lower: str) -> typing.Iterator[None]:
    with contextlib.ExitStack() as stack:
        if config.strategy != ONE:
            stack.enter_context(_strategy(config.strategy).scope())
        stack.enter_context(precision.policy(config.precision))
        stack.enter_context(_told(tf.distribute.get_strategy(), lower))
        yield


@contextlib.contextmanager
def _told(strategy: tf.distribute.Strategy, lower: str) -> typing.Iterator[None]:
    """Says what to do about errors of devices and of other processes."""
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        raise MemoryError(
            f"The device must have memory for what is trained. Lower {lower}, or take training.precision="
            f"mixed_bfloat16, or more devices at the same batch (training.strategy=mirrored). Received: "
            f"{str(error).splitlines()[0]}"
        ) from error
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError) as error:
        if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            raise
        raise ConnectionError(
            "Every process of the cluster must live until the training ends, and one was lost. Start all of them "
            f"again: training goes on from the last checkpoint. Received: {str(error).splitlines()[0]}"
        ) from error


def require_divisible(batch_size: int) -> None:
    """Raises a ValueError unless the replicas of the current strategy have equal parts of a batch."""
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    if batch_size % replicas:
        raise ValueError(
            f"`batch_size` is that of all devices together, and must be a multiple of their number. Received: "
            f"{batch_size} rows for {replicas} devices. Take {max(round(batch_size / replicas), 1) * replicas}."
        )
