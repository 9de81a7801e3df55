"""Texts on their way into an encoder: words, pairs of words and character n-grams, hashed."""

from __future__ import annotations

import functools
import typing

import tensorflow as tf

from tfmm.scl_config import CHARACTER_NGRAMS

MAX_TOKENS = 256
TOKENS_PER_WORD = 16  # the word and its first character n-grams, by `hash_words`
WORD_PAIR_WEIGHT = 0.5


def hash_texts(
    contents: tf.Tensor, buckets: int, ngrams: typing.Sequence[int] = CHARACTER_NGRAMS
) -> tuple[tf.Tensor, tf.Tensor]:
    """Hashes texts to weighted tokens, in a graph, on raw UTF-8.

    Letters are lowered; all but letters, digits, marks and pictographs separates words; each Chinese or
    Japanese character is a word. Invalid UTF-8 is read as separators.

    Args:
        contents: string [B], UTF-8.
        buckets: int, number of hash buckets.
        ngrams: int lengths of character n-grams.
    Returns:
        tokens int32 [B, T] in 1..buckets, 0 where padded, T at most 256 (words first, then pairs of
        neighbors, then the n-grams inside words, length by length); weights float32 [B, T]: 1 for a word,
        0.5 for a pair, 1 / sqrt(n) for each of the n n-grams of one length of a word, 0 for padding.

    >>> tokens, weights = hash_texts(tf.constant(["Red mug", ""]), 1000)
    >>> tokens.shape, [float(w) for w in weights[0, :3]], float(tf.reduce_sum(weights[1]))
    (TensorShape([2, 13]), [1.0, 1.0, 0.5], 0.0)
    """
    tokens, weights = _traced(_hash_texts, buckets, tuple(ngrams))(tf.ensure_shape(contents, [None]))
    return tokens, weights


def _hash_texts(contents: tf.Tensor, buckets: int, ngrams: tuple[int, ...]) -> tuple[tf.Tensor, tf.Tensor]:
    words, characters = _words(contents)
    pairs = tf.strings.ngrams(words, 2, separator=" ")
    tokens = [tf.strings.join(["w:", words]), tf.strings.join(["p:", pairs])]
    weights = [tf.ones_like(words, tf.float32), WORD_PAIR_WEIGHT * tf.ones_like(pairs, tf.float32)]
    for length in ngrams:
        found = tf.strings.ngrams(characters, length, separator="")
        per_word = tf.cast(found.row_lengths(axis=2), tf.float32)  # ragged [B, words]
        shares = tf.math.rsqrt(tf.maximum(per_word, 1.0))
        # Not tf.repeat or value_rowids, which hold words x the longest word's n-grams: of two long texts gigabytes.
        splits = found.values.row_splits
        word_of = tf.searchsorted(splits, tf.range(splits[-1]), side="right") - 1
        flat_shares = tf.gather(shares.flat_values, word_of)
        tokens.append(found.merge_dims(1, 2))
        weights.append(tf.RaggedTensor.from_row_splits(flat_shares, found.merge_dims(1, 2).row_splits))
    hashed = tf.ragged.map_flat_values(
        lambda t: tf.strings.to_hash_bucket_fast(t, buckets) + 1, tf.concat(tokens, axis=1)
    )
    ids = tf.cast(hashed.to_tensor(0)[:, :MAX_TOKENS], tf.int32)
    return ids, tf.concat(weights, axis=1).to_tensor(0.0)[:, :MAX_TOKENS]


def hash_words(
    contents: tf.Tensor, buckets: int, words: int, ngrams: typing.Sequence[int] = CHARACTER_NGRAMS
) -> tuple[tf.Tensor, tf.Tensor]:
    """Hashes texts word by word, by the same tokens as `hash_texts` but for the pairs.

    Args:
        contents: string [B], UTF-8.
        buckets: int, number of hash buckets.
        words: int W; later ones are left out.
        ngrams: int lengths of character n-grams.
    Returns:
        tokens int32 [B, W, 16] in 1..buckets, 0 where padded: each word, then its n-grams, of a long word the
        first; weights float32 [B, W, 16]: 1 for a word, 1 / sqrt(n) for each of the n n-grams of one length.

    >>> tokens, weights = hash_words(tf.constant(["Red mug", ""]), 1000, 4)
    >>> tokens.shape, tf.math.count_nonzero(tokens, axis=2).numpy().tolist()
    (TensorShape([2, 4, 16]), [[6, 6, 0, 0], [0, 0, 0, 0]])
    """
    tokens, weights = _traced(_hash_words, buckets, words, tuple(ngrams))(tf.ensure_shape(contents, [None]))
    return tokens, weights


@functools.cache
def _traced(function: typing.Callable[..., typing.Any], *settings: typing.Any) -> typing.Any:
    """Returns a function of contents alone, which TensorFlow traces once a process, and not for every encoder."""
    signature = [tf.TensorSpec([None], tf.string)]
    return tf.function(lambda contents: function(contents, *settings), input_signature=signature)


def _hash_words(contents: tf.Tensor, buckets: int, words: int, ngrams: tuple[int, ...]) -> tuple[tf.Tensor, tf.Tensor]:
    all_words, all_characters = _words(contents)
    first = all_words[:, :words]
    characters = all_characters[:, :words, :TOKENS_PER_WORD]
    flat = tf.strings.join(["w:", first])[:, :, None]
    tokens, weights = [flat], [tf.ones_like(flat, tf.float32)]
    for length in ngrams:
        found = tf.strings.ngrams(characters, length, separator="")  # ragged [B, words, n-grams]
        count = tf.maximum(tf.cast(found.row_lengths(axis=2), tf.float32), 1.0)
        tokens.append(found)
        weights.append(tf.ones_like(found, tf.float32) * tf.math.rsqrt(count)[:, :, None])
    hashed = tf.ragged.map_flat_values(
        lambda t: tf.strings.to_hash_bucket_fast(t, buckets) + 1, tf.concat(tokens, axis=2)
    )
    shape = [None, words, TOKENS_PER_WORD]
    return tf.cast(hashed.to_tensor(0, shape=shape), tf.int32), tf.concat(weights, axis=2).to_tensor(0.0, shape=shape)


def _words(contents: tf.Tensor) -> tuple[tf.RaggedTensor, tf.RaggedTensor]:
    """Returns the words of texts, string [B, words], and their characters between < and >, [B, words, characters]."""
    text = tf.strings.unicode_transcode(contents, "UTF-8", "UTF-8", errors="replace", replacement_char=32)
    text = tf.strings.lower(text, encoding="utf-8")
    text = tf.strings.regex_replace(text, r"[^\p{L}\p{N}\p{M}\p{So}]+", " ")
    text = tf.strings.regex_replace(text, r"(\p{Han}|\p{Hiragana}|\p{Katakana})", r" \1 ")
    words = tf.strings.split(text)
    return words, tf.strings.unicode_split(tf.strings.join(["<", words, ">"]), "UTF-8")
