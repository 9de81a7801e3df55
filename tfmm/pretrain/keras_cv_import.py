"""keras-cv, on Keras 3, whoever else has imported what."""

from __future__ import annotations

import importlib
import typing

import tensorflow as tf

from tfmm import extras


def load_keras_cv() -> typing.Any:
    """Returns keras-cv, on Keras 3: it takes what `tf.keras` is when it is imported, and TFX makes that Keras 2."""
    before = tf.keras
    tf.keras = importlib.import_module("keras._tf_keras.keras")
    try:
        return extras.require("keras_cv", "vision")
    finally:
        tf.keras = before
