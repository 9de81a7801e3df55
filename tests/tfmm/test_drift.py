"""Settings of drift between spans."""

import pytest

from tfmm import drift
from tfmm.assignments import override
from tfmm.features import Feature, FeatureSet
from tfmm.presets import rich, small


def test_what_changes_with_each_span_by_itself_is_not_compared():
    compared = drift.compared(rich().feature_set)
    assert {"price", "tags", "device", "clicks_age", "clicks_dwell", "label"} <= set(compared)
    assert not {"user_id", "item_id", "clicks_item_id", "clicks_category", "hour", "timestamp"} & set(compared)
    assert "city" in drift.compared(FeatureSet((*FeatureSet().features, Feature("city", "user"))))


def test_settings_are_checked():
    assert override(small(), ["drift.stop=2"]).drift.stop == 2.0
    with pytest.raises(ValueError, match="`warn` must be positive"):
        drift.DriftConfig(warn=0.0)
    with pytest.raises(ValueError, match="`stop` must be at least `warn`"):
        drift.DriftConfig(stop=0.1)
