"""tfmm: multimodal embeddings in click models, from raw logs to a served score.

Subpackages load at first use (`tfmm.layers.SimTierLayer`), so that `import tfmm` stays quick. A process that
loads a saved Keras model says `import tfmm.layers` first: that registers the layers with Keras.
"""

from __future__ import annotations

import importlib
import typing

__version__ = "0.1.0"

__all__ = ["__version__", "config", "features", "layers", "losses", "metrics", "presets", "testing"]

if typing.TYPE_CHECKING:
    from tfmm import config, features, layers, losses, metrics, presets, testing


def __getattr__(name: str) -> typing.Any:
    if name in __all__:
        return importlib.import_module(f"tfmm.{name}")
    raise AttributeError(f"module 'tfmm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
