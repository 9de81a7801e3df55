"""InfoNCE: by hand, against a loop transcribed from equation 1, its masks, its gradients and its errors."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmm.losses import InfoNCE, info_nce
from tfmm.losses.checks import require_unit_vectors


def unit(rng, rows, dim):
    vectors = rng.normal(size=(rows, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def equation_1(queries, positives, bank, temperature, keep):
    """The formula, one query at a time in float64; keep[i] lists the slots of the bank that count for i."""
    losses = []
    for i, (query, positive) in enumerate(zip(queries.astype(float), positives.astype(float))):
        own = math.exp(query @ positive / temperature)
        losses.append(-math.log(own / (own + sum(math.exp(query @ bank[k] / temperature) for k in keep[i]))))
    return np.array(losses)


@pytest.fixture
def vectors():
    rng = np.random.default_rng(3)
    return unit(rng, 6, 8), unit(rng, 6, 8), unit(rng, 21, 8)


def test_equal_logits_give_log_of_one_plus_k():
    query = np.array([[1.0, 0.0]], np.float32)
    loss = info_nce(query, query, np.repeat(query, 196, axis=0), temperature=0.07)
    assert float(loss[0]) == pytest.approx(math.log(1 + 196), rel=1e-6)


def test_agrees_with_equation_1(vectors):
    queries, positives, bank = vectors
    expected = equation_1(queries, positives, bank, 0.07, [range(21)] * 6)
    # float32 logits up to 14 carry about 1e-6 each
    np.testing.assert_allclose(info_nce(queries, positives, bank, temperature=0.07), expected, rtol=1e-5)


def test_temperature_inside_exp_does_not_cancel(vectors):
    warm, cold = (np.asarray(info_nce(*vectors, temperature=t)) for t in (1.0, 0.1))
    assert np.abs(warm - cold).min() > 0.01


def test_in_batch_negatives_stand_beside_the_bank(vectors):
    queries, positives, bank = vectors
    everything = np.concatenate([bank, positives])
    keep = [[k for k in range(27) if k != 21 + i] for i in range(6)]
    expected = equation_1(queries, positives, everything, 0.2, keep)
    loss = info_nce(queries, positives, bank, temperature=0.2, in_batch_negatives=True)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_in_batch_alone_equals_softmax_cross_entropy(vectors):
    queries, positives, _ = vectors
    logits = queries @ positives.T / 0.2
    expected = tf.nn.sparse_softmax_cross_entropy_with_logits(np.arange(6), logits)
    loss = info_nce(queries, positives, temperature=0.2, in_batch_negatives=True)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_false_negatives_and_unfilled_slots_are_left_out(vectors):
    queries, positives, bank = vectors
    ids, bank_ids = np.array([1, 2, 3, 1, 5, 6]), np.arange(21) % 9
    filled = np.arange(21) < 17
    bank[~filled] = np.nan
    positive_and_bank = np.concatenate([np.where(filled[:, None], bank, 0.0), positives])
    keep = [
        [k for k in range(17) if bank_ids[k] != ids[i]] + [21 + j for j in range(6) if ids[j] != ids[i]]
        for i in range(6)
    ]
    expected = equation_1(queries, positives, positive_and_bank, 0.3, keep)
    loss = info_nce(
        queries, positives, np.where(filled[:, None], bank, 0.0), temperature=0.3, in_batch_negatives=True,
        positive_ids=ids, memory_bank_ids=bank_ids, memory_bank_mask=filled)  # fmt: skip
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_row_without_negatives_has_loss_and_gradient_zero(vectors):
    queries, positives, bank = (tf.Variable(v) for v in vectors)
    with tf.GradientTape() as tape:
        loss = info_nce(queries, positives, bank, temperature=0.07, memory_bank_mask=np.zeros(21, bool))
    assert np.all(loss == 0.0)
    np.testing.assert_array_equal(tape.gradient(loss, queries), np.zeros((6, 8)))


def test_gradients_agree_with_finite_differences(vectors):
    queries, positives, bank = (tf.constant(v) for v in vectors)
    log_temperature = tf.constant(math.log(0.2))

    def loss_of(q, p, t):
        return tf.reduce_sum(info_nce(q, p, bank, temperature=tf.exp(t), in_batch_negatives=True))

    theory, numeric = tf.test.compute_gradient(loss_of, [queries, positives, log_temperature], delta=1e-2)
    for computed, measured in zip(theory, numeric):
        # central differences of step 0.01 in float32
        np.testing.assert_allclose(computed, measured, atol=2e-3 * np.abs(measured).max())
        assert np.abs(computed).max() > 0.01


def test_memory_bank_gets_no_gradient(vectors):
    queries, positives, bank = (tf.Variable(v) for v in vectors)
    with tf.GradientTape() as tape:
        loss = info_nce(queries, positives, bank, temperature=0.07)
    assert tape.gradient(loss, bank) is None


def test_bfloat16_bank_stays_close(vectors):
    queries, positives, bank = vectors
    exact = info_nce(queries, positives, bank, temperature=0.07)
    stored = info_nce(queries, positives, tf.cast(bank, tf.bfloat16), temperature=0.07)
    np.testing.assert_allclose(stored, exact, atol=0.02)  # each of 8 values to 2^-9, over the temperature
    multiplied = info_nce(queries, positives, bank, temperature=0.07, gemm_dtype="bfloat16")
    assert multiplied.dtype == tf.float32
    np.testing.assert_allclose(multiplied, exact, atol=0.06)  # a logit of up to 14 to 2^-9


@pytest.mark.parametrize("temperature", [0.07, 0.012])
def test_streaming_gives_the_dense_loss_and_gradients(vectors, temperature):
    rng = np.random.default_rng(0)
    ids, bank_ids, filled = rng.integers(0, 9, 6), rng.integers(0, 9, 21), rng.random(21) < 0.8
    computed = {}
    for chunk_size in (None, 4):
        queries, positives, log_temperature = (tf.Variable(v) for v in (*vectors[:2], math.log(temperature)))
        with tf.GradientTape() as tape:
            loss = info_nce(
                queries, positives, vectors[2], temperature=tf.exp(log_temperature), in_batch_negatives=True,
                positive_ids=ids, memory_bank_ids=bank_ids, memory_bank_mask=filled,
                chunk_size=chunk_size)  # fmt: skip
        computed[chunk_size] = [loss, *tape.gradient(loss, [queries, positives, log_temperature])]
    for streamed, dense in zip(computed[4], computed[None]):
        # float32: gradients are weights times 1 / temperature, up to 83
        np.testing.assert_allclose(streamed, dense, rtol=1e-4, atol=1e-4)


def test_layer_learns_its_temperature_within_the_range(vectors):
    layer = InfoNCE(temperature=0.011)
    optimizer = keras.optimizers.SGD(100.0)
    queries, positives, bank = vectors
    with tf.GradientTape() as tape:
        loss = layer(queries, positives, memory_bank=bank)
    gradient = tape.gradient(loss, layer.trainable_variables)
    assert float(gradient[0]) != 0.0
    optimizer.apply(gradient, layer.trainable_variables)
    assert math.exp(float(layer.log_temperature.value)) == pytest.approx(1.0)  # clipped at the top
    assert float(layer(queries, queries, memory_bank=bank)) >= 0.0


def test_layer_round_trips_its_config_and_ignores_the_policy(vectors):
    config = {"temperature": 0.1, "learnable": False, "in_batch_negatives": True, "min_temperature": 0.05,
              "max_temperature": 0.5, "chunk_size": 5, "gemm_dtype": "bfloat16", "check": True}  # fmt: skip
    layer = InfoNCE(**config, dtype="mixed_bfloat16")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert {name: again.get_config()[name] for name in config} == config
    assert again.trainable_variables == [] or not again.trainable
    queries, positives, bank = vectors
    loss = again(queries, positives, memory_bank=bank)
    assert loss.dtype == tf.float32
    expected = info_nce(queries, positives, bank, temperature=0.1, in_batch_negatives=True)
    assert float(loss) == pytest.approx(float(tf.reduce_mean(expected)), rel=1e-3)  # float16 products


def test_check_mode_refuses_nan_and_other_lengths(vectors):
    queries, positives, bank = vectors
    layer = InfoNCE(check=True)
    with pytest.raises(ValueError, match=r"`positives` must be L2-normalized.*row 0 of length 2"):
        layer(queries, 2 * positives, memory_bank=bank)
    bank[4] = np.nan
    with pytest.raises(ValueError, match=r"`memory_bank` must be L2-normalized.*row 4 of length nan"):
        layer(queries, positives, memory_bank=bank)
    require_unit_vectors("memory_bank", bank, np.arange(21) != 4)


def test_check_mode_in_a_compiled_step_names_the_way_out(vectors):
    layer = InfoNCE(check=True)
    with pytest.raises(ValueError, match=r"`check=True` reads the values of `queries`.*run_eagerly=True"):
        tf.function(lambda *each: layer(each[0], each[1], memory_bank=each[2]))(*vectors)


def test_ids_of_two_integer_types_are_compared_bit_for_bit(vectors):
    options = {"temperature": 0.1, "chunk_size": 4}
    positive_ids = 2**60 + np.arange(6, dtype=np.uint64)
    bank_ids = 2**60 + 10 + np.arange(21)  # float32, and float64, would take them for equal
    loss = info_nce(*vectors, positive_ids=positive_ids, memory_bank_ids=bank_ids, **options)
    np.testing.assert_allclose(loss, info_nce(*vectors, **options), rtol=1e-6)
    bank_ids[3] = 2**60 + 5
    changed = info_nce(*vectors, positive_ids=positive_ids, memory_bank_ids=bank_ids, **options)
    assert list(np.asarray(changed) < np.asarray(loss)) == [False] * 5 + [True]


def test_gradient_is_right_where_bank_and_batch_weigh_the_same(vectors):
    queries, positives = tf.constant(vectors[0][:2]), tf.constant(vectors[1][:2])

    def gradient(**negatives):
        with tf.GradientTape() as tape:
            tape.watch(queries)
            loss = tf.reduce_sum(info_nce(queries, positives, temperature=0.2, **negatives))
        return tape.gradient(loss, queries)

    own = {"positive_ids": np.arange(2), "memory_bank_ids": np.arange(2)}
    twice = gradient(memory_bank=positives, in_batch_negatives=True, **own)
    both = tf.concat([positives, positives], axis=0)
    dense = gradient(memory_bank=both, positive_ids=np.arange(2), memory_bank_ids=np.arange(4) % 2)
    np.testing.assert_allclose(twice, dense, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"memory_bank": None}, r"at least one negative \(K >= 1\).*set `in_batch_negatives=True`"),
        ({"memory_bank": np.zeros((0, 8), np.float32)}, "Received: K = 0"),
        ({"memory_bank": np.zeros((3, 7), np.float32)}, r"with the D of `queries`, 8. Received: \(3, 7\)"),
        (
            {"queries": np.zeros((5, 8), np.float32)},
            r"one row of each per query. Received: \(5, 8\) and \(6, 8\)",
        ),
        ({"positives": np.zeros((6, 8, 1), np.float32)}, r"Received: \(6, 8\) and \(6, 8, 1\)"),
        ({"chunk_size": 0}, r"`chunk_size` must be an int of at least 1\. Received: 0"),
        ({"chunk_size": 1.5}, r"`chunk_size` must be an int of at least 1\. Received: 1.5"),
        ({"temperature": "warm"}, "`temperature` must be a positive number. Received: 'warm'"),
        ({"gemm_dtype": "int8"}, "must be float32 or bfloat16. Received: 'int8'"),
        ({"temperature": 0.0}, "`temperature` must be a positive number. Received: 0.0. Learn its logarithm"),
        ({"temperature": np.float32(-1)}, "Received: -1"),
        ({"temperature": math.nan}, "Received: nan"),
        ({"positive_ids": np.arange(6)}, "only one of them"),
        ({"memory_bank_ids": np.arange(21)}, "only one of them"),
        ({"memory_bank_mask": np.ones(20, bool)}, r"`memory_bank_mask` must be \[21\].*Received: \(20,\)"),
        ({"positive_ids": np.ones((6, 1), int)}, r"`positive_ids` must be \[6\].*`queries`. Received: \(6, 1\)"),
        ({"positive_ids": np.ones(6)}, "`positive_ids` must be integers.*'float64'"),
        ({"temperature": tf.constant(-0.1)}, "Received: -0.1"),
        ({"temperature": keras.Variable(0.0)}, "Received: 0.0"),
        ({"temperature": np.ones(8, np.float32)}, r"must be one number, of shape \(\). Received: \(8,\)"),
        (
            {"memory_bank": None, "in_batch_negatives": True, "memory_bank_mask": np.ones(20, bool)},
            "Pass the bank",
        ),
    ],
)
def test_refuses(vectors, changes, match):
    queries, positives, bank = vectors
    arguments = {
        "queries": queries,
        "positives": positives,
        "memory_bank": bank,
        "temperature": 0.07,
        **changes,
    }
    with pytest.raises(ValueError, match=match):
        info_nce(**arguments)


def test_refuses_a_batch_of_one_without_a_bank(vectors):
    query = vectors[0][:1]
    with pytest.raises(ValueError, match=r"a batch of 1\. Pass a memory bank"):
        info_nce(query, query, temperature=0.07, in_batch_negatives=True)


def test_layer_refuses_other_shapes_when_a_model_is_built():
    queries, bank = keras.Input((8,)), keras.Input((8,))
    with pytest.raises(ValueError, match=r"must all be \[B, D\].*\(None, 8\) and \(None, 9\)"):
        InfoNCE()(queries, keras.Input((9,)), memory_bank=bank)
    with pytest.raises(ValueError, match="only one of them"):
        InfoNCE()(queries, queries, memory_bank=bank, positive_ids=keras.Input((), dtype="int64"))


def test_layer_refuses_a_start_outside_the_range():
    with pytest.raises(ValueError, match=r"\[0.01, 1.0\]. Received: 2.0. Widen the range"):
        InfoNCE(temperature=2.0)
    with pytest.raises(ValueError, match=r"`min_temperature` must be a positive number. Received: -1"):
        InfoNCE(min_temperature=-1.0)


def test_rows_of_a_batch_find_their_negatives_in_the_whole_of_it():
    vectors, ids = unit(np.random.default_rng(0), 12, 5), np.array([1, 2, 1, 3, 4, 2])
    queries, positives = vectors[:6], vectors[6:]
    whole = info_nce(queries, positives, temperature=0.2, in_batch_negatives=True, positive_ids=ids)
    part = info_nce(
        queries[4:], positives[4:], temperature=0.2, in_batch_negatives=True, positive_ids=ids[4:],
        batch_positives=positives, batch_ids=ids,
    )  # fmt: skip
    np.testing.assert_allclose(part, whole[4:], rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch_ids": None}, "only one of them"),
        ({"positive_ids": None}, "in_batch_negatives=True, `positive_ids` None"),
        ({"in_batch_negatives": False}, "in_batch_negatives=False"),
        ({"batch_positives": np.eye(3)[:, :2], "batch_ids": np.arange(3)}, r"\[G, D\] with the D of `queries`, 3"),
        ({"batch_ids": np.arange(2)}, r"`batch_ids` must be \[3\]"),
    ],
)
def test_a_whole_batch_that_does_not_fit_is_refused(changes, said):
    rows, ids = np.eye(3), np.arange(3)
    given = {"in_batch_negatives": True, "positive_ids": ids, "batch_positives": rows, "batch_ids": ids, **changes}
    with pytest.raises(ValueError, match=said):
        info_nce(rows, rows, temperature=0.5, **given)
