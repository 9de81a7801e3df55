"""A small Transformer over the words of a text, trained from scratch: order and neighbors count."""

from __future__ import annotations

import typing

import keras
import tensorflow as tf
from keras import ops

from tfmm.pretrain import texts
from tfmm.pretrain.encoder import Features, not_as_ever, unit
from tfmm.pretrain.text_encoder import HashedTextEncoder

_WIDER = 4  # of a block's hidden layer, times D


class TextTransformer(HashedTextEncoder):
    """Words as sums of hashed tokens, positions, pre-normalized blocks, the sum over the words.

    A word is its own token and its character n-grams, hashed as those of the bag. Each block starts as zero, so that
    training begins at the bag of words.
    """

    def build_model(self) -> keras.Model:
        config = self.config
        keras.utils.set_random_seed(config.seed)
        shape = (config.text_words, texts.TOKENS_PER_WORD)
        tokens, weights = keras.Input(shape, dtype="int32", name="tokens"), keras.Input(shape, name="weights")
        initializer = keras.initializers.RandomNormal(stddev=config.dim**-0.5, seed=config.seed)
        vectors = keras.layers.Embedding(
            config.text_buckets + 1, config.dim, embeddings_initializer=initializer, name="token_embedding"
        )(tokens)
        is_word = ops.any(ops.not_equal(tokens, 0), axis=-1)  # [B, W]
        x = ops.einsum("bwt,bwtd->bwd", weights, vectors)
        places = ops.arange(config.text_words)[None] + ops.zeros_like(tokens[:, :, 0])
        x = x + keras.layers.Embedding(config.text_words, config.dim, "zeros", name="positions")(places)
        for number in range(config.text_layers):
            x = self._block(x, is_word, f"block_{number}")
        total = ops.sum(ops.where(is_word[:, :, None], x, ops.zeros_like(x)), axis=1)
        return keras.Model([tokens, weights], unit(total), name="text_transformer")

    def _block(self, x: typing.Any, is_word: typing.Any, name: str) -> typing.Any:
        dim, heads = self.config.dim, self.config.text_heads
        from_zero = {"kernel_initializer": "zeros"}
        y = keras.layers.LayerNormalization(name=f"{name}_attention_norm")(x)
        attention = keras.layers.MultiHeadAttention(heads, dim // heads, name=f"{name}_attention")
        # A text of no words attends to its padding, which the sum leaves out.
        y = attention(y, y, attention_mask=is_word[:, None, :])
        x = x + keras.layers.Dense(dim, **from_zero, name=f"{name}_attention_out")(y)
        y = keras.layers.LayerNormalization(name=f"{name}_norm")(x)
        y = keras.layers.Dense(_WIDER * dim, "gelu", name=f"{name}_hidden")(y)
        return x + keras.layers.Dense(dim, **from_zero, name=f"{name}_out")(y)

    def prepare(self, contents: tf.Tensor) -> tuple[Features, tf.Tensor]:
        config = self.config
        tokens, weights = texts.hash_words(contents, config.text_buckets, config.text_words, config.text_ngrams)
        return (tokens, weights), tf.reduce_any(tokens > 0, axis=[1, 2])

    def settings_of_vectors(self) -> dict[str, typing.Any]:
        named = ("text_buckets", "text_words", "text_heads", *not_as_ever(self.config))
        return {name: getattr(self.config, name) for name in named}
