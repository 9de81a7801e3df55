"""Imports of optional dependencies: a missing one is answered with the pip line that installs it."""

from __future__ import annotations

import importlib
import types

EXTRAS = ("all", "dev", "gpu", "pipeline", "serving", "stream", "tfrs", "vision")


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
    if extra not in EXTRAS:
        raise ValueError(f"`extra` must be one of {', '.join(EXTRAS)}. Received: {extra!r}.")
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(error.name + ".")):
            raise
        raise MissingExtraError(f'`{module}` is not installed. Run: pip install "tfmm[{extra}]"',
                                name=error.name) from error
