"""The batch DAG: wiring of the library's stages, for every TFX runner."""

import warnings

from tfmm import extras

extras.verify("pipeline", "tfx", "tensorflow_transform")
# Under older Pythons each Google library that TFX imports says that it goes without updates: thirty lines a run.
warnings.filterwarnings("ignore", category=FutureWarning, module="google")
