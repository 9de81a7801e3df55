"""Clicks for the recipes: half of the users like what they are shown."""

import numpy as np

DIM, LENGTH = 16, 12


def make_data(rows: int = 512):
    """Returns [target, behaviors, mask] and the clicks."""
    rng = np.random.default_rng(0)
    target, behaviors = (rng.normal(size=shape) for shape in ((rows, DIM), (rows, LENGTH, DIM)))
    behaviors[::2] += target[::2, None]
    target, behaviors = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (target, behaviors))
    mask = rng.random((rows, LENGTH)) < 0.8
    return [target.astype("float32"), behaviors.astype("float32"), mask], (np.arange(rows) % 2 == 0) * 1.0
