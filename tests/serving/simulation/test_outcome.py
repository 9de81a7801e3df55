"""Rates, gains and intervals of a simulated A/B, against sums by hand and what is known of the truth."""

import numpy as np
import pytest
from rich import console

from serving.simulation import outcome
from serving.simulation.arms import Shown
from tfmm.stages.folders import ID, MULTIMODAL


def shown(user, is_new, clicked, price=0.5, bid=1.0):
    return Shown(0, 0, user, 7, 1, is_new, 0, 0.1, bid, price, clicked)


def test_rates_are_those_by_hand():
    found = {
        ID: [shown(1, True, True, 0.2, 0.6), shown(1, False, True, 0.4, 0.4), shown(2, True, False)],
        MULTIMODAL: [shown(1, True, True, 0.3, 0.6), shown(2, True, True, 0.1, 0.6), shown(2, False, False)],
    }
    result = outcome.measure({arm: outcome.table_of(rows) for arm, rows in found.items()}, [3, 1, 2])
    of_all, of_new = result[outcome.ALL], result[outcome.NEW]
    assert of_all["impressions"] == {ID: 3, MULTIMODAL: 3} and of_new["impressions"] == {ID: 2, MULTIMODAL: 2}
    assert of_new["share_of_impressions"] == {ID: 2 / 3, MULTIMODAL: 2 / 3}
    wanted = {
        outcome.ALL: {"ctr": (2 / 3, 2 / 3), "rpm": (1000 * 0.6 / 3, 1000 * 0.4 / 3), "roi": (1.0 / 0.6, 1.2 / 0.4)},
        outcome.NEW: {"ctr": (1 / 2, 1.0), "rpm": (1000 * 0.2 / 2, 1000 * 0.4 / 2), "roi": (0.6 / 0.2, 1.2 / 0.4)},
    }
    for name, metrics in wanted.items():
        for metric, (of_ids, of_vectors) in metrics.items():
            own = result[name][metric]
            assert own[ID]["value"] == pytest.approx(of_ids) and own[MULTIMODAL]["value"] == pytest.approx(of_vectors)
            assert own["gain"]["value"] == pytest.approx(of_vectors / of_ids - 1)


def clicks(rng, probability, users):
    """Returns impressions of users who differ, half of them of new items, clicked so often."""
    own = np.clip(probability * rng.gamma(4.0, 0.25, users), 0, 1)
    return [shown(user, n % 2 == 0, bool(rng.random() < own[user])) for user in range(users) for n in range(20)]


def test_a_gain_that_is_there_is_found_and_of_two_alike_none():
    rng = np.random.default_rng(0)
    rows = {ID: clicks(rng, 0.1, 300), MULTIMODAL: clicks(rng, 0.16, 300)}
    found = outcome.measure({arm: outcome.table_of(own) for arm, own in rows.items()}, range(300))
    gain = found[outcome.NEW]["ctr"]["gain"]
    assert 0.2 < gain["low"] < 0.6 < gain["high"] < 1.2  # 0.6 is the truth
    assert "multimodal is above ids alone, +" in outcome.in_words(found)
    same = outcome.measure({arm: outcome.table_of(rows[ID]) for arm in rows}, range(300))
    gain = same[outcome.NEW]["ctr"]["gain"]
    assert gain == {"value": 0.0, "low": 0.0, "high": 0.0} and "is not told apart from" in outcome.in_words(same)


def test_what_nobody_clicked_has_no_gain_and_is_shown_as_unknown():
    rows = {arm: [shown(1, False, False)] * 3 for arm in (ID, MULTIMODAL)}
    found = outcome.measure({arm: outcome.table_of(own) for arm, own in rows.items()}, [1])
    assert found[outcome.NEW]["ctr"][ID]["value"] is None and found[outcome.ALL]["roi"]["gain"]["value"] is None
    assert outcome.in_words(found).endswith("too few clicks to say anything (simulation)")
    screen = console.Console(record=True, width=120)
    screen.print(outcome.table(found))
    text = screen.export_text()
    assert "simulation" in text and "0 (0.0%)" in text and "0.00%" in text
