"""Acc@N with intervals: a training that learned nothing is said, and so is a test set that tells nothing."""

import numpy as np
import pytest

from tfmm.pretrain import accuracy, in_words

ITEMS = np.repeat(np.arange(400), 5)


def ranks_of(share, seed):
    """Ranks of which about `share` are 1."""
    generator = np.random.default_rng(seed)
    return np.where(generator.random(len(ITEMS)) < share, 1, generator.integers(2, 400, len(ITEMS)))


def test_a_gain_is_told_with_its_interval_and_chance():
    facts = accuracy.judge(ranks_of(0.3, 0), ranks_of(0.2, 1), ITEMS)
    gain = facts["acc_at_1_gain"]
    assert gain["value"] == pytest.approx(facts["acc_at_1"] - facts["acc_at_1_untrained"])
    assert 0.06 < gain["low"] < gain["value"] < gain["high"] < 0.14
    assert facts["acc_at_1_chance"] == 1 / 400 and facts["acc_at_5_chance"] == 5 / 400
    assert facts["acc_at_1_interval"]["low"] < facts["acc_at_1"] < facts["acc_at_1_interval"]["high"]
    assert accuracy.no_better(facts, "text") is None
    said = in_words.accuracy_text({**facts, "heldout_pairs": 2000, "heldout_items": 400})
    assert f"gain {gain['value']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}], Acc@5" in said


def test_pairs_of_one_item_are_drawn_together():
    """Five pairs that say the same are one witness: the interval is that of 400 items, not of 2,000 pairs."""
    together = np.repeat(np.random.default_rng(0).random(400) < 0.3, 5)
    ranks, untrained = np.where(together, 1, 9), np.full(len(ITEMS), 9)
    of_items = accuracy.judge(ranks, untrained, ITEMS)["acc_at_1_interval"]
    of_pairs = accuracy.judge(ranks, untrained, np.arange(len(ITEMS)))["acc_at_1_interval"]
    assert (of_items["high"] - of_items["low"]) > 2 * (of_pairs["high"] - of_pairs["low"])


def test_an_encoder_that_learned_nothing_is_said():
    """As on a real set with images: Acc@1 .0017, and .0036 untrained."""
    facts = {**accuracy.judge(ranks_of(0.0017, 2), ranks_of(0.0036, 3), ITEMS), "heldout_pairs": 2000,
             "heldout_items": 400}  # fmt: skip
    said = accuracy.no_better(facts, "image")
    assert said.startswith("The image encoder's Acc@1 is not above that of its untrained self beyond noise: 0.00")
    assert "over 2,000 held-out pairs of 400 items." in said


def test_two_pairs_tell_nothing_though_both_are_hit():
    facts = accuracy.judge(np.array([1, 1]), np.array([2, 2]), np.array([7, 8]))
    assert facts["acc_at_1"] == 1.0 and facts["acc_at_1_gain"] is None and facts["acc_at_1_interval"] is None
    assert accuracy.no_better(facts, "text") is None  # the count of pairs is what is warned of
