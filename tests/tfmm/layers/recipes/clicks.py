"""What the recipes share: clicks, half of the users liking what they are shown, and the loader of TF Serving."""

import numpy as np

from tfmm.testing import execution

DIM, LENGTH = 16, 12


def make_data(rows: int = 512):
    """Returns [target, behaviors, mask] and the clicks."""
    rng = np.random.default_rng(0)
    target, behaviors = (rng.normal(size=shape) for shape in ((rows, DIM), (rows, LENGTH, DIM)))
    behaviors[::2] += target[::2, None]
    target, behaviors = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (target, behaviors))
    mask = rng.random((rows, LENGTH)) < 0.8
    return [target.astype("float32"), behaviors.astype("float32"), mask], (np.arange(rows) % 2 == 0) * 1.0


def by_name(inputs) -> dict[str, np.ndarray]:
    return dict(zip(("target", "behaviors", "behaviors_mask"), inputs, strict=True))


def score_in_cpp(path: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Loads a SavedModel with the loader of TF Serving and gives its only output."""
    (scores,) = execution.run_saved_model(path, inputs).values()
    return scores
