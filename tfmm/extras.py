"""Optional dependencies: a missing one is answered with the pip line that installs it."""

from __future__ import annotations

import importlib
import importlib.util
import types

EXTRAS = ("all", "client", "dev", "gpu", "pipeline", "serving", "stream", "tfrs", "vision")

# The extra that brings a top-level module; where two do, the one whose users meet the module first.
EXTRA_OF_MODULE = {
    "PIL": "vision",
    "apache_beam": "stream",
    "confluent_kafka": "stream",
    "grpc": "serving",
    "httpx": "serving",
    "jinja2": "pipeline",
    "keras_cv": "vision",
    "matplotlib": "pipeline",
    "ml_metadata": "pipeline",
    "orjson": "serving",
    "pandera": "pipeline",
    "prometheus_client": "serving",
    "psutil": "pipeline",
    "redis": "stream",
    "starlette": "serving",
    "tensorflow_recommenders": "tfrs",
    "tensorflow_serving": "serving",
    "tensorflow_transform": "pipeline",
    "tf_keras": "tfrs",
    "tfmm_client": "serving",
    "tfx": "pipeline",
    "uvicorn": "serving",
}


class MissingExtraError(ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


def require(module: str, extra: str) -> types.ModuleType:
    """Imports a module that one of tfmm's extras brings.

    Args:
        module: dotted name, as in `import <module>`.
        extra: the extra that installs it, one of `EXTRAS`.
    Returns:
        The imported module.
    Raises:
        MissingExtraError: the module is not installed. An error inside an installed module is passed on.

    >>> require("json", "dev").dumps([1])
    '[1]'
    >>> require("keras_cv_is_not_here", "vision")
    Traceback (most recent call last):
    ...
    tfmm.extras.MissingExtraError: `keras_cv_is_not_here` is not installed. Run: pip install "tfmm[vision]"
    """
    _check_extra(extra)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(error.name + ".")):
            raise
        raise _missing(module, extra) from error


def verify(extra: str, *modules: str) -> None:
    """Checks that top-level modules are installed, without importing them.

    Raises:
        MissingExtraError: one is not; the message names the extra.
    """
    _check_extra(extra)
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise _missing(module, extra)


def explain(error: ImportError) -> str | None:
    """Returns the answer to a failed import of an optional dependency, or None where no extra brings it.

    >>> explain(ModuleNotFoundError("No module named 'apache_beam'", name="apache_beam"))
    '`apache_beam` is not installed. Run: pip install "tfmm[stream]"'
    """
    if isinstance(error, MissingExtraError):
        return str(error)
    module = (error.name or "").split(".")[0]
    if not isinstance(error, ModuleNotFoundError) or module not in EXTRA_OF_MODULE:
        return None
    return str(_missing(module, EXTRA_OF_MODULE[module]))


def _check_extra(extra: str) -> None:
    if extra not in EXTRAS:
        raise ValueError(f"`extra` must be one of {', '.join(EXTRAS)}. Received: {extra!r}.")


def _missing(module: str, extra: str) -> MissingExtraError:
    return MissingExtraError(f'`{module}` is not installed. Run: pip install "tfmm[{extra}]"', name=module)
