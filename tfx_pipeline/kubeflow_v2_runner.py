"""Compiles the DAG for Kubeflow Pipelines: `tfx run create --engine kubeflow --pipeline tfx_pipeline/`.

The nodes run in TFMM_IMAGE, which holds this version of tfmm, keep their artifacts under TFMM_ROOT, and see the workdir
(index, versions, checkpoints) and the data under the same paths as this machine: both lie on a volume.
"""

import os
import pathlib
import sys
import typing

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # the command puts only this folder there

from tfmm import folder_lock
from tfx_pipeline import kubeflow
from tfx_pipeline import workdir as workdir_lib


def run() -> None:
    """Writes the pipeline spec into the workdir.

    Raises:
        ValueError: something that Kubeflow needs is missing; all of it is named.
    """
    settings = kubeflow.Settings.from_variables()
    with folder_lock.hold(workdir_lib.named()):
        import yaml
        from tfx.orchestration.kubeflow.v2 import kubeflow_v2_dag_runner

        from tfx_pipeline import environments

        environment = environments.Environment.from_variables()
        place = kubeflow.spec_path(environment.workdir)
        place.parent.mkdir(parents=True, exist_ok=True)
        runner = kubeflow_v2_dag_runner.KubeflowV2DagRunner(
            kubeflow_v2_dag_runner.KubeflowV2DagRunnerConfig(default_image=settings.image, use_pipeline_spec_2_1=True)
        )
        spec = runner.run(_pipeline(environment, settings), write_out=False)["pipelineSpec"]
        spec["defaultPipelineRoot"] = settings.root  # TFX leaves it to who submits
        place.write_text(yaml.safe_dump(spec))
        print(f"Wrote {place}.")


def _pipeline(environment: typing.Any, settings: kubeflow.Settings) -> typing.Any:
    from kfp.pipeline_spec import pipeline_spec_pb2

    from tfx_pipeline import continued, outside, pipeline

    if environment.config.days.continue_from:
        raise ValueError(
            "On Kubeflow a run trains from scratch, since its metadata are not at hand here, so `days.continue_from` "
            f"must be empty. Received: {environment.config.days.continue_from!r}. Go on by a local run, or by "
            "`tfmm train --continue-from`."
        )
    made = pipeline.create_pipeline(
        environment,
        root=settings.root,
        stamps=outside.NewStamps(),
        road=continued.alone(environment.config),
        is_here=False,
    )
    if settings.accelerator:
        resources = pipeline_spec_pb2.PipelineDeploymentConfig.PipelineContainerSpec.ResourceSpec()
        resources.accelerator.type, resources.accelerator.count = settings.accelerator, settings.accelerators
        for node in made.components:
            if node.id in pipeline.TRAINERS:
                node.with_platform_config(resources)
    return made


if __name__ == "__main__":
    try:
        run()
    except (BlockingIOError, ValueError) as error:
        if os.environ.get("TFMM_TRACEBACK"):
            raise
        sys.exit(str(error))
