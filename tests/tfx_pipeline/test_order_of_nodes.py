"""What must have passed before a node may work, on each road that a run can take."""

import pytest

pytest.importorskip("tfx", reason="TFX is not installed")

from tfmm import presets
from tfmm.data import spans
from tfmm.stages import folders
from tfx_pipeline import continued, environments, pipeline

BEFORE = spans.Before(watermark=1, newest=1, seen={})
ROADS = {
    "from scratch": lambda place: continued.Road(),
    "encoders of before": lambda place: continued.Road(place),
    "a model that goes on": lambda place: continued.Road(
        place, {folders.ID: place, folders.MULTIMODAL: place}, BEFORE
    ),
}  # fmt: skip


@pytest.mark.parametrize("road", ROADS)
def test_nothing_learns_of_a_span_or_writes_what_is_in_service_before_its_anomalies_are_known(tmp_path, road):
    environment = environments.Environment(tmp_path / "work", None, presets.small())
    made = pipeline.create_pipeline(environment, road=ROADS[road](str(tmp_path / "before")))
    above = {}
    for node in made.components:  # a pipeline sorts them
        above[node.id] = {name for one in node.upstream_nodes for name in (one.id, *above[one.id])}
    waiting = {name for name, nodes in above.items() if "AnomalyCheck" in nodes}
    always = {"CatalogEmbedder", "Transform", "IDTrainer", "MultimodalTrainer", "ModelGate", "InfraCheck", "Pusher"}
    assert always <= waiting
    assert ({"SCLTrainer", "MAKETrainer"} & set(above)) <= waiting
    assert {"ModelGate", "InfraCheck"} <= above["Pusher"] and "DataCheck" in above["AnomalyCheck"]
