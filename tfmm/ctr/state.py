"""A click model in training: all that its training goes on from, kept beside the model and not in what is served.

Indices are stable for the life of a model. A known id keeps its row, new ids are appended, and an id that is no longer
seen leaves a gap. So a table only grows, and old rows and their moments are what they were, bit by bit.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
import shutil
import typing

import numpy as np
import tensorflow as tf

from tfmm import artifacts, preprocessing
from tfmm import config as config_lib
from tfmm.config import CTRConfig
from tfmm.ctr.model import INITIAL_DEVIATION, CTRModel
from tfmm.ctr.optimizer import HeldRate, TwoRateAdam
from tfmm.data import behaviors as behaviors_lib
from tfmm.features import NUM_SPECIAL
from tfmm.index.item_vectors import ItemVectors
from tfmm.training import checkpoint as checkpoint_lib
from tfmm.training import precision

KIND = "training_state"
VOCABULARY = "vocabulary"  # folder of vocabularies and statistics
_VARIABLES, _COUNTS = "variables", "counts.npz"
_ROWS, _SHOWN = "trained_at:", "shown"
_SCALE = "loss_scale"  # variables of float16 alone, which begin anew after another precision
Folder = str | pathlib.Path


@dataclasses.dataclass
class State:
    """A model with its optimizer, to be trained further.

    Attributes:
        model: built.
        optimizer: built on its trainable variables.
        tables: item vectors by modality, of the encoders that it was trained with.
        segments: how many it was trained over in its life, see `continuing.continue_over`.
        trained_at: per table of a vocabulary, int64 [rows]: microseconds, through which the last span went that changed
            a row.
        shown: how many rows of training showed an item, in its life, by item id.
        used: per table of a vocabulary, how many rows have an id, of a state loaded with room for more; {}: all.
    """

    model: CTRModel
    optimizer: typing.Any
    tables: typing.Mapping[str, ItemVectors]
    segments: int = 0
    trained_at: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    shown: dict[int, int] = dataclasses.field(default_factory=dict)
    used: dict[str, int] = dataclasses.field(default_factory=dict)
    _first_squares: dict[str, np.ndarray] = dataclasses.field(default_factory=dict, repr=False)  # of what was loaded

    @property
    def variables(self) -> dict[str, list[typing.Any]]:
        """What a checkpoint of the training holds."""
        groups = {"model": list(self.model.variables), "optimizer": list(self._adam.variables)}
        if isinstance(self.optimizer, precision.LossScaled):
            groups[_SCALE] = [self.optimizer.scale, self.optimizer.finite_steps]
        return groups

    @property
    def steps(self) -> int:
        """How many the optimizer has taken."""
        return int(checkpoint_lib.array_of(self._adam.iterations))

    @property
    def _adam(self) -> TwoRateAdam:
        return self.optimizer.optimizer if isinstance(self.optimizer, precision.LossScaled) else self.optimizer

    def set_rates(self, rate: HeldRate, embedding_rate: float) -> None:
        """Sets the learning rates of dense weights and of ID embeddings."""
        self._adam.learning_rate = rate
        self._adam.embedding_learning_rate = embedding_rate

    def grow(self, ids: typing.Mapping[str, np.ndarray]) -> bool:
        """Gives new ids, int64 [n] by vocabulary, the next rows of their tables, as `load` would; False: no room."""
        own = {name: new for name, new in ids.items() if len(new)}
        if any(self.used[name] + len(new) > self.model.sizes[name] for name, new in own.items()):
            return False
        for name, new in own.items():
            table, first = self.model.embeddings[name].embeddings, self.used[name]
            drawn = initial_rows(name, new, table.shape[1], self.model.settings.seed)
            table.value.scatter_update(tf.IndexedSlices(drawn, np.arange(first, first + len(new))))
            self.used[name] += len(new)
        return True

    def kept(self) -> dict[str, list[typing.Any]]:
        """Returns the values of `variables`, of tables the rows in use alone."""
        adam, rows = self._adam, dict[int, int]()
        for name, count in self.used.items():
            table = self.model.embeddings[name].embeddings
            of_table = [table]
            if any(table is one for one in self.model.trainable_variables):
                place = adam._get_variable_index(table)
                of_table += [adam._momentums[place], adam._velocities[place]]
            rows |= {id(one): count for one in of_table}
        return {
            group: [one.value[: rows[id(one)]] if id(one) in rows else one for one in variables]
            for group, variables in self.variables.items()
        }

    def note_span(self, until_us: int, item_ids: np.ndarray) -> None:
        """Notes what was trained since the state was made or loaded: up to when, and of which items, int64 [n]."""
        for name, after in self._squares().items():
            before, size = self._first_squares.get(name), len(after)
            changed = np.ones(size, bool) if before is None else (after != before).any(axis=1)
            if not changed.any():  # no loss reads the table, so that this says nothing of ids
                changed[:] = True
            known = self.trained_at.get(name, np.zeros(0, np.int64))
            self.trained_at[name] = np.append(known, np.full(size - len(known), until_us))
            self.trained_at[name][changed] = until_us
        for item, count in zip(*(part.tolist() for part in np.unique(item_ids, return_counts=True))):
            self.shown[item] = self.shown.get(item, 0) + count

    def _squares(self) -> dict[str, np.ndarray]:
        """Returns the mean squares of vocabularies' gradients: they change in the rows that a step touches."""
        adam, result = self._adam, {}
        for name in self.model.feature_set.vocabularies:
            layer = self.model.embeddings[name]
            if any(layer.embeddings is one for one in self.model.trainable_variables):
                squares = adam._velocities[adam._get_variable_index(layer.embeddings)]
                result[name] = np.array(checkpoint_lib.array_of(squares))
        return result


def optimizer_of(model: CTRModel, config: CTRConfig) -> typing.Any:
    """Returns a fresh optimizer, built on the model's trainable variables; `continue_over` sets its rates."""
    rate = HeldRate(config.learning_rate, 1, config.decay_from)
    optimizer = precision.scaled(TwoRateAdam(rate, config.embedding_learning_rate))
    optimizer.build(model.trainable_variables)
    return optimizer


def save(
    state: State, folder: Folder, vocabulary_dir: Folder, parents: typing.Sequence[Folder] = (), **facts: typing.Any
) -> dict[str, typing.Any]:
    """Writes a state with its vocabularies; the manifest is last.

    Args:
        state: as it was trained.
        folder: made where missing; what lies there is replaced.
        vocabulary_dir: what its indices mean.
        parents: folders of artifacts that it was made from.
        **facts: JSON values for the manifest.
    """
    path, model = pathlib.Path(folder), state.model
    (path / artifacts.MANIFEST).unlink(missing_ok=True)  # first: what is left of a killed removal is no state
    shutil.rmtree(path, ignore_errors=True)
    checkpoint_lib.Checkpoint(path, _VARIABLES, state.kept()).save(state.segments)
    preprocessing.copy(model.feature_set, vocabulary_dir, path / VOCABULARY)
    arrays = {f"{_ROWS}{name}": instants for name, instants in state.trained_at.items()}
    shown = np.array(sorted(state.shown.items()), np.int64).reshape(-1, 2)
    np.savez(path / _COUNTS, **arrays, **{_SHOWN: shown})
    described = model.get_config()
    described["sizes"] = {**described["sizes"], **state.used}
    return artifacts.write_manifest(
        path,
        KIND,
        model.settings,
        parents,
        model={name: described[name] for name in ("make_config", "feature_set", "sizes", "dims", "methods")},
        is_make_frozen=_is_make_frozen(model),
        names={group: [_name(one) for one in variables] for group, variables in state.variables.items()},
        segments=state.segments,
        **facts,
    )


def read_manifest(folder: Folder) -> dict[str, typing.Any]:
    """Returns what a state says of itself.

    Raises:
        FileNotFoundError: there is none.
    """
    if not (pathlib.Path(folder) / artifacts.MANIFEST).is_file():
        raise FileNotFoundError(
            f"{folder} must be the state of a model's training. Received: none; an earlier version of tfmm did not "
            "keep it, or the training did not end. Train in full once, and go on from that."
        )
    return artifacts.read_manifest(folder, KIND)


def load(
    folder: Folder,
    config: CTRConfig,
    vocabulary_dir: Folder,
    tables: typing.Mapping[str, ItemVectors],
    room: float = 0.0,
) -> State:
    """Loads a state into tables that have room for further ids.

    A new id's row is what a fresh table would hold, drawn by the seed and the id, and its moments are fresh; all that
    was there is as it was.

    Args:
        folder: as `save` wrote it.
        config: of the training that goes on; in what shapes the model it is the state's.
        vocabulary_dir: vocabularies that begin with the state's.
        tables: item vectors by modality.
        room: further rows that tables get, as a share of those in use, for `State.grow`; what is saved has none.
    Raises:
        FileNotFoundError: there is no state.
        ValueError: vocabularies or variables are not the state's.
    """
    path, manifest = pathlib.Path(folder), read_manifest(folder)
    described = manifest["model"]
    feature_set = config_lib.as_config(config_lib.features_lib.FeatureSet, described["feature_set"])
    sizes = preprocessing.load(feature_set, vocabulary_dir).sizes
    used = {name: sizes[name] for name in feature_set.vocabularies} if room else {}
    sizes = {**sizes, **{name: size + math.ceil(room * size) for name, size in used.items()}}
    new_ids = _new_ids(feature_set, path / VOCABULARY, vocabulary_dir)
    model = CTRModel(
        config, described["make_config"], feature_set, sizes, described["dims"], described["methods"]
    )
    model.build()
    model.freeze_make(manifest["is_make_frozen"])
    for name, ids in new_ids.items():
        _set_new_rows(name, model.embeddings[name].embeddings, ids, config.seed, used.get(name))
    optimizer = optimizer_of(model, config)
    state = State(model, optimizer, tables, manifest["segments"], used=used)
    groups = {name: found for name, found in state.variables.items() if name != _SCALE or name in manifest["names"]}
    _assign(path, manifest, groups, sizes)
    with np.load(path / _COUNTS) as file:
        trained_at = {name.removeprefix(_ROWS): file[name] for name in file.files if name.startswith(_ROWS)}
        state.trained_at, state.shown = trained_at, dict(file[_SHOWN].tolist())
    state._first_squares = state._squares()
    return state


def _new_ids(feature_set: typing.Any, old_dir: Folder, new_dir: Folder) -> dict[str, np.ndarray]:
    """Returns the ids that a vocabulary has beyond the state's."""
    old, new = (preprocessing.vocabularies(feature_set, folder) for folder in (old_dir, new_dir))
    for name, ids in old.items():
        if not np.array_equal(ids, new[name][: len(ids)]):
            raise ValueError(
                f"The vocabulary {name!r} of {new_dir} must begin with that of {old_dir}, since a known id keeps its "
                "row. Received: another order. Extend the parent's vocabularies: `tfmm train --continue-from` does."
            )
    return {name: new[name][len(ids) :] for name, ids in old.items()}


def initial_rows(table: str, ids: np.ndarray, dim: int, seed: int) -> np.ndarray:
    """Returns what a fresh table holds for ids int64 [n], float32 [n, dim]: each table's and id's row by itself.

    >>> both, one = initial_rows("a", np.array([7, 8]), 3, seed=0), initial_rows("a", np.array([8]), 3, seed=0)
    >>> bool((both[1] == one[0]).all()), bool((both[0] == both[1]).any())
    (True, False)
    >>> bool((initial_rows("b", np.array([8]), 3, seed=0) == one).any())
    False
    """
    own = int(artifacts.fingerprint(table), 16) >> 1  # of the table, as an int64
    place = np.broadcast_to(np.arange(dim), (len(ids), dim)).ravel()
    one = np.repeat(ids, dim)
    keys = one, place, np.full(len(one), own), np.full(len(one), seed)
    bits = [behaviors_lib.tie_break(*keys, np.full(len(one), draw)) for draw in (0, 1)]
    first, second = ((part >> np.uint64(11)).astype(np.float64) / 2.0**53 for part in bits)
    normal = np.sqrt(-2.0 * np.log1p(-first)) * np.cos(2.0 * np.pi * second)  # Box and Muller
    return (INITIAL_DEVIATION * normal).astype(np.float32).reshape(len(ids), dim)


def _set_new_rows(name: str, table: typing.Any, ids: np.ndarray, seed: int, used: int | None) -> None:
    """Sets the last rows in use of a vocabulary's table, those of new ids; `used` is their number, None: all."""
    if len(ids):
        values = np.array(checkpoint_lib.array_of(table))
        end = len(values) if used is None else used
        values[end - len(ids) : end] = initial_rows(name, ids, values.shape[1], seed)
        table.assign(values)


def _assign(
    path: pathlib.Path,
    manifest: typing.Mapping[str, typing.Any],
    groups: typing.Mapping[str, typing.Sequence[typing.Any]],
    sizes: typing.Mapping[str, int],
) -> None:
    """Sets variables to the state's values; of tables that have grown the first rows."""
    names = {group: [_name(one) for one in variables] for group, variables in groups.items()}
    known = {group: found for group, found in manifest["names"].items() if group != _SCALE or group in names}
    if names != known:
        different = sorted({n for g in names for n in {*names[g]} ^ {*known.get(g, [])}})
        raise ValueError(
            f"{path} must hold the variables of this model. Received: others ({', '.join(different[:5]) or 'order'}), "
            "by another version of the model's code. Train in full once."
        )
    arrays, _ = checkpoint_lib.read(path / _VARIABLES)
    grown = {(manifest["model"]["sizes"][name], size) for name, size in sizes.items()}
    for group, variables in groups.items():
        for number, variable in enumerate(variables):
            values = checkpoint_lib.value_of(arrays[f"{group}/{number}"], variable)
            if values.shape != tuple(variable.shape):
                if values.shape[1:] != tuple(variable.shape[1:]) or (len(values), variable.shape[0]) not in grown:
                    raise ValueError(
                        f"{path} must hold variables of this model's shapes. Received: {_name(variable)} of "
                        f"{values.shape}, not {tuple(variable.shape)}. Train in full once."
                    )
                values = np.concatenate([values, checkpoint_lib.array_of(variable)[len(values) :]])
            variable.assign(values)


def _name(variable: typing.Any) -> str:
    """Returns a variable's name without the numbers that Keras gives the layers of a process in turn."""
    return re.sub(r"_\d+(?=[/_]|$)", "", str(getattr(variable, "path", variable.name)))


def _is_make_frozen(model: CTRModel) -> bool:
    return any(not block.trainable for _, block in model.make_blocks())


def gaps(state_dir: Folder, before_us: int) -> dict[str, float]:
    """Returns the share of each vocabulary's ids that no span has trained that went through an instant or beyond."""
    with np.load(pathlib.Path(state_dir) / _COUNTS) as file:
        found = {name.removeprefix(_ROWS): file[name][NUM_SPECIAL:] for name in file.files if name.startswith(_ROWS)}
    return {name: float((at < before_us).mean()) for name, at in found.items() if len(at)}


def shown_before(state_dir: Folder) -> dict[int, int]:
    """Returns how many rows of training showed an item, by item id."""
    with np.load(pathlib.Path(state_dir) / _COUNTS) as file:
        return dict(file[_SHOWN].tolist())
