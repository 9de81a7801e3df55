"""How much of the logs teaches an encoder, and why so little where it is little."""

from __future__ import annotations

import datetime
import typing

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
    """Returns a sentence where pairs are few, or rows are lost since `split` is no cut in time; else None.

    Args:
        modality: whose encoder learns from the pairs.
        source: of the pairs.
        counts: pairs, `train` and `heldout`.
        log: what they come from.

    >>> log = LogCounts("behaviors", 48_580, 15, 0, 0.97)
    >>> warning("text", "co-click", {"train": 7, "heldout": 2}, log)  # doctest: +NORMALIZE_WHITESPACE
    'Few pairs teach the text encoder: 7 to train on and 2 held out, by co-click. Of 48,580 rows of behaviors 15 are
    from before the eval split, which begins at 1970-01-01 00:00 UTC: `split` is no cut in time, 97 % of the train
    impressions are later. Cut `split` by time, or leave the column out.'
    >>> warning("text", "search", {"train": 5_000, "heldout": 500}, LogCounts("behaviors", 9_000, 8_000, 0, 0.0))
    """
    is_few = counts["train"] < FEW_TRAIN or counts["heldout"] < FEW_HELDOUT
    is_mixed = log.late_train_share > LATE_SHARE
    if not is_few and not (is_mixed and 2 * log.log_rows_before_eval < log.log_rows):
        return None
    start = datetime.datetime(1970, 1, 1) + datetime.timedelta(microseconds=log.eval_start_us)
    said = f"{'Few' if is_few else 'A part of the'} pairs teach the {modality} encoder: "
    said += f"{counts['train']:,} to train on and {counts['heldout']:,} held out, by {source}. "
    said += f"Of {log.log_rows:,} rows of {log.log} {log.log_rows_before_eval:,} are from before the eval split"
    said += f", which begins at {start:%Y-%m-%d %H:%M} UTC" if log.log_rows_before_eval < log.log_rows else ""
    if not is_mixed:
        return said + "."
    return said + (
        f": `split` is no cut in time, {log.late_train_share:.0%} of the train impressions are later. Cut `split` by "
        "time, or leave the column out."
    ).replace("%", " %")
