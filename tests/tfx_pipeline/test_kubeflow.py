"""The DAG for Kubeflow Pipelines: what it needs is named at once, and it compiles where kfp is installed."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("tfx", reason="TFX is not installed")

from click import testing
from tfx.tools.cli.commands.run import run_group

from tfx_pipeline import artifact_types, cli, kubeflow

NODES = {
    "Marketplace", "DataCheck", "PairBuilder", "SCLTrainer", "CatalogEmbedder", "ExampleGenerator", "StatisticsGen",
    "FeatureSchema", "ExampleValidator", "AnomalyCheck", "Transform", "MAKETrainer", "IDTrainer",
    "MultimodalTrainer", "ModelGate", "InfraCheck", "Pusher",
}  # fmt: skip
VARIABLES = {"TFMM_IMAGE": "registry.example/tfmm:1", "TFMM_ROOT": "/mnt/tfmm"}


@pytest.mark.parametrize("name", ["Dataset", "DataReport", "Pairs", "Encoders", "IndexSnapshot", "Make"])
def test_type_of_an_artifact_is_found_by_its_name_as_kubeflow_does(name):
    from tfx.utils import import_utils

    kind = getattr(artifact_types, name)
    assert import_utils.import_class_by_path(kind.TYPE_NAME) is kind


def test_package_has_no_other_names():
    import tfx_pipeline

    with pytest.raises(AttributeError, match="no attribute 'Datasets'"):
        _ = tfx_pipeline.Datasets


def test_command_names_all_that_is_missing_before_any_work(tmp_path, monkeypatch, root):
    for name in ("TFMM_IMAGE", "TFMM_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TFMM_WORKDIR", str(tmp_path / "work"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    cli.add_options()
    command = ["create", "--engine", "kubeflow", "--pipeline", str(root / "tfx_pipeline")]
    result = testing.CliRunner().invoke(run_group, command)
    assert result.exit_code == 1
    for said in ("kfp is not installed", "TFMM_IMAGE is not set", "TFMM_ROOT is not set", "--endpoint is not given"):
        assert said in result.output
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("given", ["nvidia.com/gpu", "=1", "nvidia.com/gpu=none", "nvidia.com/gpu=0"])
def test_accelerators_must_have_type_and_number(given):
    (fault,) = (f for f in kubeflow.faults({**VARIABLES, "TFMM_ACCELERATOR": given}) if "kfp" not in f)
    assert fault == f"TFMM_ACCELERATOR must be <type>=<count>, such as nvidia.com/gpu=1. Received: {given}"


@pytest.mark.compat
def test_dag_compiles_to_the_pipeline_spec(tmp_path, root):
    pytest.importorskip("kfp", reason="kfp needs an environment of its own: requirements/compat.sh kubeflow")
    import yaml

    environment = {
        **os.environ, **VARIABLES, "TFMM_ACCELERATOR": "nvidia.com/gpu=2", "TFMM_WORKDIR": str(tmp_path),
        "PYTHONPATH": str(root), "TF_CPP_MIN_LOG_LEVEL": "3",
    }  # fmt: skip
    command = [sys.executable, str(root / "tfx_pipeline" / "kubeflow_v2_runner.py")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    spec = yaml.safe_load(kubeflow.spec_path(tmp_path).read_text())
    assert set(spec["root"]["dag"]["tasks"]) == NODES
    assert spec["defaultPipelineRoot"] == VARIABLES["TFMM_ROOT"] and spec["schemaVersion"] == "2.1.0"
    executors = spec["deploymentSpec"]["executors"]
    assert {executor["container"]["image"] for executor in executors.values()} == {VARIABLES["TFMM_IMAGE"]}
    accelerated = {name for name, one in executors.items() if "resources" in one["container"]}
    assert accelerated == {f"{n}_executor" for n in ("SCLTrainer", "MAKETrainer", "IDTrainer", "MultimodalTrainer")}
    accelerator = executors["SCLTrainer_executor"]["container"]["resources"]["accelerator"]
    assert accelerator == {"type": "nvidia.com/gpu", "count": "2"}
    titles = spec["components"]["SCLTrainer"]["outputDefinitions"]["artifacts"]["encoders"]["artifactType"]
    assert "title: tfx_pipeline.Encoders" in titles["instanceSchema"]
    after = spec["root"]["dag"]["tasks"]["MultimodalTrainer"]["dependentTasks"]
    assert {"CatalogEmbedder", "MAKETrainer", "Transform"} <= set(after)
