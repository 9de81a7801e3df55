"""What the page shows, as one document of JSON: put together each second, for all who look."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import typing

from serving.page import cells, index, processes, watching
from serving.page.watching import Watch

_log = logging.getLogger("serving.page")
Document = dict[str, typing.Any]
Sections = typing.Callable[[], typing.Iterable[dict[str, typing.Any]]]
KINDS = ("server", "stream", "replicator", "trainer")  # of processes


class Board:
    """Asks what it was told of, and puts the newest answers together.

    Args:
        addresses: of processes' metrics, by kind of `KINDS`.
        index_url: the item index; None: it is not shown.
        further: watches of other things.
        sections: make the sections about those.
        every_s: seconds between two documents, and two looks at a process.
    """

    def __init__(
        self,
        addresses: typing.Mapping[str, typing.Sequence[str]],
        index_url: str | None = None,
        further: typing.Sequence[Watch[typing.Any]] = (),
        sections: typing.Sequence[Sections] = (),
        every_s: float = 1.0,
    ) -> None:
        self._pages = [watching.process(kind, one, every_s) for kind in KINDS for one in addresses.get(kind, ())]
        self._kinds = {page.kind for page in self._pages}
        self._index = None if index_url is None else index.watch(index_url)
        self._watches: list[Watch[typing.Any]] = [*self._pages, *([self._index] if self._index else []), *further]
        self._further, self._every_s = sections, every_s
        self._trends, self._started_at = watching.Trends(every_s), time.time()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="page document", daemon=True)
        self.document = self.assemble()

    def __enter__(self) -> Board:
        for thread in (*self._watches, self._thread):
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for watch in self._watches:
            watch.stop()
        with contextlib.suppress(RuntimeError):  # it was not started
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            try:
                self.document = self.assemble()
            except Exception as error:  # the page stands, and says that its numbers are old
                _log.exception("the page cannot be put together")
                state = cells.note(cells.BAD, f"the page itself fails, and its numbers are old: {error!r}")
                self.document = {**self.document, "state": state}

    def assemble(self) -> Document:
        """Returns the document as of now."""
        pages, trends, kinds = self._pages, self._trends, self._kinds
        sections = []
        if "server" in kinds:
            sections += [processes.requests(pages, trends), processes.versions(pages)]
        if "stream" in kinds:
            sections.append(processes.stream(pages, trends))
        replicas = processes.replicas(pages)
        if "replicator" in kinds or replicas["tables"]:  # a server that follows the index itself tells of it too
            sections.append(replicas)
        if self._index is not None:
            sections.append(index.section(self._index))
        if "trainer" in kinds:
            sections.append(processes.trainer(pages, trends))
        for further in self._further:
            sections += further()
        level = cells.worst(_levels(sections))
        text = {cells.OK: "all is well", cells.WARN: "something needs a look", cells.BAD: "something is wrong"}[level]
        if not sections:
            level, text = cells.WARN, "nothing is watched: name a process, see `tfmm page --help`"
        now = time.time()
        return {
            "time": now, "shown_at": cells.moment_text(now), "started_at": self._started_at, "every_s": self._every_s,
            "state": cells.note(level, text), "sections": sections,
        }  # fmt: skip


def _levels(value: typing.Any) -> typing.Iterator[str]:
    if isinstance(value, dict):
        if "level" in value:
            yield value["level"]
        for one in value.values():
            yield from _levels(one)
    elif isinstance(value, list):
        for one in value:
            yield from _levels(one)
