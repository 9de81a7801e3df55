"""The click model in training: blocks of rows in, its state after them; new ids join its vocabularies."""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import shutil
import typing

import numpy as np
import tensorflow as tf

from serving.nearline.rows import TIME, Columns
from tfmm import artifacts, preprocessing
from tfmm.config import CTRConfig
from tfmm.ctr import state as state_lib
from tfmm.ctr.continuing import continue_over, step_of
from tfmm.features import LABEL, OUT_OF_VOCABULARY, FeatureSet
from tfmm.index import item_vectors
from tfmm.index.live_vectors import LiveVectors
from tfmm.stages.folders import STATE
from tfmm.training import examples as examples_lib
from tfmm.training import loop, sources

MAX_NEW_IDS = 1_000_000  # of a vocabulary, that are counted until they join it
_ROOM = 0.25  # of tables, for new ids, so that the step that is compiled goes on
_STATE = "state"  # of a checkpoint, and of a vocabulary that has grown


def going_on(config: CTRConfig, block_rows: int) -> CTRConfig:
    """Returns the settings of a training without an end: a block is a segment, the rate does not fall."""
    return dataclasses.replace(config, epochs=1, block_rows=block_rows, segments=1, decay_from=1.0)


class Learner:
    """A state that goes on over blocks of rows.

    Args:
        state_dir: what it begins from, see `ctr.state`.
        config: as `going_on` gives it.
        tables: item vectors by modality, which follow the index.
        work_dir: for what it writes in passing; emptied.
        training: facts of the state's training, see `ctr.lineage`; they grow with it.
        unknown: by vocabulary, how often ids were seen that it lacks.
    """

    def __init__(
        self,
        state_dir: pathlib.Path,
        config: CTRConfig,
        tables: typing.Mapping[str, LiveVectors],
        work_dir: pathlib.Path,
        training: typing.Mapping[str, typing.Any],
        unknown: typing.Mapping[str, typing.Mapping[int, int]],
    ):
        shutil.rmtree(work_dir, ignore_errors=True)
        work_dir.mkdir(parents=True)
        self._config, self._tables, self._work_dir = config, tables, work_dir
        manifest = state_lib.read_manifest(state_dir)
        self._seen, self.training = manifest.get("seen", {}), dict(training)
        self.unknown = {name: collections.Counter(found) for name, found in unknown.items()}
        self._vocabulary_dir = work_dir / state_lib.VOCABULARY
        shutil.copytree(state_dir / state_lib.VOCABULARY, self._vocabulary_dir)
        self._load(state_dir)

    @property
    def feature_set(self) -> FeatureSet:
        return self.state.model.feature_set

    @property
    def rows(self) -> int:
        """How many it was trained over, in the model's life."""
        return int(self.training["rows"])

    def _load(self, state_dir: pathlib.Path) -> None:
        self.state = state_lib.load(state_dir, self._config, self._vocabulary_dir, self._tables, room=_ROOM)
        self._preprocess = preprocessing.load(self.feature_set, self._vocabulary_dir)
        self._step: loop.StepFn | None = None

    def refresh(self) -> None:
        """Takes the item vectors that the index has by now."""
        for table in self._tables.values():
            if table.refresh():
                self._step = None

    def train(self, block: Columns) -> dict[str, float]:
        """Trains over a block; returns its losses."""
        if self._step is None:
            self._step = loop.compiled(step_of(self.state), tf.distribute.get_strategy())
        columns = {column.name: block[column.name] for column in self.feature_set.columns}
        inputs = {name: _narrow(v.numpy()) for name, v in self._preprocess(_tensors(columns)).items()}
        slots = item_vectors.add_slots(columns, self._tables, self.feature_set)
        slots = {name: values for name, values in slots.items() if name not in columns}
        rows = sources.InMemory({**inputs, **slots, LABEL: block[LABEL].astype(np.int32)})
        self.state, (line,) = continue_over(self.state, self._config, rows, step=self._step)
        self._note(block, columns, inputs)
        return line

    def _note(self, block: Columns, columns: Columns, inputs: Columns) -> None:
        """Notes what was trained: through when, which rows of tables, which items, which ids are new."""
        times, items = block[TIME], block["item_id"]
        last = int(times[-1])
        through, before = max(last, self._through), self.training["trained_through"]
        at_through = int((times == through).sum())
        if through == before["timestamp"]:
            at_through += before["row"]
        span = self.training["span"]
        first = last if span["first"] is None else span["first"]
        self.training |= {
            "span": {
                **span,
                "rows": span["rows"] + len(times),
                "first": min(first, int(times.min())),
                "last": through,
            },
            "trained_through": {"timestamp": through, "row": at_through},
            "rows": self.training["rows"] + len(times),
            "newest": max(self.training["newest"], int(times.max())),
            "examples": artifacts.fingerprint(
                self.training["examples"], examples_lib.digest({TIME: times, "item_id": items})
            ),
        }
        for column in self.feature_set.columns:
            feature = column.feature
            if feature.has_vocabulary:
                found = inputs[column.input]
                if feature.embedding in self.state.trained_at:
                    at = self.state.trained_at[feature.embedding]
                    touched = np.unique(found)
                    at[touched] = np.maximum(at[touched], through)
                new, counts = np.unique(columns[column.name][found == OUT_OF_VOCABULARY], return_counts=True)
                self._count(feature.embedding, dict(zip(new.tolist(), counts.tolist())))
        for item, count in zip(*(part.tolist() for part in np.unique(items, return_counts=True))):
            self.state.shown[item] = self.state.shown.get(item, 0) + count

    @property
    def _through(self) -> int:
        return int(self.training["trained_through"]["timestamp"])

    def _count(self, vocabulary: str, found: dict[int, int]) -> None:
        counts = self.unknown.setdefault(vocabulary, collections.Counter())
        counts.update(found)
        if len(counts) > MAX_NEW_IDS:  # those that were seen least are forgotten, the largest ids of them first
            kept = sorted(counts.items(), key=lambda one: (-one[1], one[0]))[: MAX_NEW_IDS // 2]
            self.unknown[vocabulary] = collections.Counter(dict(kept))

    def grow(self) -> int:
        """Lets the ids that were seen often enough join the vocabularies; returns their number."""
        least = {f.embedding: f.min_count for f in self.feature_set.features if f.has_vocabulary}
        new = {
            name: sorted((i for i, n in counts.items() if n >= max(least[name], 1)), key=lambda i: (-counts[i], i))
            for name, counts in self.unknown.items()
        }
        if not any(new.values()):
            return 0
        ids = {name: np.array(new.get(name, []), np.int64) for name in self.feature_set.vocabularies}
        grown = self._work_dir / f"{state_lib.VOCABULARY}_grown"
        preprocessing.write_extended(self.feature_set, self._vocabulary_dir, ids, grown)
        has_room = self.state.grow(ids)
        if not has_room:
            self.save_state(self._work_dir / _STATE)
        shutil.rmtree(self._vocabulary_dir)
        grown.rename(self._vocabulary_dir)
        if has_room:
            self._preprocess = preprocessing.load(self.feature_set, self._vocabulary_dir)
        else:
            self._load(self._work_dir / _STATE)
            shutil.rmtree(self._work_dir / _STATE)
        for name, found in new.items():
            table = self.state.trained_at.get(name)
            if table is not None:
                self.state.trained_at[name] = np.append(table, np.full(len(found), self._through))
            for one in found:
                del self.unknown[name][one]
        return sum(map(len, new.values()))

    def save_state(self, folder: pathlib.Path) -> None:
        """Writes the state, to go on from."""
        state_lib.save(self.state, folder, self._vocabulary_dir, training=self.training, seen=self._seen)

    def save_model(self, folder: pathlib.Path) -> None:
        """Writes the state of the model as it stands, where `train_click_model` has it."""
        self.save_state(folder / STATE)


def _tensors(columns: Columns) -> dict[str, tf.Tensor]:
    return {name: tf.constant(values) for name, values in columns.items()}


def _narrow(values: np.ndarray) -> np.ndarray:
    return values.astype(np.int32) if values.dtype == np.int64 else values
