"""What Kubeflow needs to run the DAG, and how a compiled DAG is handed to it."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import pathlib
import typing

IMAGE, ROOT, ACCELERATOR = "TFMM_IMAGE", "TFMM_ROOT", "TFMM_ACCELERATOR"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Where the DAG runs on Kubeflow."""

    image: str  # of every node: holds tfmm with its extra `pipeline`
    root: str  # where artifacts go: a folder that every node sees
    accelerator: str = ""  # type of a trainer's accelerators, such as nvidia.com/gpu; "": none
    accelerators: int = 0  # of each trainer

    @classmethod
    def from_variables(cls, variables: typing.Mapping[str, str] = os.environ) -> Settings:
        """Reads TFMM_IMAGE, TFMM_ROOT and TFMM_ACCELERATOR (`nvidia.com/gpu=1`).

        Raises:
            ValueError: some are missing, or kfp is; all are named.
        """
        if found := faults(variables):
            raise ValueError(in_words(found))
        kind, _, count = variables.get(ACCELERATOR, "").partition("=")
        return cls(variables[IMAGE], variables[ROOT], kind, int(count or 0))


def faults(variables: typing.Mapping[str, str] = os.environ) -> list[str]:
    """Returns what is missing to compile the DAG for Kubeflow."""
    found = []
    if importlib.util.find_spec("kfp") is None:
        found.append(
            "kfp is not installed. It holds libraries at older versions than TFX alone: in an environment of its own, "
            "pip install -r requirements/kubeflow.lock"
        )
    if not variables.get(IMAGE):
        found.append(f"{IMAGE} is not set: the image of the nodes, with tfmm and its extra `pipeline`")
    if not variables.get(ROOT):
        found.append(f"{ROOT} is not set: where artifacts go, a folder that every node sees, such as a mounted bucket")
    elif "://" in variables[ROOT]:
        found.append(
            f"{ROOT} must be a folder that every node sees, such as a mounted bucket: nodes read and write by path. "
            f"Received: {variables[ROOT]}"
        )
    kind, equals, count = variables.get(ACCELERATOR, "").partition("=")
    if (equals and not (kind and count.isdigit() and int(count) > 0)) or (kind and not equals):
        found.append(f"{ACCELERATOR} must be <type>=<count>, such as nvidia.com/gpu=1. Received: {kind}{equals}{count}")
    return found


def in_words(found: typing.Sequence[str]) -> str:
    """Returns what is missing as one message."""
    return "Kubeflow needs what is missing here:\n- " + "\n- ".join(found)


def spec_path(workdir: pathlib.Path) -> pathlib.Path:
    """Where the compiled DAG lies."""
    return workdir / "kubeflow" / "pipeline.yaml"


def submit(spec: pathlib.Path, endpoint: str, namespace: str) -> str:
    """Hands a compiled DAG to Kubeflow Pipelines; returns the id of the run."""
    import kfp

    client = kfp.Client(host=endpoint, namespace=namespace)
    return client.create_run_from_pipeline_package(str(spec), arguments={}, namespace=namespace).run_id
