"""That what Keras and TensorFlow have no public name for is still found: a moved name would silently give False."""

import keras
import tensorflow as tf

from tfmm.layers import compilation


class Asks(keras.layers.Layer):
    def __init__(self, question):
        super().__init__()
        self.question, self.answers = question, []

    def call(self, inputs):
        self.answers.append(self.question())
        return inputs


def test_shapes_are_derived_in_a_symbolic_call_alone():
    layer = Asks(compilation.is_symbolic)
    layer(keras.ops.ones((2, 3)))
    layer(keras.Input((3,)))
    tf.function(layer)(tf.ones((2, 3)))
    assert layer.answers == [False, True, False]
    assert not compilation.is_symbolic()


def test_xla_is_told_from_a_plain_graph():
    for jit_compile, expected in ((True, True), (False, False), (None, False)):
        layer = Asks(compilation.is_traced_for_xla)
        tf.function(layer, jit_compile=jit_compile)(tf.ones((2, 3)))
        assert set(layer.answers) == {expected}
    assert not compilation.is_traced_for_xla()


def test_a_function_within_a_compiled_one_is_traced_for_xla():
    layer = Asks(compilation.is_traced_for_xla)
    inner = tf.function(layer)
    tf.function(lambda x: inner(x), jit_compile=True)(tf.ones((2, 3)))
    assert set(layer.answers) == {True}
