"""Tests of the MAKE model and its loss."""

import numpy as np
import pytest
import tensorflow as tf

from tfmm import config as config_lib
from tfmm.index import encode
from tfmm.make import model as model_lib

CONFIG = config_lib.MAKEConfig(attention_units=(6,), units=(8, 6, 4))


def draw_inputs(dim=5, batch=4, length=3, modality="image"):
    generator = np.random.default_rng(0)
    inputs = {}
    for side, shape in (("target", (batch,)), ("behavior", (batch, length))):
        rows, scales = encode.quantize(generator.normal(size=(int(np.prod(shape)), dim)))
        inputs[f"{modality}_{side}_rows"] = rows.reshape(*shape, dim)
        inputs[f"{modality}_{side}_scales"] = scales.reshape(shape)
        inputs[f"{modality}_{side}_mask"] = generator.random(shape) > 0.3
    return inputs


def test_loss_is_equation_5_averaged_over_rows_that_count():
    logit, label, mask = [0.3, -1.2, 2.0, 50.0], [1, 0, 0, 1], [True, True, True, False]
    p = 1 / (1 + np.exp(-np.array(logit[:3])))
    expected = np.mean([-np.log(p[0]), -np.log(1 - p[1]), -np.log(1 - p[2])])
    np.testing.assert_allclose(model_lib.loss(tf.constant(logit), label, mask), expected, rtol=1e-6)


def test_loss_of_no_rows_is_zero_and_of_extreme_logits_finite():
    assert float(model_lib.loss(tf.constant([3.0]), [1], [False])) == 0.0
    assert float(model_lib.loss(tf.constant([-200.0]), [1], [True])) == 200.0


def test_loss_with_rates_is_that_of_the_log_as_sampled():
    """Of logit z the log that keeps a share r of the negatives shows sigmoid(z - log r) = p / (p + r (1 - p))."""
    logit, label, mask = tf.constant([0.3, -1.2, 2.0, 50.0]), [1, 0, 0, 1], [True, True, True, False]
    rate = np.array([0.1, 0.1, 0.5, 0.0], np.float32)  # 0: of a filler
    p = 1 / (1 + np.exp(-logit.numpy()[:3]))
    sampled = p / (p + rate[:3] * (1 - p))
    expected = np.array([-np.log(sampled[0]), -np.log(1 - sampled[1]), -np.log(1 - sampled[2])])
    found = model_lib.loss(logit, label, mask, negative_rate=rate)
    np.testing.assert_allclose(found, expected.mean(), rtol=1e-6)
    weight = np.array([2.0, 0.0, 3.0, 7.0], np.float32)
    found = model_lib.loss(logit, label, mask, weight, rate)
    np.testing.assert_allclose(found, (2 * expected[0] + 3 * expected[2]) / 5, rtol=1e-6)
    for one in (0.5, tf.fill([4], 0.5)):  # of the run, or by row
        found = model_lib.loss(logit, label, mask, negative_rate=one)
        sampled = p / (p + 0.5 * (1 - p))
        np.testing.assert_allclose(found, -np.log([sampled[0], *(1 - sampled[1:])]).mean(), rtol=1e-6)


def test_rate_moves_the_logit_that_is_learned_by_its_log():
    """At p / (1 - p) = r times the sampled odds, the gradient of the sampled log's mean is 0."""
    clicks, negatives, rate = 30, 20, 0.1
    logit = tf.Variable(np.log(clicks / (negatives / rate)), dtype=tf.float32)
    label = tf.constant([1] * clicks + [0] * negatives)
    with tf.GradientTape() as tape:
        found = model_lib.loss(tf.fill([50], logit), label, tf.fill([50], True), negative_rate=rate)
    assert float(tape.gradient(found, logit)) == pytest.approx(0.0, abs=1e-6)


def test_weight_of_two_is_the_row_twice():
    logit, label, mask = tf.constant([0.3, -1.2, 2.0]), tf.constant([1, 0, 0]), tf.constant([True, True, True])
    twice = [tf.gather(values, [0, 0, 1, 2, 2]) for values in (logit, label, mask)]
    found = model_lib.loss(logit, label, mask, tf.constant([2.0, 1.0, 2.0]), 0.1)
    np.testing.assert_allclose(found, model_lib.loss(*twice, negative_rate=0.1), rtol=1e-6)
    ones = model_lib.loss(logit, label, mask, tf.ones([3]), tf.ones([3]))
    np.testing.assert_allclose(ones, model_lib.loss(logit, label, mask), rtol=1e-7)
    assert float(model_lib.loss(logit, label, mask, tf.zeros([3]))) == 0.0
    small = model_lib.loss(logit, label, mask, tf.constant([2e-9, 1e-9, 2e-9]), 0.1)
    np.testing.assert_allclose(small, found, rtol=1e-6)


def test_each_modality_has_its_own_logit():
    model = model_lib.MAKEModel(CONFIG, {"image": 5, "text": 3})
    model.build()
    inputs = {**draw_inputs(5), **draw_inputs(3, modality="text")}
    logits = model(inputs)
    shapes = {name: tuple(value.shape) for name, value in logits.items()}
    assert shapes == {"image_behavior": (4,), "text_behavior": (4,)}
    changed = model({**inputs, "text_target_rows": -inputs["text_target_rows"]})
    np.testing.assert_array_equal(changed["image_behavior"], logits["image_behavior"])
    assert not np.allclose(changed["text_behavior"], logits["text_behavior"])


def test_saved_model_loads_equal(tmp_path):
    model = model_lib.MAKEModel(CONFIG, {"image": 5})
    model.build()
    model_lib.save_model(model, tmp_path)
    loaded = model_lib.load_model(tmp_path)
    np.testing.assert_array_equal(model(draw_inputs())["image_behavior"], loaded(draw_inputs())["image_behavior"])
    assert loaded.settings == CONFIG


def test_bad_input_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`dims` must name at least one modality"):
        model_lib.MAKEModel(CONFIG, {})
    with pytest.raises(FileNotFoundError, match=r"manifest.json is missing"):
        model_lib.load_model(tmp_path)
