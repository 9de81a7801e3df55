"""A source of somebody's own: a text file, one event a line, that only grows."""

import pathlib

from serving.streaming import event_log


class LineSource:
    def __init__(self, url):
        self._url = url

    @property
    def name(self):
        return self._url

    def read(self, after, limit):
        path = pathlib.Path(self._url.removeprefix("lines://"))
        lines = path.read_bytes().splitlines() if path.exists() else []
        return [event_log.Event(number, line) for number, line in enumerate(lines, 1) if number > after][:limit]
