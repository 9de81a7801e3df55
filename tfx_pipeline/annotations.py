"""TFX's `component` and its annotations, for TFX and for a type checker alike.

TFX reads `Parameter[str]` from the signature of a function; what the function is given is a str.
"""

import typing

from tfx import v1 as tfx
from tfx.dsl.component.experimental import annotations as tfx_annotations

if typing.TYPE_CHECKING:
    _T = typing.TypeVar("_T")
    InputArtifact = typing.Annotated[_T, "input"]
    OutputArtifact = typing.Annotated[_T, "output"]
    Parameter = typing.Annotated[_T, "parameter"]
    BeamComponentParameter = typing.Annotated[_T, "pipeline"]

    def component(function: typing.Callable[..., None]) -> typing.Callable[..., typing.Any]:
        """Makes a node of a function."""

    def beam_component(function: typing.Callable[..., None]) -> typing.Callable[..., typing.Any]:
        """Makes a node of a function that is given a Beam pipeline."""

else:
    component = tfx.dsl.components.component
    beam_component = tfx.dsl.components.component(use_beam=True)
    InputArtifact = tfx.dsl.components.InputArtifact
    OutputArtifact = tfx.dsl.components.OutputArtifact
    Parameter = tfx.dsl.components.Parameter
    BeamComponentParameter = tfx_annotations.BeamComponentParameter
