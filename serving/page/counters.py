"""Numbers of a process out of its Prometheus metrics: as they are now, and by counters' differences over time."""

from __future__ import annotations

import collections
import itertools
import typing

from prometheus_client import parser

PREFIXES = ("tfmm_", ":tensorflow:serving:")  # of what is kept; the others are the process's own memory and files
Labels = tuple[tuple[str, str], ...]  # by name, ascending
Samples = dict[str, dict[Labels, float]]  # by the sample's name


def read(text: str) -> Samples:
    """Returns the samples of a page of metrics that are kept.

    >>> read('# TYPE tfmm_rows counter\\ntfmm_rows_total{b="2",a="1"} 3.0\\nprocess_open_fds 7.0\\n')
    {'tfmm_rows_total': {(('a', '1'), ('b', '2')): 3.0}}
    """
    found: Samples = collections.defaultdict(dict)
    for family in parser.text_string_to_metric_families(text):
        if family.name.startswith(PREFIXES):
            for sample in family.samples:
                found[sample.name][tuple(sorted(sample.labels.items()))] = sample.value
    return dict(found)


class Counters:
    """The samples of one process over the last while.

    A counter that is less than before belongs to a process that was started anew, and counts from 0, as Prometheus' own
    `rate` takes it; a series that was not there before counts from 0 as well.

    Args:
        keep_s: how long samples are kept.

    >>> counters = Counters(60.0)
    >>> for moment, value in ((0.0, 5.0), (10.0, 9.0), (20.0, 1.0)):
    ...     counters.add(moment, {"n_total": {(("k", "a"),): value}})
    >>> counters.grown("n_total", 60.0), counters.rates("n_total", 60.0)
    ({(('k', 'a'),): 5.0}, {(('k', 'a'),): 0.25})
    """

    def __init__(self, keep_s: float) -> None:
        self._keep_s = keep_s
        self._taken: collections.deque[tuple[float, Samples]] = collections.deque()

    def add(self, moment: float, samples: Samples) -> None:
        """Takes the samples of a moment, in monotonic seconds, later than those before."""
        self._taken.append((moment, samples))
        while moment - self._taken[0][0] > self._keep_s:
            self._taken.popleft()

    def now(self, name: str) -> dict[Labels, float]:
        """Returns the newest values of a metric by labels."""
        return self._taken[-1][1].get(name, {}) if self._taken else {}

    def over_s(self, window_s: float) -> float:
        """Returns how much of a window is known, in seconds; 0 where there is one moment, or none."""
        within = self._within(window_s)
        return within[-1][0] - within[0][0] if within else 0.0

    def grown(self, name: str, window_s: float) -> dict[Labels, float]:
        """Returns by how much each series of a counter grew in the window."""
        within, result = self._within(window_s), dict.fromkeys(self.now(name), 0.0)
        for (_, before), (_, after) in itertools.pairwise(within):
            old = before.get(name, {})
            for labels, value in after.get(name, {}).items():
                was = old.get(labels, 0.0)
                result[labels] = result.get(labels, 0.0) + (value - was if value >= was else value)
        return result

    def rates(self, name: str, window_s: float) -> dict[Labels, float]:
        """Returns by how much each series of a counter grew per second; none where one moment alone is known."""
        known_s = self.over_s(window_s)
        return {labels: value / known_s for labels, value in self.grown(name, window_s).items()} if known_s else {}

    def quantiles(
        self, name: str, wanted: typing.Sequence[float], window_s: float | None = None
    ) -> dict[Labels, list[float | None]]:
        """Returns quantiles of what a histogram saw in the window, by its labels; None where it saw nothing.

        A window of None is all the time that the process runs.
        """
        buckets: dict[Labels, dict[float, float]] = collections.defaultdict(dict)
        counts = self.now(f"{name}_bucket") if window_s is None else self.grown(f"{name}_bucket", window_s)
        for labels, count in counts.items():
            own = dict(labels)
            bound = float(own.pop("le"))
            buckets[tuple(sorted(own.items()))][bound] = count
        return {labels: [quantile(counts, q) for q in wanted] for labels, counts in buckets.items()}

    def _within(self, window_s: float) -> list[tuple[float, Samples]]:
        taken = list(self._taken)  # at once: another thread adds
        return [one for one in taken if taken[-1][0] - one[0] <= window_s]


def quantile(counts: typing.Mapping[float, float], wanted: float) -> float | None:
    """Returns a quantile of a histogram as Prometheus' `histogram_quantile` does, linear inside a bucket.

    Args:
        counts: cumulative counts by their bucket's upper bound, `inf` among them; the lowest bucket begins at 0.
        wanted: in [0, 1].
    Returns:
        None where nothing was counted; the last finite bound, where the quantile lies beyond it.

    >>> quantile({1.0: 50.0, 2.0: 100.0, float("inf"): 100.0}, 0.75), quantile({1.0: 0.0, float("inf"): 4.0}, 0.5)
    (1.5, 1.0)
    """
    bounds = sorted(counts)
    total = counts[bounds[-1]] if bounds else 0.0
    if not total:
        return None
    rank, low, below = wanted * total, 0.0, 0.0
    for bound in bounds[:-1]:
        if counts[bound] >= rank and counts[bound] > below:
            return low + (bound - low) * (rank - below) / (counts[bound] - below)
        low, below = bound, counts[bound]
    return low
