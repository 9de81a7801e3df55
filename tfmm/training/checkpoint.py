"""A training run's whole state in one file per epoch, from which it goes on as if it had never stopped."""

from __future__ import annotations

import json
import math
import os
import pathlib
import time
import typing

import numpy as np
import tensorflow as tf

_META = "__meta__"
FILE = "state.npz"
_QUICK_S, _PAUSE = 1.0, 19.0  # a save that is no matter; how many times a longer one has to pass before the next
_BFLOAT16, _STORED_AS = np.dtype(tf.bfloat16.as_numpy_dtype), np.dtype(np.uint16)  # NumPy's files do not know the first

Variables = typing.Mapping[str, typing.Sequence[typing.Any]]


class Checkpoint:
    """Saves and restores named groups of variables, at the end of an epoch.

    The state of a run is its variables, the number of epochs done and the history so far; everything random
    must follow from the seed and the epoch's number (dropout layers keep their generator in a variable of the
    model). The file is complete or absent, also after a kill: it is written aside, synced to disk and
    renamed. Of several processes that train together the chief alone writes it, and all go on from it.

    Args:
        folder: where checkpoints are kept. The file lies in a subfolder named by `key`, so a run with another
            config or other data starts afresh and leaves this one alone.
        key: str, hash of all that determines the result, e.g. `artifacts.fingerprint(config, data_hash)`.
        variables: per group name, the variables (Keras or TensorFlow), all of them built:
            `{"model": model.variables, "optimizer": optimizer.variables}`.
    Raises:
        ValueError: `key` is empty or not a plain file name.

    >>> import tempfile, tensorflow as tf
    >>> folder, step = tempfile.mkdtemp(), tf.Variable(3)
    >>> Checkpoint(folder, "a", {"step": [step]}).save(1, [{"loss": 0.5}])
    >>> _ = step.assign(0)
    >>> Checkpoint(folder, "a", {"step": [step]}).restore()
    (1, [{'loss': 0.5}])
    >>> int(step)
    3
    >>> Checkpoint(folder, "b", {"step": [step]}).restore()
    (0, [])
    """

    def __init__(self, folder: str | os.PathLike[str], key: str, variables: Variables) -> None:
        if key in ("", ".", "..") or pathlib.Path(key).name != key:
            raise ValueError(
                f"`key` must be a plain file name, such as artifacts.fingerprint(...). Received: {key!r}."
            )
        self.path = pathlib.Path(folder) / key / FILE
        self.variables = {name: list(group) for name, group in variables.items()}
        self._saved_at, self._seconds = -math.inf, 0.0

    def is_due(self) -> bool:
        """Returns whether to save again: where saving takes more than a second, so that it is 5 % of the time at most.

        A stopped run goes on from the last state saved, so no more than 20 times a save is done twice.
        """
        return self._seconds < _QUICK_S or time.monotonic() - self._saved_at >= _PAUSE * self._seconds

    def save(self, epochs_done: int, history: typing.Sequence[typing.Mapping[str, float]] = ()) -> None:
        """Writes the state after `epochs_done` epochs in place of the one before."""
        # NumPy cannot read a mirrored variable; TensorFlow gives the first replica's value.
        if not tf.distribute.get_strategy().extended.should_checkpoint:
            return
        started = time.monotonic()
        arrays = {f"{name}/{i}": _array(variable) for name, variable, i in self._each()}
        meta = json.dumps({"epochs_done": epochs_done, "history": list(history)})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".state.{os.getpid()}.npz")
        with open(temporary, "wb") as file:
            np.savez(file, **arrays, **{_META: np.array(meta)})
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)
        sync(self.path.parent)
        self._saved_at = time.monotonic()
        self._seconds = self._saved_at - started

    def restore(self) -> tuple[int, list[dict[str, float]]]:
        """Sets the variables to the saved state.

        Returns:
            The number of epochs done and their history; (0, []) where there is no checkpoint, with no
            variable touched.
        Raises:
            ValueError: the file is damaged or holds other variables than these; nothing is assigned then.
        """
        if not self.path.exists():
            return 0, []
        arrays, meta = _read(self.path)
        found = {name: (array.shape, str(array.dtype)) for name, array in arrays.items()}
        wanted = {
            f"{name}/{i}": (tuple(variable.shape), _stored_dtype(variable))
            for name, variable, i in self._each()
        }
        if found != wanted:
            differing = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
            raise ValueError(
                f"{self.path} must hold the variables of this run. Differing: {differing[:5]} (found "
                f"{found.get(differing[0])}, wanted {wanted.get(differing[0])}). Delete it, or key it by "
                "all that shapes the model."
            )
        for name, variable, i in self._each():
            variable.assign(value_of(arrays[f"{name}/{i}"], variable))
        return meta["epochs_done"], meta["history"]

    def _each(self) -> typing.Iterator[tuple[str, typing.Any, int]]:
        for name, group in self.variables.items():
            for i, variable in enumerate(group):
                yield name, variable, i


def read(folder: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, typing.Any]]:
    """Returns what a checkpoint in `folder` (with its key) holds: arrays by group and place, and what `save` was told.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged.
    """
    return _read(pathlib.Path(folder) / FILE)


def _read(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, typing.Any]]:
    try:
        # np.load would leave a damaged file that it opened itself open.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return arrays, json.loads(str(arrays.pop(_META)))
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile, zlib, numpy and json each have their own
        raise ValueError(f"{path} is damaged ({error}). Delete it to train from the start.") from error


def value_of(array: np.ndarray, variable: typing.Any) -> np.ndarray:
    """Returns a stored array as a variable takes it."""
    return array.view(_BFLOAT16) if _dtype_name(variable) == _BFLOAT16.name else array


def array_of(variable: typing.Any) -> np.ndarray:
    """Returns a variable's value; of a mirrored one, which NumPy cannot read, that of the first replica."""
    return tf.convert_to_tensor(variable).numpy()


def _array(variable: typing.Any) -> np.ndarray:
    array = array_of(variable)
    return array.view(_STORED_AS) if array.dtype == _BFLOAT16 else array


def _stored_dtype(variable: typing.Any) -> str:
    name = _dtype_name(variable)
    return _STORED_AS.name if name == _BFLOAT16.name else name


def _dtype_name(variable: typing.Any) -> str:
    dtype = variable.dtype
    return dtype if isinstance(dtype, str) else dtype.name


def sync(path: pathlib.Path) -> None:
    """Brings a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
