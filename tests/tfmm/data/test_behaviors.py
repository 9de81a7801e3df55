import hypothesis
import numpy as np
from hypothesis import strategies

from tfmm.data import behaviors

rows = strategies.lists(strategies.tuples(strategies.integers(-2, 2), strategies.integers(0, 6)), max_size=25)


@hypothesis.given(rows, rows, strategies.integers(1, 6))
def test_histories_agree_with_a_loop(impressions, acts, max_behaviors):
    users, times = (np.array([row[i] for row in impressions], np.int64) for i in (0, 1))
    acts.sort()
    act_users, act_times = (np.array([row[i] for row in acts], np.int64) for i in (0, 1))
    found, mask = behaviors.histories(users, times, act_users, act_times, max_behaviors)
    for (user, time), row, valid in zip(impressions, found, mask):
        earlier = [k for k, act in enumerate(acts) if act[0] == user and act[1] < time][-max_behaviors:]
        assert valid.tolist() == [True] * len(earlier) + [False] * (max_behaviors - len(earlier))
        assert row[valid].tolist() == earlier


def test_ties_are_ordered_by_line_then_whatever_the_order_given():
    users, times = np.array([1, 1, 1, 1]), np.array([5, 5, 5, 4])
    items, lines = np.array([10, 11, 12, 13]), np.array([2, 1, 1, 9])
    order = behaviors.sort_behaviors(users, times, items, lines)
    assert items[order][0] == 13 and items[order][-1] == 10
    shuffled = np.array([3, 1, 0, 2])
    again = behaviors.sort_behaviors(users[shuffled], times[shuffled], items[shuffled], lines[shuffled])
    np.testing.assert_array_equal(items[shuffled][again], items[order])


def test_the_tie_break_spreads_ids_evenly():
    draw = behaviors.tie_break(np.arange(10_000), np.zeros(10_000, np.int64))
    assert len(np.unique(draw)) == 10_000
    counts = np.bincount((draw % np.uint64(10)).astype(int))
    assert abs(counts - 1000).max() < 150  # 5 standard deviations of a fair draw
