"""Rows that the job of examples leaves out: counted by reason, and refused where they are too many."""

import pytest

from tfmm import dead_letters
from tfmm.config import DataConfig
from tfmm.data import join
from tfmm.features import FeatureSet

FEATURES = FeatureSet().resolved(3, 1)
REASON = "`action` must be one of click, cart, favorite, purchase"


@pytest.fixture
def folder(tables, at):
    """20 impressions, and 10 behaviors of which 3 have no action that is known."""
    return tables(
        items=[{"item_id": 1, "title": "t", "category": 1}],
        behaviors=[
            {"user_id": 1, "item_id": 1, "timestamp": at(n), "action": "view" if n < 3 else "click"} for n in range(10)
        ],
        impressions=[{"user_id": 1, "item_id": 1, "timestamp": at(30 + n), "label": n % 2} for n in range(20)],
    )


def test_what_is_left_out_is_counted_by_reason(folder, tmp_path):
    said = []
    join.write_examples(folder, DataConfig(max_bad_fraction=0.3), FEATURES, tmp_path / "out", said.append)
    (count,) = dead_letters.counts(dead_letters.read(tmp_path / "out"))
    assert (count.source, count.reason, count.count) == ("behaviors", REASON, 3)
    assert said == [
        "examples: 16 train, 4 eval, 3 rows left out",
        f"left out: 3 of behaviors: {REASON} ({count.code})",
        f"`tfmm dead-letters {tmp_path / 'out'}` shows them.",
    ]


def test_more_than_the_limit_is_refused_as_in_the_pipeline(folder, tmp_path):
    text = r"No reason may leave out more than 20 %[^$]*- 3 of 10 of behaviors: `action` must be"
    with pytest.raises(ValueError, match=text):
        join.write_examples(folder, DataConfig(max_bad_fraction=0.2), FEATURES, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()
