"""What stands on the page: sections of tables, whose cells have a value for programs and a text for people."""

from __future__ import annotations

import datetime
import math
import typing

from tfmm import cli_index

OK, WARN, BAD = "ok", "warn", "bad"  # levels; each is said in words too, since color alone says nothing to some
LEVELS = (OK, WARN, BAD)  # the worse, the later
_SIGNS = {OK: "✓", WARN: "▲", BAD: "✗"}
Cell = dict[str, typing.Any]


def known(value: float | None) -> float | None:
    """Returns a number that JSON can hold; None for one that is none."""
    return value if value is not None and math.isfinite(value) else None


def cell(value: typing.Any, text: str | None = None, level: str | None = None) -> Cell:
    """Returns a cell.

    Args:
        value: a value of JSON; None: unknown.
        text: what is read; None: the value as it is, an unknown one as a dash.
        level: of `LEVELS`, where it says how well something is; its sign is put before the text.
    """
    shown = ("–" if value is None else str(value)) if text is None else text
    if level is None:
        return {"value": value, "text": shown}
    return {"value": value, "text": f"{_SIGNS[level]} {shown}", "level": level}


def count(value: float | None, level: str | None = None) -> Cell:
    """Returns a cell with a whole number."""
    value = known(value)
    return cell(value, None if value is None else f"{value:,.0f}", level)


def rate(value: float | None) -> Cell:
    """Returns a cell with a number per second.

    >>> rate(3.25)["text"], rate(1250.0)["text"], rate(None)["text"]
    ('3.2/s', '1,250/s', '–')
    """
    value = known(value)
    return cell(value, None if value is None else f"{value:,.0f}/s" if value >= 100 else f"{value:.1f}/s")


def duration(seconds: float | None, level: str | None = None) -> Cell:
    """Returns a cell with a time in the unit that suits it.

    >>> [duration(one)["text"] for one in (0.0042, 0.25, 5.04, 4000, 200000)]
    ['4.2 ms', '250 ms', '5.0 s', '67 min', '56 h']
    """
    seconds = known(seconds)
    return cell(seconds, None if seconds is None else duration_text(seconds), level)


def duration_text(seconds: float) -> str:
    """Returns a time as people say it."""
    if seconds >= 1:
        return cli_index.duration(seconds)
    return f"{1e3 * seconds:.0f} ms" if seconds >= 0.01 or seconds <= 0 else f"{1e3 * seconds:.1f} ms"


def share(value: float | None, level: str | None = None) -> Cell:
    """Returns a cell with a share of 1 as percent."""
    value = known(value)
    return cell(value, None if value is None else f"{value:.2%}", level)


def number(value: float | None, digits: int = 4, level: str | None = None) -> Cell:
    """Returns a cell with a number of some digits."""
    value = known(value)
    return cell(value, None if value is None else f"{value:.{digits}f}", level)


def moment(time_s: float | None) -> Cell:
    """Returns a cell with a time of day, in UTC."""
    time_s = known(time_s)
    return cell(time_s, None if time_s is None else moment_text(time_s))


def moment_text(time_s: float) -> str:
    """Returns a time of day; of another day than today with its date.

    >>> moment_text(0.0)
    '1970-01-01 00:00:00 UTC'
    """
    found = datetime.datetime.fromtimestamp(time_s, datetime.timezone.utc)
    is_today = found.date() == datetime.datetime.now(datetime.timezone.utc).date()
    return found.strftime("%H:%M:%S UTC" if is_today else "%Y-%m-%d %H:%M:%S UTC")


def points(values: typing.Sequence[float | None]) -> Cell:
    """Returns a cell with a line of values over time, the newest last; what is not known is a gap."""
    values = [known(value) for value in values]
    seen = [value for value in values if value is not None]
    told = f"from {min(seen):.3g} to {max(seen):.3g}, now {seen[-1]:.3g}" if seen else "no values yet"
    shown = [None if one is None else float(f"{one:.4g}") for one in values]
    return {"value": shown, "text": told, "path": _path(values)}


def _path(values: typing.Sequence[float | None], width: float = 120.0, height: float = 24.0) -> str:
    """Returns the path of an SVG line that fills width x height; 0 lies at the bottom.

    >>> _path([0.0, None, 2.0, 1.0])
    'M0.0 24.0M80.0 0.0L120.0 12.0'
    """
    top = max((value for value in values if value is not None), default=0.0) or 1.0
    parts, is_gap = [], True
    for place, value in enumerate(values):
        if value is not None:
            x, y = place * width / max(len(values) - 1, 1), height - height * max(value, 0.0) / top
            parts.append(f"{'M' if is_gap else 'L'}{x:.1f} {y:.1f}")
        is_gap = value is None
    return "".join(parts)


def table(caption: str, columns: typing.Mapping[str, str], rows: typing.Sequence[typing.Mapping[str, Cell]]) -> Cell:
    """Returns a table.

    Args:
        caption: what it shows.
        columns: the title of each, by the name under which rows have its cell; the first is the row's header.
        rows: cells by name.
    """
    named = [{"name": name, "title": title} for name, title in columns.items()]
    return {"caption": caption, "columns": named, "rows": list(rows)}


def note(level: str, text: str) -> Cell:
    """Returns a line above the tables of a section."""
    return cell(text, text, level)


def section(
    name: str, title: str, tables: typing.Iterable[Cell] = (), notes: typing.Iterable[Cell] = ()
) -> dict[str, typing.Any]:
    """Returns a section; tables without rows are left out."""
    return {"name": name, "title": title, "notes": list(notes), "tables": [one for one in tables if one["rows"]]}


def worst(levels: typing.Iterable[str | None]) -> str:
    """Returns the worst of some levels; ok where there are none.

    >>> worst([None, "ok", "bad", "warn"]), worst([])
    ('bad', 'ok')
    """
    return max((level for level in levels if level), key=LEVELS.index, default=OK)
