"""The batch DAG: wiring of the library's stages, for every TFX runner."""

from tfmm import extras

extras.verify("pipeline", "tfx", "tensorflow_transform")
