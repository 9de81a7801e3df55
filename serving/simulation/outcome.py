"""What a simulated A/B found: rates of both arms and the gain of one over the other, with intervals over users."""

from __future__ import annotations

import math
import typing

import numpy as np
import pyarrow as pa
from rich import table as rich_table

from serving.simulation.arms import Shown
from tfmm.metrics import confidence
from tfmm.stages.folders import ID, MULTIMODAL

LABEL = "simulation: drawn shoppers, clicks and bids; no real user has seen any of it"
ALL, NEW = "all", "younger_than_24_h"
SLICES = {ALL: "all items", NEW: "items younger than 24 h"}
METRICS = {
    "ctr": "CTR: clicks per impression",
    "rpm": "RPM: revenue per 1,000 impressions",
    "roi": "ROI: worth of the clicks to advertisers over what they pay",
}


def table_of(shown: typing.Sequence[Shown]) -> pa.Table:
    """Returns impressions as a table."""
    return pa.table({name: [getattr(one, name) for one in shown] for name in Shown._fields})


def measure(
    impressions: typing.Mapping[str, pa.Table], users: typing.Sequence[int], seed: int = 0
) -> dict[str, typing.Any]:
    """Returns rates and gains by slice.

    Args:
        impressions: of the arms `id` and `multimodal`, see `table_of`.
        users: ids of all who may come.
        seed: of the draws of users.
    Returns:
        By slice: `impressions` and `share_of_impressions` by arm, and by metric the rate of each arm, and `gain`, of
        multimodal over ids alone, 0.1 for 10 % more; each with `value`, `low`, `high`, None where there is none.
    """
    places = np.unique(np.array(users))
    sums = {arm: _sums(found, places) for arm, found in impressions.items()}
    result: dict[str, typing.Any] = {}
    for name in SLICES:
        own = {arm: found[name] for arm, found in sums.items()}
        counts = {arm: int(found["shown"].sum()) for arm, found in own.items()}
        result[name] = {
            "impressions": counts,
            "share_of_impressions": {arm: counts[arm] / max(len(impressions[arm]), 1) for arm in counts},
        }
        for metric, parts in _RATIOS.items():
            rates = {arm: _told(confidence.ratio_interval(*parts(found), seed=seed)) for arm, found in own.items()}
            both = (*parts(own[MULTIMODAL]), *parts(own[ID]))
            result[name][metric] = {**rates, "gain": _told(confidence.gain_interval(*both, seed=seed))}
    return result


Sums = typing.Mapping[str, np.ndarray]
_RATIOS: dict[str, typing.Callable[[Sums], tuple[np.ndarray, np.ndarray]]] = {
    "ctr": lambda sums: (sums["clicks"], sums["shown"]),
    "rpm": lambda sums: (1000.0 * sums["paid"], sums["shown"]),
    "roi": lambda sums: (sums["worth"], sums["paid"]),
}


def _sums(found: pa.Table, users: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """Returns by slice, per user, float64 [users]: impressions, clicks, what was paid, what the clicks are worth."""
    columns = {name: found[name].to_numpy() for name in ("user_id", "is_new", "clicked", "price", "bid")}
    place, clicked = np.searchsorted(users, columns["user_id"]), columns["clicked"].astype(np.float64)
    of_row = {
        "shown": np.ones(len(place)), "clicks": clicked, "paid": clicked * columns["price"],
        "worth": clicked * columns["bid"],
    }  # fmt: skip
    chosen = {ALL: np.ones(len(place)), NEW: columns["is_new"].astype(np.float64)}
    return {
        name: {one: np.bincount(place, values * kept, len(users)) for one, values in of_row.items()}
        for name, kept in chosen.items()
    }


def _told(interval: confidence.Interval) -> dict[str, float | None]:
    values = {name: getattr(interval, name) for name in ("value", "low", "high")}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def in_words(found: typing.Mapping[str, typing.Any]) -> str:
    """Returns what the A/B says of items younger than 24 h, in a sentence.

    >>> in_words({NEW: {"ctr": {"gain": {"value": 0.3, "low": 0.1, "high": 0.5}}}})
    'CTR on items younger than 24 h: multimodal is above ids alone, +30.0 % [+10.0, +50.0] (simulation)'
    """
    gain = found[NEW]["ctr"]["gain"]
    if gain["low"] is None:
        return "CTR on items younger than 24 h: too few clicks to say anything (simulation)"
    how = "above" if gain["low"] > 0 else "below" if gain["high"] < 0 else "not told apart from"
    return f"CTR on items younger than 24 h: multimodal is {how} ids alone, {_percent(gain)} (simulation)"


def table(found: typing.Mapping[str, typing.Any]) -> rich_table.Table:
    """Returns what `measure` found as a table for a terminal."""
    result = rich_table.Table(
        "", "", "ids alone", "multimodal", "gain [95 %]", title=f"A/B, {LABEL}", title_justify="left"
    )
    for name, title in SLICES.items():
        own = found[name]
        shares = [f"{own['impressions'][arm]:,} ({own['share_of_impressions'][arm]:.1%})" for arm in (ID, MULTIMODAL)]
        result.add_row(title, "impressions", *shares, "")
        for metric in METRICS:
            rates = [_rate(own[metric][arm]["value"], metric) for arm in (ID, MULTIMODAL)]
            result.add_row("", metric.upper(), *rates, _percent(own[metric]["gain"]))
    return result


def _rate(value: float | None, metric: str) -> str:
    if value is None:
        return "-"
    return f"{value:.2%}" if metric == "ctr" else f"{value:.2f}"


def _percent(gain: typing.Mapping[str, float | None]) -> str:
    if any(value is None for value in gain.values()):
        return "-"
    value, low, high = (100.0 * typing.cast(float, gain[name]) for name in ("value", "low", "high"))
    return f"{value:+.1f} % [{low:+.1f}, {high:+.1f}]"
