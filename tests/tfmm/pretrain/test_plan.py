"""What the size of the data makes of the settings."""

import dataclasses

import numpy as np
import pytest

from tfmm import presets
from tfmm.config import SCLConfig
from tfmm.pretrain.plan import Plan, make_plan


def items(pairs, distinct):
    return np.arange(pairs) % distinct + 1


def test_a_bank_follows_the_distinct_positives_not_the_pairs():
    config = SCLConfig(memory_bank_size=8_192, memory_bank_share=0.1, batch_size=64)
    sizes = [make_plan(config, items(200_000, distinct)).memory_bank_size for distinct in (1_000, 100_000)]
    assert sizes == [100, 8_192]


def test_a_bank_smaller_than_a_batch_is_off():
    config = SCLConfig(memory_bank_share=0.1, batch_size=64)
    assert make_plan(config, items(200_000, 639)).memory_bank_size == 0
    assert make_plan(config, items(200_000, 640)).memory_bank_size == 64


@pytest.mark.parametrize("modality", ["image", "text"])
@pytest.mark.parametrize("distinct", [25, 1_700, 3_659])
def test_the_default_bank_is_off_on_small_catalogs(modality, distinct):
    config = getattr(presets.quickstart(), modality)
    assert make_plan(config, items(50_000, distinct)).memory_bank_size == 0


def test_a_bank_can_be_forced():
    config = SCLConfig(memory_bank_size=5_000, memory_bank_share=4.0)
    assert make_plan(config, items(50_000, 2_000)).memory_bank_size == 5_000


def test_without_in_batch_negatives_the_bank_stays_on():
    config = SCLConfig(memory_bank_size=196_800, in_batch_negatives=False, momentum=0.999, batch_size=64)
    assert make_plan(config, items(1_000, 25)).memory_bank_size == 64
    assert make_plan(config, items(50_000, 50_000)).memory_bank_size == 500
    one = SCLConfig(memory_bank_size=7, in_batch_negatives=False, batch_size=64)
    assert make_plan(one, items(1_000, 25)).memory_bank_size == 7


@pytest.mark.parametrize("modality", ["image", "text"])
def test_the_papers_bank_stands_beside_the_papers_catalog(modality):
    """196,800 keys from 19.68 million positives on, and from fewer where the share is raised; no budget."""
    config = getattr(presets.paper(), modality)
    assert config.memory_bank_size == 196_800 == round(config.memory_bank_share * 19_680_000)
    assert make_plan(config, np.arange(1, 500_001)).memory_bank_size == 5_000
    plan = make_plan(dataclasses.replace(config, memory_bank_share=1.0), np.arange(1, 500_001))
    assert (plan.memory_bank_size, plan.epochs, plan.pairs_per_epoch) == (196_800, 8, 500_000 // 1_024 * 1_024)


@pytest.mark.parametrize(
    ("pairs", "epochs", "seen"), [(40_000, 8, 320_000), (200_000, 3, 600_000), (500_000, 1, 500_000)]
)
def test_epochs_shrink_so_that_a_large_log_costs_what_the_budget_says(pairs, epochs, seen):
    plan = make_plan(SCLConfig(epochs=8, batch_size=100, max_pairs_seen=600_000), items(pairs, 1_000))
    assert (plan.epochs, plan.epochs * plan.pairs_per_epoch) == (epochs, seen)


def test_a_log_beyond_the_budget_is_seen_in_part():
    plan = make_plan(SCLConfig(epochs=8, batch_size=100, max_pairs_seen=600_000), items(2_000_000, 1_000))
    assert (plan.epochs, plan.pairs_per_epoch, plan.steps) == (1, 600_000, 6_000)


def test_a_batch_holds_no_more_than_there_are_pairs():
    assert make_plan(SCLConfig(batch_size=10), items(45, 45)) == Plan(45, 0, 10, 8, 40)
    assert make_plan(SCLConfig(batch_size=512), items(40, 40)).batch_size == 40
