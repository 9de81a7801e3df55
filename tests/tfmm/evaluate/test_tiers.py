"""Tiers of the rows that an evaluation scored, against a slow loop over pairs."""

import numpy as np
import pytest

from tfmm import drift
from tfmm.evaluate import tiers
from tfmm.features import FeatureSet
from tfmm.index import snapshot
from tfmm.training import examples


def loop(targets, behaviors, table):
    """Counts pairs one at a time, as equation 2 puts a similarity into a tier."""
    counts, unknown = np.zeros(tiers.NUM_TIERS, np.int64), 0
    places = {int(item): place for place, item in enumerate(table.ids)}
    for target, history in zip(targets.tolist(), behaviors.tolist()):
        for behavior in filter(None, history):
            if target not in places or behavior not in places:
                unknown += 1
                continue
            own, other = places[target], places[behavior]
            dot = int(table.rows[own].astype(int) @ table.rows[other].astype(int))
            similarity = np.float32(np.float32(dot) * table.scales[own]) * table.scales[other]
            tier = np.floor((np.clip(similarity, -1, 1) + np.float32(1)) * np.float32(tiers.NUM_TIERS / 2))
            counts[min(int(tier), tiers.NUM_TIERS - 1)] += 1
    return counts.tolist(), unknown


@pytest.mark.parametrize("rows", [tiers.ROWS, 300])
def test_tiers_of_a_report_are_those_of_a_loop_over_the_rows_drawn(shop, monkeypatch, rows):
    monkeypatch.setattr(tiers, "ROWS", rows)
    monkeypatch.setattr(tiers, "_PIECE", 100)  # several pieces
    files = examples.example_files(shop.eval)
    columns = examples.read_columns(files, shop.features, ("item_id", "behavior_item_ids"))
    count = len(columns["item_id"])
    drawn = np.arange(count)
    if rows < count:
        drawn = np.sort(np.random.default_rng(0).choice(count, rows, replace=False))
    found = tiers.report(files, shop.features, shop.snapshot, count)
    held = snapshot.load_snapshot(shop.snapshot)
    assert set(found) == {"image", "text"}
    for modality, own in found.items():
        counts, unknown = loop(columns["item_id"][drawn], columns["behavior_item_ids"][drawn], held[modality])
        assert own == {"counts": counts, "unknown": unknown} and unknown and sum(counts)


def test_rows_without_behaviors_have_no_pair():
    one = np.array([7]), np.ones((1, 2), np.int8), np.ones(1, np.float32), np.ones(1, np.int64)
    table = snapshot.SnapshotTable(*one, dim=2, encoder_version="v1", watermark=1)
    found = tiers.tiers(np.array([7, 8]), np.zeros((2, 0), np.int64), table.lookup)
    assert found.counts.sum() == found.unknown == 0


def test_divergence_of_histograms_is_jensen_and_shannons():
    def entropy(shares):
        return -sum(one * np.log2(one) for one in shares if one)

    counts, others = [5.0, 0.0, 2.0, 3.0], [1.0, 4.0, 0.0, 5.0]
    shares, other_shares = [one / 10 for one in counts], [one / 10 for one in others]
    mixed = [(p + q) / 2 for p, q in zip(shares, other_shares)]
    wanted = entropy(mixed) - (entropy(shares) + entropy(other_shares)) / 2
    assert drift.of_counts(counts, others) == pytest.approx(wanted, abs=1e-12)
    assert drift.of_shares(0.2, 0.7) == pytest.approx(drift.of_counts([2, 8], [7, 3]), abs=1e-12)


def test_a_run_without_sequences_has_no_tiers(shop):
    features = FeatureSet(sequences=())
    assert tiers.report(examples.example_files(shop.eval), features, shop.snapshot, 10) == {}
