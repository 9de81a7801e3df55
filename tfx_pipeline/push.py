"""The Pusher's executor: TFX's, that pushes no second copy of what is in service."""

from __future__ import annotations

import typing

from absl import logging
from tfx import v1 as tfx
from tfx.components.pusher import executor
from tfx.dsl.components.base import executor_spec
from tfx.types import artifact_utils, standard_component_specs
from tfx.utils import io_utils, proto_utils

from tfmm import artifacts
from tfx_pipeline import environments


class Executor(executor.Executor):
    """Pushes a blessed model, unless the newest version is the same to the last byte.

    So it is where a run was killed after its push, before that was written down.
    """

    def Do(
        self,
        input_dict: dict[str, list[typing.Any]],
        output_dict: dict[str, list[typing.Any]],
        exec_properties: dict[str, typing.Any],
    ) -> None:
        """Takes what TFX's executor takes."""
        destination = tfx.proto.PushDestination()
        proto_utils.json_to_proto(exec_properties[standard_component_specs.PUSH_DESTINATION_KEY], destination)
        served = environments.newest_version(destination.filesystem.base_directory)
        if served is None or not self.CheckBlessing(input_dict):
            super().Do(input_dict, output_dict, exec_properties)
            return
        model_path = self.GetModelPath(input_dict)
        if artifacts.digest(model_path) != artifacts.digest(served):
            super().Do(input_dict, output_dict, exec_properties)
            return
        logging.info("%s is in service already, as %s.", model_path, served)
        pushed = artifact_utils.get_single_instance(output_dict[standard_component_specs.PUSHED_MODEL_KEY])
        io_utils.copy_dir(model_path, pushed.uri)
        self._MarkPushed(pushed, pushed_destination=str(served), pushed_version=served.name)


class Pusher(tfx.components.Pusher):
    """TFX's node of that name, with the executor above."""

    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)
