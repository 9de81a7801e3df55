"""The last items that the index took: picture, neighbors, and score before and after the vector arrived."""

from __future__ import annotations

import collections
import contextlib
import functools
import json
import pathlib
import threading
import typing

import numpy as np
import pyarrow as pa

from serving.page import cells
from serving.page.scores import Scorer, Scores
from serving.page.watching import FIRST_LOOK_S, Watch
from tfmm import registered
from tfmm.data import as_known, schema
from tfmm.fingerprints import fingerprint
from tfmm.index import snapshot, store
from tfmm.retrieval import similar

COUNT, NEIGHBORS = 8, 4  # items shown, and neighbors of each by modality
EVERY_S = 1.0
_MET = 512  # events whose content is remembered
_BEHIND = 200  # events before the index's position that are read at the start
_IN_TURN = 1 << 40  # offsets below are numbers of events, and not made of times as Redis' are
_SAME = 1e-5  # of scores: serving computes in float32


class Content(typing.NamedTuple):
    """What people know an item by."""

    item_id: int | str
    title: str | None = None
    image: bytes | None = None


class Catalog:
    """Titles and pictures of the table `items`, read one at a time; the ids of all are held, 16 bytes each.

    Args:
        data_dir: Parquet tables.
    """

    def __init__(self, data_dir: pathlib.Path) -> None:
        self._groups = as_known.row_groups(data_dir, "items", "UTC")
        ids, places = [], []
        for number, (part, group, rows) in enumerate(self._groups):
            own = fingerprint(schema.read_part(part, "items", ["item_id"], group)["item_id"].to_pylist())
            kept = np.arange(len(own)) if rows is None else rows
            ids.append(own[kept])
            places.append(np.stack([np.full(len(kept), number), kept], 1).astype(np.int32))
        joined = np.concatenate(ids) if ids else np.zeros(0, np.int64)
        order = np.argsort(joined, kind="stable")
        self._ids = joined[order]
        self._places = np.concatenate(places)[order] if places else np.zeros((0, 2), np.int32)

    def __call__(self, item: int) -> Content | None:
        """Returns what the table has of an item, by its id in the index."""
        at = int(np.searchsorted(self._ids, item))
        if at == len(self._ids) or self._ids[at] != item:
            return None
        number, row = self._places[at].tolist()
        part, group, _ = self._groups[number]
        wanted = [name for name in Content._fields if name in part.schema.names]
        table: pa.Table = schema.read_part(part, "items", wanted, group)
        return Content(**{name: table[name][row].as_py() for name in wanted})


class Items:
    """Follows the index's newest changes.

    Args:
        index_url: the item index.
        events_url: of the stream's events, with titles and pictures; None: not read.
        data_dir: the catalog, with titles and pictures of older items; None: not read.
        scorer: asks a server for scores; None: none are shown.
    """

    def __init__(
        self,
        index_url: str,
        events_url: str | None = None,
        data_dir: pathlib.Path | None = None,
        scorer: Scorer | None = None,
    ) -> None:
        self._url, self._events_url, self._data_dir, self._scorer = index_url, events_url, data_dir, scorer
        self._catalog: Catalog | None = None
        self._opening = threading.Lock()  # of the catalog, which may take long
        self._met: collections.OrderedDict[int, Content] = collections.OrderedDict()
        self._lock = threading.Lock()  # of what is met: pictures are asked for by the page's readers
        self._positions: dict[str, int] = {}
        self._source: typing.Any = None
        self._followed: dict[tuple[str, str], int] = {}
        self._newest: dict[int, tuple[int, int]] = {}  # (sequence, event time in us) of items that have a row
        self._neighbors: dict[tuple[int, str], list[tuple[int, float]]] = {}
        self._compared_at = -1
        self._scores: dict[int, tuple[tuple[int, float], Scores]] = {}  # and the change and the user that they are of
        shown = registered.without_password(index_url)
        self.watches: list[Watch[typing.Any]] = [
            Watch("items of", shown, self._ask, EVERY_S, first_s=FIRST_LOOK_S),
            Watch("neighbors in", shown, self._compare, EVERY_S, first_s=FIRST_LOOK_S),
        ]  # fmt: skip
        if scorer is not None:
            score = functools.partial(self._score, scorer)
            self.watches.append(Watch("scores at", scorer.shown, score, EVERY_S, rest=1.0))  # it mostly waits

    def picture(self, item: str) -> bytes | None:
        """Returns the picture of an item, by its id in the index as text."""
        with contextlib.suppress(ValueError):
            found = self._content(int(item))
            return None if found is None else found.image
        return None

    def section(self) -> typing.Iterator[dict[str, typing.Any]]:
        """The section; to be asked by the board."""
        watched = self.watches[0]
        found = watched.value if watched.value is not None and not watched.is_silent else []
        modalities = sorted({modality for row in found for modality in row["neighbors"]})
        rows = []
        for row in found:
            own = {f"near_{modality}": {"value": None, **near} for modality, near in row["neighbors"].items()}
            rows.append({**row["cells"], **own})
        columns = {"item": "item", "arrived": "event of"}
        columns |= {f"near_{modality}": f"neighbors by {modality}" for modality in modalities}
        if self._scorer is not None:
            columns |= {"without": "score before its vector", "with": "after", "served": "as served", "state": "state"}
        notes = [note for watch in self.watches for note in watch.notes]
        caption = "The last items that the index took"
        if self._scorer is not None and self._scorer.user_text:
            caption += (
                f"; scores for {self._scorer.user_text}: before and after are score_vectors with the item's vectors "
                "hidden and with those of the index, as served is serving_default with those that the server has"
            )
        yield cells.section("items", "Last items", [cells.table(caption, columns, rows)], notes)

    def _ask(self) -> list[dict[str, typing.Any]]:
        with store.open_store(self._url, create=False) as index:
            self._follow(index)
            self._read_events(index)
        return [self._row(item) for item in self._newest]

    def _follow(self, index: store.IndexStore) -> None:
        """Adds items of the active encoders' newest changes, the newest first; what lies between is passed over."""
        result, followed, newest = dict(self._newest), dict(self._followed), index.newest_sequence()
        for modality, entry in index.active_encoders().items():
            key = modality, entry.encoder_version
            after = max(followed.get(key, 0), newest - 16 * COUNT, 0)
            while len(found := index.changes(*key, after)):
                columns = found.ids, found.scales, found.sequences, found.event_times_us
                for item, scale, sequence, time_us in zip(*(column.tolist() for column in columns)):
                    if scale > 0:
                        result[item] = max((sequence, time_us), result.get(item, (0, 0)))
                    else:
                        result.pop(item, None)
                after = int(found.sequences[-1])
            followed[key] = after
        latest = sorted(result, key=lambda item: -result[item][0])[:COUNT]
        self._newest, self._followed = {item: result[item] for item in latest}, followed  # both, or none

    def _read_events(self, index: store.IndexStore) -> None:
        """Remembers titles and pictures of the newest events."""
        if self._events_url is None:
            return
        from serving.streaming import event_log, events

        if self._source is None:
            is_file = event_log.source_class(self._events_url) is event_log.SQLiteEventLog
            if is_file and not (path := pathlib.Path(registered.sqlite_path(self._events_url))).exists():
                raise FileNotFoundError(f"{path} does not exist yet: a stream makes it")
            self._source = event_log.open_source(self._events_url)
        for part in event_log.parts_of(self._source):
            if part.name not in self._positions:
                position = index.position(part.name)
                self._positions[part.name] = max(0, position - _BEHIND) if position < _IN_TURN else position
            while batch := part.read(self._positions[part.name], _BEHIND):
                payloads = [event.payload for event in batch]
                for payload, parsed in zip(payloads, events.parse_events(payloads, index.id_types())):
                    if isinstance(parsed, events.NewItem) and not parsed.is_withdrawn:
                        self._remember(parsed.item, json.loads(payload.decode("utf-8-sig"))["item_id"])
                self._positions[part.name] = batch[-1].offset

    def _remember(self, item: typing.Any, item_id: int | str) -> None:
        title, image = item.contents.get("text"), item.contents.get("image")
        before = self._content(item.item_id) or Content(item_id)
        text = title if isinstance(title, str) else before.title
        self._keep(item.item_id, Content(item_id, text, image if isinstance(image, bytes) else before.image))

    def _keep(self, item: int, content: Content) -> None:
        with self._lock:
            self._met[item] = content
            self._met.move_to_end(item)
            if len(self._met) > _MET:
                self._met.popitem(last=False)

    def _content(self, item: int) -> Content | None:
        if (met := self._met.get(item)) is not None or self._data_dir is None:
            return met
        with self._opening:
            if self._catalog is None:
                self._catalog = Catalog(self._data_dir)
        if (found := self._catalog(item)) is not None:
            self._keep(item, found)
        return found

    def _card(self, item: int, cosine: float | None = None) -> cells.Cell:
        found = self._content(item)
        text = (found and found.title) or f"item {found.item_id if found else item}"
        near = "" if cosine is None else f", {cosine:.3f}"
        card = cells.cell(found.item_id if found else item, f"{text}{near}")
        return {**card, "image": f"/picture/{item}"} if found and found.image else card

    def _row(self, item: int) -> dict[str, typing.Any]:
        _, time_us = self._newest[item]
        told = {"item": self._card(item), "arrived": cells.moment(time_us / 1e6 if time_us > 1 else None)}
        if item in self._scores:
            _, scores = self._scores[item]
            told |= {name.strip("_"): cells.number(value, 5) for name, value in scores._asdict().items()}
            if abs(scores.served - scores.with_) < _SAME:
                told["state"] = cells.cell("served with its vector", level=cells.OK)
            else:
                is_without = abs(scores.served - scores.without) < _SAME
                text = "not in the server yet" if is_without else "the server has another vector of it"
                told["state"] = cells.cell(text, level=cells.WARN)
        near = {
            modality: {"list": [self._card(other, cosine) for other, cosine in found_near]}
            for (own, modality), found_near in self._neighbors.items() if own == item
        }  # fmt: skip
        return {"cells": told, "neighbors": near}

    def _score(self, scorer: Scorer) -> None:
        """Asks for scores of the items that are shown, until the server has their vectors; and again now and then."""
        scorer.refresh()
        shown = dict(self._newest)
        self._scores = {item: own for item, own in self._scores.items() if item in shown}
        for item, (sequence, _) in shown.items():
            of, scores = self._scores.get(item, (None, None))
            if of == (sequence, scorer.chosen_at) and scores and abs(scores.served - scores.with_) < _SAME:
                continue
            found = self._content(item)
            own = scorer.scores(found.item_id if found else item)
            self._scores = {**self._scores, item: ((sequence, scorer.chosen_at), own)}

    def _compare(self) -> None:
        """Finds the neighbors of the items that are shown, by one pass over each table, as `tfmm similar` does."""
        shown = set(self._newest)
        with store.open_store(self._url, create=False) as index:
            newest = index.newest_sequence()
            if newest == self._compared_at and shown <= {item for item, _ in self._neighbors}:
                return
            tables = snapshot.take_snapshot(index)
        found = {}
        for modality in tables.modalities:
            for item in shown:
                with contextlib.suppress(ValueError):  # it has no vector of this modality
                    others, cosines = similar.similar(tables[modality], item, NEIGHBORS)
                    found[item, modality] = list(zip(others.tolist(), cosines.tolist()))
        self._neighbors, self._compared_at = found, newest
