"""Named runs: each function returns the RunConfig of a whole road."""

from __future__ import annotations

import dataclasses

from tfmm.config import (
    CTRConfig,
    DataConfig,
    ExportConfig,
    MAKEConfig,
    MarketplaceConfig,
    PairsConfig,
    RunConfig,
    SCLConfig,
)
from tfmm.features import DEFAULT_FEATURES, Feature, Sequence


def quickstart() -> RunConfig:
    """The main job: a marketplace that a laptop with 2 cores finishes in minutes."""
    return RunConfig()


def small() -> RunConfig:
    """The same road at the smallest size that still learns: for tests and a first run of the DAG."""
    return RunConfig(
        marketplace=MarketplaceConfig(
            num_items=300,
            new_items_per_day=20,
            num_users=600,
            num_days=4,
            impressions_per_user_day=9,
            num_searches=1_500,
            image_size=24,
        ),
        data=DataConfig(max_behaviors=20),
        image=SCLConfig(modality="image", dim=32, image_size=24, width=8, epochs=6),
        text=SCLConfig(modality="text", dim=32, text_buckets=4_096, epochs=4),
        make=MAKEConfig(epochs=6, batch_size=256),
        ctr=CTRConfig(batch_size=256),
        export=ExportConfig(batch_buckets=(8, 512), candidate_buckets=(64,)),
    )


def rich() -> RunConfig:
    """The quickstart on a marketplace with columns of users, items, contexts and behaviors, all of them declared."""
    carried = ("item_id", "category", "age", "dwell")
    return RunConfig(
        features=(
            *DEFAULT_FEATURES,
            Feature("age_group", "user", dim=4),
            Feature("city", "user"),
            Feature("income", "user", "number", scaling="log"),
            Feature("brand", "item"),
            Feature("price", "item", "number", scaling="log"),
            Feature("tags", "item", "ids", max_values=3),
            Feature("device", "context", dim=4),
            Feature("hour", "context", "time", source="impressions.timestamp"),
            Feature("position", "context", "number", scaling="log", serving_value=1),
            Feature("age", "behavior", "number", source="behaviors.age", scaling="log"),
            Feature("dwell", "behavior", "number", scaling="log"),
        ),
        sequences=(
            Sequence("clicks", ("click",), 50, carried),
            Sequence("purchases", ("purchase",), 20, carried),
        ),
        marketplace=MarketplaceConfig(rich=True),
        ctr=CTRConfig(batch_size=256),  # what features do together takes more steps to find
    )


def paper() -> RunConfig:
    """The sizes that the paper names; the others are ours. Needs GPUs and data of that scale."""
    scl = SCLConfig(
        dim=128,
        memory_bank_size=196_800,
        lone_positive_bank=196_800,
        batch_size=1_024,
        max_pairs_seen=1 << 40,
        image_size=224,
        width=64,
        momentum=0.999,
    )
    return RunConfig(
        data=DataConfig(max_behaviors=1_000),
        pairs=PairsConfig(max_pairs=1 << 40, max_content_bytes=1 << 50),
        image=scl,
        text=dataclasses.replace(scl, modality="text", text_buckets=1 << 20),
    )


PRESETS = {"quickstart": quickstart, "small": small, "rich": rich, "paper": paper}
