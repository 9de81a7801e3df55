"""Two devices train as one does at the same global batch: encoders, MAKE and click models."""

import json

import numpy as np
import pytest

WEIGHTS = ("encoder", "info_nce", "key_encoder", "memory_bank", "model")


def read(folder):
    """The last state, by name, and the losses of each epoch."""
    (path,) = folder.glob("checkpoints/*/state.npz")
    with np.load(path) as file:
        state = {name: file[name] for name in file.files if name != "__meta__"}
    losses = [
        [value for name, value in line.items() if name.startswith("loss") or name in ("info_nce", "triplet")]
        for line in json.loads((folder / "history.json").read_text())
    ]
    return state, np.array(losses)


def assert_same_training(one, other, tolerance):
    """Loss and first gradient to 1e-5, weights after about 50 steps to 1e-3: sums are made in another order."""
    (state, losses), (found, found_losses) = read(one / "first"), read(other / "first")
    np.testing.assert_allclose(found_losses, losses, rtol=1e-5, atol=1e-7)
    moments = [name for name in state if name.startswith("optimizer/") and state[name].ndim]
    assert moments
    for name in moments:  # Adam's: a share of the first gradient, and of its square, which differs by twice as much
        size = np.abs(state[name]).max(initial=1e-9)
        np.testing.assert_allclose(found[name] / size, state[name] / size, atol=2.0 * tolerance, err_msg=name)
    (state, losses), (found, found_losses) = read(one / "later"), read(other / "later")
    np.testing.assert_allclose(found_losses, losses, rtol=1e-3, atol=1e-5)
    for name in state:
        if name.split("/")[0] in WEIGHTS:
            np.testing.assert_allclose(found[name], state[name], atol=1e-3, err_msg=name)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", ["text", "image", "make", "ctr"])
def test_two_devices_train_as_one(start_training, tmp_path, name):
    process = start_training(tmp_path, "one,mirrored", name, devices=2)
    _, errors = process.communicate()
    assert process.returncode == 0, errors[-3000:]
    # Statistics of a batch are float32 sums of 12,288 pixels: one device itself is as far off where rows change places.
    tolerance = 5e-5 if name == "image" else 1e-5
    assert_same_training(tmp_path / "one" / name, tmp_path / "mirrored" / name, tolerance)
