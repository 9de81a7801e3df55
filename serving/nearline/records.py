"""What the near-line trainer reads: records and events as `tfmm.data.served` knows them, of one log or of several."""

from __future__ import annotations

import time

from serving.streaming.events import EventError
from tfmm.data import served
from tfmm.data.served import Event, Served

MAX_AHEAD_S = 300.0  # of another machine's clock before ours


def parse(payload: bytes, label: str) -> Served | Event | None:
    """Reads a record or an event, whichever it is. None: it says that nothing was shown or clicked.

    Args:
        payload: JSON.
        label: the declared column of the label, under which an event says it.
    Raises:
        EventError: it cannot be used, and why, as training says it.

    >>> parse(b'{"request_id": "a", "item_id": 7, "time": 1709596800.5, "click": true}', "click")
    Event(request_id='a', item_id=7, time=1709596800.5, is_click=True, values={})
    """
    try:
        values = served.loaded(payload)
        if not served.is_request(values):
            return served.event(values, label)
        record = served.served(values)
        served.refuse_sample(record)
    except ValueError as error:
        raise EventError(str(error)) from error
    return record


def refuse_ahead(record: Served | Event) -> None:
    """Raises an EventError for a time ahead of ours, which would end every window."""
    if record.time > time.time() + MAX_AHEAD_S:
        raise EventError(f"`time` must be seconds since 1970, and at most {MAX_AHEAD_S:.0f} s ahead, not {record.time}")


def time_us(record: Served | Event) -> int:
    """Returns a record's time in microseconds since 1970."""
    return round(record.time * 1e6)


def time_of(payload: bytes, label: str) -> int:
    """Returns the time of a record that can be used, as `time_us`; 0 for any other."""
    try:
        record = parse(payload, label)
        if record is None:
            return 0
        refuse_ahead(record)
    except EventError:
        return 0
    return time_us(record)
