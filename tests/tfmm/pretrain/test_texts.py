"""Text hashing in the graph, on raw UTF-8."""

import numpy as np
import pytest
import tensorflow as tf

from tfmm.config import SCLConfig
from tfmm.pretrain.encoders import make_encoder
from tfmm.pretrain.texts import MAX_TOKENS, hash_texts, hash_words

BUCKETS = 2**20


def bag(text):
    """The text's tokens with their summed weights."""
    tokens, weights = hash_texts(tf.constant([text]), BUCKETS)
    found = {}
    for token, weight in zip(tokens.numpy()[0].tolist(), weights.numpy()[0].tolist()):
        if token:
            found[token] = round(found.get(token, 0.0) + weight, 5)
    return found


def test_case_and_punctuation_do_not_matter():
    assert bag("Red MUG!") == bag("red,  mug") != bag("red jug")
    assert bag("ÉCOLE") == bag("école")


def test_weights_by_hand():
    """ "abc": the word 1; <ab abc bc> each 1/sqrt(3); <abc abc> each 1/sqrt(2)."""
    tokens, weights = hash_texts(tf.constant(["abc"]), BUCKETS)
    np.testing.assert_allclose(weights[0], [1.0] + [3**-0.5] * 3 + [2**-0.5] * 2, rtol=1e-6)
    assert len(set(tokens.numpy()[0].tolist())) == 6


def test_lengths_of_ngrams_are_those_that_are_named():
    tokens, weights = hash_texts(tf.constant(["abc"]), BUCKETS, (2,))
    np.testing.assert_allclose(weights[0], [1.0] + [4**-0.5] * 4, rtol=1e-6)  # <a ab bc c>
    assert tokens.shape == (1, 5) and hash_texts(tf.constant(["abc"]), BUCKETS, ())[0].shape == (1, 1)
    plain, longer = (make_encoder(SCLConfig(modality="text", dim=4, text_ngrams=n)) for n in ((3, 4), (2, 3)))
    assert plain.prepare(tf.constant(["abc"]))[0][0].shape == (1, 6)
    assert longer.prepare(tf.constant(["abc"]))[0][0].shape == (1, 8)
    assert plain.version() != longer.version()  # of equal weights
    listed = SCLConfig(modality="text", dim=4, text_ngrams=[3, 4])  # as a file has it
    assert listed == plain.config and make_encoder(listed).version() == plain.version()
    assert "text_ngrams" not in plain.settings_of_vectors()  # whose version is that of before
    words, _ = hash_words(tf.constant(["abc"]), BUCKETS, 2, (2,))
    assert (words.numpy()[0, 0] > 0).sum() == 5 and set(words.numpy()[0, 0, :5]) == set(tokens.numpy()[0])


@pytest.mark.parametrize("lengths", [(0,), (3, 3), (9,), (2.5,), 3, "34"])
def test_lengths_of_ngrams_that_cannot_be(lengths):
    with pytest.raises(ValueError, match=r"`text_ngrams` must be a list of different lengths of 1\.\.8"):
        SCLConfig(modality="text", text_ngrams=lengths)


def test_words_of_languages_without_spaces_share_tokens():
    assert set(bag("木椅子")) & set(bag("椅子です"))
    assert set(bag("🍎 phone")) & set(bag("🍎"))


def test_nothing_to_read_is_all_padding():
    tokens, weights = hash_texts(tf.constant(["", " ... ", b"\xff\xfe", "ok"]), BUCKETS)
    assert not tokens.numpy()[:3].any() and not weights.numpy()[:3].any()
    assert tokens.numpy()[3].any()


def test_rows_do_not_depend_on_their_neighbors():
    alone, _ = hash_texts(tf.constant(["red mug"]), BUCKETS)
    together, _ = hash_texts(tf.constant(["a much longer text of many words", "red mug"]), BUCKETS)
    assert sorted(alone.numpy()[0][alone.numpy()[0] > 0]) == sorted(together.numpy()[1][together.numpy()[1] > 0])


def test_long_text_is_cut_and_tokens_stay_in_range():
    tokens, weights = hash_texts(tf.constant([" ".join(f"word{i}" for i in range(500))]), 100)
    assert tokens.shape == weights.shape == (1, MAX_TOKENS)
    assert tokens.numpy().min() >= 1 and tokens.numpy().max() <= 100


def test_no_text_at_all():
    tokens, weights = hash_texts(tf.constant([], tf.string), BUCKETS)
    assert tokens.shape[0] == weights.shape[0] == 0
