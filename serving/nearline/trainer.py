"""The near-line trainer's loop: records in, blocks of rows trained, candidates frozen, judged and pushed."""

from __future__ import annotations

import dataclasses
import functools
import logging
import pathlib
import threading
import time
import typing

import keras
import numpy as np

from serving.nearline import checkpoints, records
from serving.nearline import metrics as metrics_lib
from serving.nearline.candidates import FOLDER, Candidates
from serving.nearline.joining import SECOND_US, Join, Rules
from serving.nearline.learner import Learner, going_on
from serving.nearline.logs_of_records import Logs
from serving.nearline.rows import AT, TIME, Buffer, Columns, Reader, concatenate
from serving.streaming.events import EventError
from serving.streaming.letters import LetterLog
from tfmm import config as config_lib
from tfmm import full_disk
from tfmm.config import RunConfig
from tfmm.ctr import state as state_lib
from tfmm.export import saved_model
from tfmm.features import FeatureSet
from tfmm.index import item_features, store
from tfmm.index.live_vectors import LiveFeatures, LiveVectors
from tfmm.stages.folders import MULTIMODAL, PRE_RANKING, SERVING, STATE
from tfmm.training import devices

MAX_UNSERVED = 1_000_000  # rows whose delay is measured, when they are pushed at last
_IDLE_S = 0.02
_SHOW_EVERY_S = 1.0
_AGAIN_S = 1.0  # after a failure
_log = logging.getLogger("serving.nearline")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Where the near-line trainer reads and writes, and when it does what."""

    logs: tuple[str, ...]  # of requests and of labels, see `event_log.open_source`
    models_dir: pathlib.Path  # as `tfmm train` wrote it, or one click model of it
    index_url: str
    work_dir: pathlib.Path
    serving_dir: pathlib.Path  # the folder of versions
    letters_url: str
    window_s: float = 300.0
    lateness_s: float = 1.0
    max_waiting: int = 100_000
    slice_rows: int = 5_000  # M: rows after which a candidate is judged
    slice_minutes: float = 10.0  # N: or minutes, by the impressions' own time
    judged_rows: int = 0  # of a slice's rows, the newest that the candidate is judged on; 0: all
    block_s: float = 10.0  # a block of fewer rows than a batch is trained after so long, by the same time
    checkpoint_s: float = 10.0
    keep_versions: int = 5  # that it pushed itself; 0: all
    server: str = ""  # host:port of a server's gRPC: it is asked when it serves what was pushed
    model_name: str = "tfmm"
    log_format: str = "text"
    poll_s: float = 0.05

    def __post_init__(self) -> None:
        faults = [] if self.logs else ["`logs` must name at least one log of requests and labels"]
        for name in ("window_s", "max_waiting", "slice_rows", "slice_minutes", "block_s"):
            if getattr(self, name) <= 0:
                faults.append(f"`{name}` must be positive, not {getattr(self, name)}")
        for name in ("lateness_s", "checkpoint_s", "keep_versions", "judged_rows"):
            if getattr(self, name) < 0:
                faults.append(f"`{name}` must not be negative, not {getattr(self, name)}")
        if self.judged_rows > self.slice_rows:
            faults.append(f"`judged_rows` must be at most `slice_rows`, not {self.judged_rows} of {self.slice_rows}")
        if faults:
            raise ValueError("The near-line trainer cannot run so:\n- " + "\n- ".join(faults))

    @property
    def model_dir(self) -> pathlib.Path:
        """The folder of the click model that it begins from."""
        inside = self.models_dir / MULTIMODAL
        return inside if inside.is_dir() else self.models_dir


@dataclasses.dataclass
class Cycle:
    """How far the way to the next verdict is: rows since the last one, and the candidate that waits for it."""

    number: int = 0  # of the candidate that is frozen, or was last
    is_frozen: bool = False
    rows: int = 0
    began_us: int = 0  # time of its first row; 0: it has none


class Stopped(Exception):
    """It was told to stop while rows were on their way into the model: the checkpoint before stays."""


class Trainer:
    """Goes on from a click model over records as they come, until it is told to stop.

    Args:
        run: the model's own.
        settings: where and when.
    Raises:
        FileNotFoundError: there is no model with a state, or no index.
        ValueError: what speaks against going on, all at once.
    """

    def __init__(self, run: RunConfig, settings: Settings):
        self._run, self._settings = run, settings
        self.metrics = metrics_lib.Metrics()
        origin = state_lib.read_manifest(settings.model_dir / STATE)
        id_types = saved_model.read_manifest(settings.model_dir / SERVING)["id_types"]
        self._index = store.open_store(settings.index_url, create=False)
        feature_set = config_lib.as_config(FeatureSet, origin["model"]["feature_set"])
        encoders = origin["training"]["encoder_versions"]
        _verify(run, feature_set, encoders, self._index)
        self._work_dir = settings.work_dir / origin["id"]  # another model begins anew
        self._checkpoints = checkpoints.Checkpoints(self._work_dir / "checkpoints", settings.checkpoint_s)
        self._rules = Rules(
            feature_set.label.column, round(settings.window_s * SECOND_US), round(settings.lateness_s * SECOND_US),
            settings.max_waiting, origin["training"]["trained_through"]["timestamp"],
            tuple(column.feature.column for column in feature_set.columns if not column.is_served),
        )  # fmt: skip
        self._join, self._cycle = Join(self._rules), Cycle()
        facts: dict[str, typing.Any] = {"positions": {}, "training": _beginning(origin), "unknown": {}}
        rows: dict[str, Columns] = {}
        start = settings.model_dir / STATE
        if (newest := self._checkpoints.newest()) is not None:
            facts, rows = checkpoints.read(newest)
            start = newest / checkpoints.STATE
            self._join.restore(facts["join"])
            self._cycle = Cycle(**facts["cycle"])
        keras.utils.set_random_seed(run.ctr.seed)
        tables = {name: LiveVectors(self._index, name, version) for name, version in encoders.items()}
        self._features = LiveFeatures(self._index, item_features.Layout.of(feature_set, id_types))
        self._reader = Reader(feature_set, id_types, self._features)
        unknown = {name: dict(found) for name, found in facts["unknown"].items()}
        config = going_on(run.ctr, run.ctr.batch_size)
        self.learner = Learner(start, config, tables, self._work_dir / "passing", facts["training"], unknown)
        self._buffer = Buffer(rows.get("waiting", {}))
        self._slice = [rows["slice"]] if "slice" in rows else []
        self._unserved = rows.get("unserved", {"time_us": np.zeros(0, np.int64), "number": np.zeros(0, np.int64)})
        order = {
            "head": saved_model.kept_head(settings.model_dir / SERVING, self._work_dir / PRE_RANKING),
            "index_url": settings.index_url, "serving_dir": str(settings.serving_dir), "encoder_versions": encoders,
            "id_types": id_types, "keep_versions": settings.keep_versions, "server": settings.server,
            "model_name": settings.model_name, "log_format": settings.log_format,
        }  # fmt: skip
        self._candidates = Candidates(self._work_dir / FOLDER, run, order)
        self._letters = LetterLog(settings.letters_url)
        time_us = functools.partial(records.time_of, label=self._rules.label)
        self._logs = Logs(settings.logs, facts["positions"], settings.poll_s, time_us)
        self._shown_at = 0.0
        _log.info(
            "going on from %s, %d rows trained, %d positions", start, self.learner.rows, len(facts["positions"])
        )

    def run(self, stop: threading.Event) -> None:
        """Works until `stop` is set, then writes a checkpoint; none where it was set while the index was away."""
        try:
            while not stop.is_set():
                self._work(stop)
        except Stopped as said:
            _log.warning("%s", said)
            return
        self._save()

    def _work(self, stop: threading.Event) -> None:
        is_idle = not self._take_records(stop)
        is_idle &= not self._train_blocks(stop)
        self._hear_verdict()
        if self._checkpoints.is_due():
            self._save()
        if time.monotonic() - self._shown_at > _SHOW_EVERY_S:
            self._shown_at = time.monotonic()
            self.metrics.show(self._join, self._logs.positions)
        if is_idle:
            stop.wait(_IDLE_S)

    def close(self) -> None:
        """Ends the process that judges, and connections."""
        self._candidates.close()
        self._logs.close()
        self._letters.close()
        self._index.close()

    def _take_records(self, stop: threading.Event) -> bool:
        """Takes what the logs have; returns whether there was anything."""
        found = self._logs.read(self._join.newest_us, self._join.room)
        if found is not None:
            name, events = found
            for event in events:
                self._join.add(name, event)
        watermark_us = self._logs.watermark_us(self._join.newest_us, self._rules.lateness_us)
        left = self._join.advance(watermark_us)
        if left:
            self._try_index(self._features.refresh, stop)
        for waiting in left:
            if waiting.labels:
                try:
                    self._buffer.add(self._reader.read(waiting))
                except EventError as error:
                    self._join.refuse(waiting.part, waiting.offset, str(error), waiting.payload)
        return found is not None

    def _train_blocks(self, stop: threading.Event) -> bool:
        """Trains over the blocks that are whole; returns whether there was one."""
        trained, block_us = False, round(self._settings.block_s * SECOND_US)
        while not stop.is_set():
            block = self._buffer.take(self._join.frontier_us, self._run.ctr.batch_size, block_us)
            if block is None:
                break
            started = time.monotonic()
            self._try_index(self.learner.refresh, stop)
            self.learner.train(block)
            self.metrics.training_s.inc(time.monotonic() - started)
            self.metrics.rows.inc(len(block[AT]))
            now_us = time.time_ns() // 1000
            for at_us in block[TIME].tolist():
                self.metrics.trained_delay.observe((now_us - at_us) / SECOND_US)
            trained = True
            self._end_block(block)
        return trained

    def _try_index(self, work: typing.Callable[[], object], stop: threading.Event) -> None:
        """Does what reads the index; while that is away it waits, since rows without vectors are other rows.

        Raises:
            Stopped: `stop` was set meanwhile.
        """
        while True:
            try:
                work()
                return
            except Exception as error:
                if not self._index.is_failing(error):
                    raise
                _log.warning("%s cannot be read, and is tried again: %s", self._settings.index_url, error)
                if stop.wait(_AGAIN_S):
                    raise Stopped(f"{self._settings.index_url} is away: ended at the last checkpoint") from error

    def _end_block(self, block: Columns) -> None:
        """Counts a block that was trained; at the end of a slice its candidate is judged and the next one begins."""
        cycle, settings = self._cycle, self._settings
        first_judged = settings.slice_rows - (settings.judged_rows or settings.slice_rows)
        was_before = cycle.rows < first_judged
        cycle.rows += len(block[AT])
        cycle.began_us = cycle.began_us or int(block[AT][0])
        numbers = np.full(len(block[TIME]), cycle.number + 1, np.int64)
        for name, values in (("time_us", block[TIME]), ("number", numbers)):
            self._unserved[name] = np.concatenate([self._unserved[name], values])[-MAX_UNSERVED:]
        if cycle.is_frozen:
            self._slice.append(block)
        elif was_before and cycle.rows >= first_judged:
            self._freeze()
        ends_us = cycle.began_us + round(settings.slice_minutes * 60 * SECOND_US)
        if cycle.rows < settings.slice_rows and int(block[AT][-1]) < ends_us:
            return
        if is_judged := bool(self._slice):
            rows = concatenate(self._slice)
            _if_there_is_room("the candidate is not judged", lambda: self._candidates.submit(cycle.number, rows))
        self._cycle = Cycle(cycle.number, cycle.is_frozen and not is_judged)
        self._slice = []
        if new_ids := self.learner.grow():
            self.metrics.new_ids.inc(new_ids)
            _log.info("%d new ids joined the vocabularies", new_ids)
        if not self._cycle.is_frozen and not (is_judged and first_judged):
            self._freeze()

    def _freeze(self) -> None:
        """Keeps the model as it stands, to be judged on rows that it is not trained on."""
        self._cycle.number, self._cycle.is_frozen = self._cycle.number + 1, True
        number, times_s = self._cycle.number, self._unserved["time_us"] / 1e6
        _if_there_is_room(
            "no candidate is kept", lambda: self._candidates.freeze(number, self.learner.save_model, times_s)
        )

    def _hear_verdict(self) -> None:
        """Says what became of a candidate."""
        heard = self._candidates.poll()
        if heard is None:
            return
        number, result, times_s = heard
        for line in result.get("said", ()):
            _log.info("candidate %d: %s", number, line)
        self._candidates.clean()
        self.metrics.judged(number, result)
        if not result["passed"]:
            _log.warning("candidate %d is not pushed, training goes on: %s", number, "; ".join(result["reasons"]))
            return
        known = self._unserved["number"] > number
        self._unserved = {name: values[known] for name, values in self._unserved.items()}
        at = result["served_at"] or result["pushed_at"]
        delays = at - times_s
        for delay in delays.tolist():
            self.metrics.served_delay.observe(delay)
        _log.info("%s", push_line(number, result, delays))

    def _save(self) -> None:
        """Writes a checkpoint; letters first, so that one that was read is told at least once."""
        self._letters.send(self._join.letters)
        self._join.letters = []
        facts = {
            "positions": self._logs.positions,
            "join": self._join.state(),
            "training": self.learner.training,
            "unknown": {name: list(counts.items()) for name, counts in self.learner.unknown.items()},
            "cycle": dataclasses.asdict(self._cycle),
        }
        rows = {"waiting": self._buffer.columns, "slice": concatenate(self._slice) if self._slice else {}}
        rows["unserved"] = self._unserved
        _if_there_is_room(
            "no checkpoint, the one before stays", lambda: self._checkpoints.save(self.learner.save_state, facts, rows)
        )


def _if_there_is_room(otherwise: str, work: typing.Callable[[], None]) -> None:
    """Writes something that training can go on without, such as on a full disk."""
    try:
        work()
    except OSError as error:
        _log.error("%s: %s", otherwise, full_disk.told(error) or error)


def push_line(number: int, result: typing.Mapping[str, typing.Any], delays: np.ndarray) -> str:
    """Returns the line of a push: what is served now, and how long impressions waited for it.

    >>> push_line(3, {"version": "models/17", "rows": 500, "served_at": 5.0}, np.array([1.0, 2.0, 9.0]))
    'candidate 3 is pushed as models/17, judged on 500 rows; 3 impressions -> served: p50 2.0 s, p99 8.9 s, max 9.0 s'
    """
    said = f"candidate {number} is pushed as {result['version']}, judged on {result['rows']:,} rows"
    if not len(delays):
        return said + "; no impression is new in it"
    p50, p99 = np.percentile(delays, [50, 99])
    to = "pushed" if result["served_at"] is None else "served"
    return f"{said}; {len(delays):,} impressions -> {to}: p50 {p50:.1f} s, p99 {p99:.1f} s, max {delays.max():.1f} s"


def _beginning(origin: typing.Mapping[str, typing.Any]) -> dict[str, typing.Any]:
    """Returns the facts of a training that goes on from a state, before its first row."""
    before = origin["training"]
    span = {"number": before["span"]["number"] + 1, "rows": 0, "first": None, "last": None}
    return {**before, "parent": origin["id"], "span": span, "lag": {"rows": 0, "seconds": 0.0}}


def _verify(
    run: RunConfig, feature_set: FeatureSet, encoders: typing.Mapping[str, str], index: store.IndexStore
) -> None:
    """Raises a ValueError with all that speaks against going on."""
    faults, label = [], feature_set.label
    if lacking := [f"{name} {version}" for name, version in encoders.items() if not index.has_encoder(name, version)]:
        known = ", ".join(f"{e.modality} {e.encoder_version}" for e in index.encoders()) or "none"
        faults.append(
            f"the index must hold vectors of the model's encoders. Received: no {', '.join(lacking)}, but {known}. "
            "Embed the catalog with those encoders, or name a model that was trained with these"
        )
    if further := sorted(set(label.sources.values()) - {label.column}):
        faults.append(f"the label must need no further columns, which no record has. Received: {', '.join(further)}")
    if run.training.strategy != config_lib.TrainingConfig().strategy:
        faults.append(f"`training.strategy` must be 'one'. Received: {run.training.strategy!r}")
    if faults:
        raise ValueError("The model cannot be gone on from near-line:\n- " + "\n- ".join(faults))


@devices.placed("`ctr.batch_size`, `data.max_behaviors`, or `dim` and `num_buckets` of features")
def run(
    run_config: RunConfig,
    settings: Settings,
    stop: threading.Event,
    training: config_lib.TrainingConfig = config_lib.DEFAULT_TRAINING,
    on_start: typing.Callable[[Trainer], typing.ContextManager[object]] | None = None,
) -> None:
    """Runs a `Trainer` until `stop` is set.

    Args:
        run_config: the model's own.
        settings: where and when.
        stop: to be set.
        training: on what device, and how exactly: `run_config.training`.
        on_start: is entered while it runs, such as a page of metrics.
    """
    trainer = Trainer(run_config, settings)
    try:
        if on_start is None:
            trainer.run(stop)
        else:
            with on_start(trainer):
                trainer.run(stop)
    finally:
        trainer.close()
