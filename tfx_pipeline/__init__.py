"""The batch DAG: wiring of the library's stages, for every TFX runner."""

import typing
import warnings

from tfmm import extras

extras.verify("pipeline", "tfx", "tensorflow_transform")
# Under older Pythons each Google library that TFX imports says that it goes without updates: thirty lines a run.
warnings.filterwarnings("ignore", category=FutureWarning, module="google")


def __getattr__(name: str) -> typing.Any:
    """Gives the types of artifacts, as which Kubeflow's entry point finds them by their names."""
    if name[:1].isupper():
        from tfx_pipeline import artifact_types

        if hasattr(artifact_types, name):
            return getattr(artifact_types, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
