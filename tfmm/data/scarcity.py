"""How much of the logs teaches an encoder, and why so little where it is little."""

from __future__ import annotations

import datetime
import typing

from tfmm import metrics

FEW_TRAIN, FEW_HELDOUT = 500, 100  # pairs: below, an encoder learns little, or Acc@N tells little
LATE_SHARE = 0.01  # of the train impressions that may come after the eval split began, where `split` is a cut in time


class LogCounts(typing.NamedTuple):
    """The log that pairs come from."""

    log: str  # the table
    log_rows: int
    log_rows_before_eval: int  # known before the first impression of the eval split: the only ones that teach
    eval_start_us: int  # microseconds since 1970
    late_train_share: float  # of the train impressions, shown after the eval split began


def warning(modality: str, source: str, counts: typing.Mapping[str, int], log: LogCounts) -> str | None:
    """Returns sentences where pairs are few, or rows are lost since `split` is no cut in time; else None.

    Args:
        modality: whose encoder learns from the pairs.
        source: of the pairs.
        counts: pairs, `train` and `heldout`, and `heldout_items`, that the latter are of.
        log: what they come from.

    >>> log = LogCounts("behaviors", 48_580, 15, 0, 0.97)
    >>> counts = {"train": 7, "heldout": 2, "heldout_items": 2}
    >>> warning("text", "co-click", counts, log)  # doctest: +NORMALIZE_WHITESPACE
    'Few pairs teach the text encoder: 7, by co-click. Few pairs are held out from the text encoder: 2, by co-click, so
    that Acc@N tells little. Those held out from the text encoder are of 2 items: of fewer than 30 Acc@N has no
    interval. Of 48,580 rows of behaviors 15 are from before the eval split, which begins at 1970-01-01 00:00 UTC:
    `split` is no cut in time, 97 % of the train impressions are later. Cut `split` by time, or leave the column out.'
    >>> enough = {"train": 5_000, "heldout": 500, "heldout_items": 100}
    >>> warning("text", "search", enough, LogCounts("behaviors", 9_000, 8_000, 0, 0.0))
    """
    said = []
    if counts["train"] < FEW_TRAIN:
        said.append(f"Few pairs teach the {modality} encoder: {counts['train']:,}, by {source}.")
    if counts["heldout"] < FEW_HELDOUT:
        few = f"{counts['heldout']:,}, by {source}, so that Acc@N tells little."
        said.append(f"Few pairs are held out from the {modality} encoder: {few}")
    if counts["heldout_items"] < metrics.MIN_GROUPS:
        items = f"{counts['heldout_items']:,} items: of fewer than {metrics.MIN_GROUPS} Acc@N has no interval."
        said.append(f"Those held out from the {modality} encoder are of {items}")
    is_mixed = log.late_train_share > LATE_SHARE
    if 2 * log.log_rows_before_eval >= log.log_rows or not (said or is_mixed):
        return " ".join(said) or None
    if not said:
        found = f"{counts['train']:,} to train on and {counts['heldout']:,} held out, by {source}."
        said.append(f"A part of the pairs teach the {modality} encoder: {found}")
    start = datetime.datetime(1970, 1, 1) + datetime.timedelta(microseconds=log.eval_start_us)
    why = f"Of {log.log_rows:,} rows of {log.log} {log.log_rows_before_eval:,} are from before the eval split, which "
    why += f"begins at {start:%Y-%m-%d %H:%M} UTC"
    if is_mixed:
        share = f"{log.late_train_share:.0%}".replace("%", " %")
        why += f": `split` is no cut in time, {share} of the train impressions are later. Cut `split` by time, or "
        why += "leave the column out"
    return " ".join([*said, f"{why}."])
