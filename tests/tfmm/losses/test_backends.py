"""Streaming InfoNCE on the backend at hand (KERAS_BACKEND): the dense loss and gradients, compiled where it can."""

import functools

import keras
import numpy as np
import pytest
from keras import ops

from tfmm.losses import InfoNCE, TripletLoss, info_nce


def unit(seed, rows, dim=8):
    vectors = np.random.default_rng(seed).normal(size=(rows, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def gradients(function, arrays):
    """Gradients of a scalar function by every argument, from the backend's own autodiff."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return jax.jit(jax.grad(function, argnums=tuple(range(len(arrays)))))(*arrays)
    if backend == "torch":
        import torch

        tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
        function(*tensors).backward()
        return [tensor.grad.numpy() for tensor in tensors]
    import tensorflow as tf

    tensors = [tf.constant(array) for array in arrays]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        value = tf.function(function)(*tensors)
    return tape.gradient(value, tensors)


@pytest.mark.parametrize("temperature", [0.07, 0.012])
def test_streaming_gives_the_dense_gradients(temperature):
    queries, positives, bank = unit(0, 6), unit(1, 6), unit(2, 53)
    ids, bank_ids, filled = np.arange(6) % 4, np.arange(53) % 7, np.arange(53) < 40
    computed = {}
    for chunk_size in (None, 10):

        def loss(queries, positives, log_temperature, chunk_size=chunk_size):
            return ops.sum(
                info_nce(
                    queries, positives, bank, temperature=ops.exp(log_temperature), in_batch_negatives=True,
                    positive_ids=ids, memory_bank_ids=bank_ids, memory_bank_mask=filled,
                    chunk_size=chunk_size))  # fmt: skip

        computed[chunk_size] = gradients(loss, [queries, positives, np.float32(np.log(temperature))])
    for streamed, dense in zip(computed[10], computed[None]):
        # float32: gradients are weights times 1 / temperature, up to 83, and summed over 6 rows
        np.testing.assert_allclose(streamed, dense, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("loss_of", [functools.partial(info_nce, temperature=0.1), InfoNCE(temperature=0.1)])
def test_ids_that_the_backend_would_cut_are_refused_or_compared_whole(loss_of):
    queries, bank = unit(0, 3), unit(1, 12)
    ids = {"positive_ids": 2**40 + np.arange(3), "memory_bank_ids": 7 * 2**40 + np.arange(12)}
    try:
        loss = loss_of(queries, queries, memory_bank=bank, **ids)
    except ValueError as error:
        assert keras.backend.backend() == "jax" and "`positive_ids` must fit 32 bits on JAX" in str(error)
    else:  # no id in common
        expected = loss_of(queries, queries, memory_bank=bank)
        np.testing.assert_allclose(ops.convert_to_numpy(loss), ops.convert_to_numpy(expected), rtol=1e-6)


def test_layers_save_with_a_model(tmp_path):
    inputs = {
        name: keras.Input((8,), name=name) for name in ("queries", "positives", "negatives", "memory_bank")
    }
    info_nce_layer = InfoNCE(temperature=0.2, chunk_size=3)
    losses = [
        info_nce_layer(inputs["queries"], inputs["positives"], memory_bank=inputs["memory_bank"]),
        TripletLoss(margin=0.4)(inputs["queries"], inputs["positives"], inputs["negatives"]),
    ]
    assert [loss.shape for loss in losses] == [(), ()]
    model = keras.Model(inputs, losses)
    info_nce_layer.log_temperature.assign(np.log(0.3))
    values = {name: unit(i, 7 if name == "memory_bank" else 5) for i, name in enumerate(inputs)}
    expected = [float(ops.convert_to_numpy(loss)) for loss in model(values)]
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert [float(ops.convert_to_numpy(loss)) for loss in again(values)] == pytest.approx(expected, rel=1e-6)
