"""Where an input of a click model comes from, a column of a table: what an error about the input says beside it."""

from __future__ import annotations

import contextlib
import pathlib
import re
import typing

import tensorflow as tf

from serving.model_server.errors import INVALID_ARGUMENT, ServingError
from tfmm import config as config_lib
from tfmm.export import saved_model
from tfmm.features import FeatureSet


def of_version(version_dir: str | pathlib.Path) -> dict[str, str]:
    """Returns, per input of a version, the column that it is; {} where its manifest does not say, or there is none.

    Args:
        version_dir: of any SavedModel.
    """
    try:
        declared = saved_model.read_manifest(version_dir)["feature_set"]
        columns = config_lib.from_dict(FeatureSet, declared).columns
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # of another tfmm, or of nobody's
        return {}
    return {
        column.name: f"{column.feature.table}.{column.feature.column}"
        + (f" of the sequence {column.sequence.name}" if column.sequence else "")
        for column in columns
    }


@contextlib.contextmanager
def told(sources: typing.Mapping[str, str]) -> typing.Iterator[None]:
    """Adds to an INVALID_ARGUMENT of the block what columns the inputs are that it is about."""
    try:
        yield
    except ServingError as error:
        said = _in_words(sources, error.inputs) if error.code == INVALID_ARGUMENT else ""
        if not said:
            raise
        raise ServingError(error.code, f"{error.message} {said}", error.http, error.inputs) from error
    except tf.errors.InvalidArgumentError as error:  # of a graph: it has the name in its text
        said = _in_words(sources, re.findall(r"`(\w+)`", error.message))
        if not said:
            raise
        raise tf.errors.InvalidArgumentError(error.node_def, error.op, f"{error.message} {said}") from error


def _in_words(sources: typing.Mapping[str, str], names: typing.Collection[str]) -> str:
    known = [f"{name} is {sources[name]}" for name in sorted(set(names)) if name in sources]
    return f"In the data, {', '.join(known)}." if known else ""
