"""Links in the workdir to what the DAG made."""

import pytest

pytest.importorskip("tfx", reason="TFX is not installed")

from tfmm import presets
from tfx_pipeline import environments, published


def test_a_pipeline_that_is_registered_and_has_not_run_links_nothing(tmp_path):
    environment = environments.Environment(tmp_path / "work", None, presets.small())
    environment.workdir.mkdir()
    published.publish(environment)
    assert list(environment.workdir.iterdir()) == []
