"""What the size of the data makes of the settings."""

import dataclasses

import numpy as np
import pytest

from tfmm import presets
from tfmm.config import SCLConfig
from tfmm.pretrain import plan as plan_lib
from tfmm.pretrain.plan import Plan


def items(pairs, distinct):
    return np.arange(pairs) % distinct + 1


def make_plan(config, item_ids):
    """Of items bought together: every query has all of them."""
    return plan_lib.make_plan(config, np.full(len(item_ids), item_ids[0]), item_ids, item_ids)


def plan_of_searches(config, item_ids):
    """Each query has one positive."""
    return plan_of(config, np.arange(len(item_ids)), item_ids)


def plan_of(config, searches, item_ids):
    return plan_lib.make_plan(config, -1 - searches, item_ids, item_ids)


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


@pytest.mark.parametrize("modality", ["image", "text"])
@pytest.mark.parametrize(("distinct", "bank"), [(25, 0), (1_147, 1_147), (50_000, 8_192), (1_000_000, 10_000)])
def test_where_a_query_has_one_positive_the_bank_holds_each_once(modality, distinct, bank):
    """Without it marketplaces lost .005 GAUC, .028 on new items: benchmarks/memory_bank.py."""
    config = getattr(presets.quickstart(), modality)
    assert plan_of_searches(config, items(1_000_000, distinct)).memory_bank_size == bank
    without = dataclasses.replace(config, lone_positive_bank=0)
    assert plan_of_searches(without, items(1_000_000, distinct)) == dataclasses.replace(
        make_plan(without, items(1_000_000, distinct)), positives_per_query=1.0, queries_among_positives=0.0
    )


def test_few_repeated_queries_are_searches_and_many_are_not():
    """What counts is what a pair meets: one popular query outweighs many rare ones."""
    config, item_ids = SCLConfig(), items(4_000, 1_000)
    repeated = np.where(np.arange(4_000) < 400, np.arange(4_000) // 2, np.arange(4_000))
    plan = plan_of(config, repeated, item_ids)
    assert (plan.positives_per_query, plan.memory_bank_size) == (1.1, 1_000)
    popular = np.where(np.arange(4_000) < 400, 0, np.arange(4_000))
    plan = plan_of(config, popular, item_ids)
    assert (plan.positives_per_query, plan.memory_bank_size) == (40.9, 0)


def test_pairs_that_are_there_twice_are_one_positive():
    plan = plan_of(SCLConfig(), items(1_000, 100), items(1_000, 100))
    assert (plan.positives_per_query, plan.memory_bank_size) == (1.0, 100)


def test_items_that_were_bought_with_one_other_in_a_short_log_are_no_searches():
    followed_by_the_next = np.roll(items(1_000, 1_000), 1)
    plan = plan_lib.make_plan(SCLConfig(), followed_by_the_next, items(1_000, 1_000), items(1_000, 1_000))
    assert (plan.positives_per_query, plan.queries_among_positives, plan.memory_bank_size) == (1.0, 1.0, 0)


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
    assert plan_of_searches(config, np.arange(1, 500_001)).memory_bank_size == 196_800
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
    assert make_plan(SCLConfig(batch_size=10), items(45, 45)) == Plan(45, 45.0, 1.0, 0, 10, 8, 40)
    assert make_plan(SCLConfig(batch_size=512), items(40, 40)).batch_size == 40
