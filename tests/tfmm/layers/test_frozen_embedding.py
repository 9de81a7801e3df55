import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmm.layers import DINAttention, FrozenEmbedding, SimTierLayer, unit_vectors
from tfmm.testing import check_layer

IDS = np.array([-5, 2**62, 7, 30, -(2**63)])


@pytest.fixture
def table(make_int8):
    rows, scales = make_int8(5, 8)
    return FrozenEmbedding.from_table(IDS, rows, scales), rows, scales


def test_known_ids_give_their_rows_and_others_are_masked(table):
    layer, rows, scales = table
    ids = np.array([[7, 0, -5], [2**62, 31, -(2**63)]])
    received, received_scales, mask = layer.lookup(ids)
    place = np.array([[2, 0, 0], [1, 0, 4]])
    known = np.array([[True, False, True], [True, False, True]])
    np.testing.assert_array_equal(mask, known)
    np.testing.assert_array_equal(received, rows[place] * known[..., None])
    np.testing.assert_array_equal(received_scales, scales[place] * known)


def test_mask_travels_to_the_layers_that_read_the_vectors(table, make_unit):
    layer = table[0]
    ids, target = tf.constant([[7, 0, 31], [30, -5, 0]], tf.int64), tf.constant(make_unit(2, 8))
    target_input, ids_input = keras.Input((8,)), keras.Input((3,), dtype="int64")
    behaviors = layer(ids_input)
    attention = DINAttention((4,))
    outputs = [SimTierLayer(6)(target_input, behaviors), attention(target_input, behaviors)]
    model = keras.Model([target_input, ids_input], outputs)
    for function in (model, tf.function(model, jit_compile=True)):
        counts, pooled = function([target, ids])
        np.testing.assert_array_equal(counts.numpy().sum(1), [1, 2])
        vectors, mask = unit_vectors(*layer.lookup(ids)[:2]), layer.lookup(ids)[2]
        np.testing.assert_allclose(pooled, attention(target, vectors, behaviors_mask=mask), atol=1e-6)


def test_rows_bring_exact_counts(table):
    _, rows, scales = table
    exact = FrozenEmbedding.from_table(IDS, rows, scales, output_form="rows")
    ids = np.array([[7, 30, 0], [30, 30, 9]])
    target, behaviors = exact(np.array([7, 30])), exact(ids)
    counts = SimTierLayer(20)(
        target["rows"],
        behaviors["rows"],
        behaviors_mask=behaviors["mask"],
        target_scales=target["scales"],
        behaviors_scales=behaviors["scales"],
    ).numpy()
    np.testing.assert_array_equal(counts.sum(1), [2, 2])
    np.testing.assert_array_equal(counts[:, -1], [1, 2])


def test_ids_become_counts_in_one_compiled_function_without_float_vectors(make_int8, rng):
    rows, scales = make_int8(100, 64)
    table = FrozenEmbedding.from_table(np.arange(1, 101), rows, scales, output_form="rows")
    layer = SimTierLayer(20)
    target_ids, behavior_ids = tf.constant(rng.integers(1, 101, 8)), tf.constant(rng.integers(-20, 130, (8, 512)))

    def count(target_ids, behavior_ids):
        target, behaviors = table(target_ids), table(behavior_ids)
        masks = {"target_mask": target["mask"], "behaviors_mask": behaviors["mask"]}
        of_rows = {"target_scales": target["scales"], "behaviors_scales": behaviors["scales"]}
        return layer(target["rows"], behaviors["rows"], **masks, **of_rows)

    compiled = tf.function(count, jit_compile=True, autograph=False)
    expected = count(target_ids, behavior_ids)
    np.testing.assert_array_equal(compiled(target_ids, behavior_ids), expected)
    known = (behavior_ids >= 1) & (behavior_ids <= 100)
    np.testing.assert_array_equal(np.asarray(expected).sum(1), np.asarray(known).sum(1))
    program = compiled.experimental_get_compiler_ir(target_ids, behavior_ids)(stage="optimized_hlo")
    buffers = program[program.index("ENTRY") :]
    assert "f32[8,512,64]" not in buffers and f"f32[{8 * 512},64]" not in buffers


def test_withdrawn_items_are_masked(make_int8):
    rows, scales = make_int8(2, 4)
    layer = FrozenEmbedding.from_table([1, 2], rows, [0.0, scales[1]])
    np.testing.assert_array_equal(layer.lookup(np.array([1, 2]))[2], [False, True])


def test_table_is_never_trained_and_survives_saving(tmp_path, table):
    layer = table[0]
    layer.trainable = True
    assert not layer.trainable_weights
    model = keras.Sequential([keras.Input((2,), dtype="int64"), layer])
    model.save(tmp_path / "table.keras")
    again = keras.models.load_model(tmp_path / "table.keras")
    ids = tf.constant([[7, 2**62]], tf.int64)
    np.testing.assert_array_equal(again(ids), model(ids))


def test_empty_table_says_where_tables_come_from():
    layer, ids = FrozenEmbedding(3, 2), np.array([[1]])
    with pytest.raises(ValueError, match=r"use `FrozenEmbedding.from_table`"):
        layer.lookup(ids)
    model = keras.Sequential([keras.Input((1,), dtype="int64"), layer])
    for function in (layer, model, tf.function(layer), tf.function(layer, jit_compile=True), model.predict):
        with pytest.raises(ValueError, match=r"use `FrozenEmbedding.from_table`"):
            function(ids)
    layer.set_table([1, 2, 3], [[3, 4]] * 3, [0.2] * 3)
    np.testing.assert_allclose(model.predict(ids, verbose=0), [[[0.6, 0.8]]])


@keras.saving.register_keras_serializable(package="test_frozen_embedding")
class LooksUp(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.table = FrozenEmbedding(5, 8)

    def call(self, ids):
        return self.table(ids)


def test_tables_are_filled_by_whatever_fills_weights(tmp_path, table):
    ids = np.array([[7, 30, 9]])
    expected = table[0](ids)
    model = LooksUp()
    model(keras.Input((3,), dtype="int64"))
    model.table.set_weights(table[0].get_weights())
    np.testing.assert_array_equal(model(ids), expected)
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(ids), expected)
    model.save_weights(tmp_path / "model.weights.h5")
    path = tf.train.Checkpoint(model=model).save(str(tmp_path / "checkpoint"))
    for fill in (
        lambda m: m.load_weights(tmp_path / "model.weights.h5"),
        lambda m: m.set_weights(model.get_weights()),
        lambda m: tf.train.Checkpoint(model=m).restore(path).expect_partial(),
    ):
        other = LooksUp()
        other(keras.Input((3,), dtype="int64"))
        fill(other)
        np.testing.assert_array_equal(other(ids), expected)


@pytest.mark.parametrize("ids", [np.float32([2**24 + 1]), np.array([3.7]), np.array([True]), np.array(["7"])])
def test_ids_that_are_not_integers_are_refused(table, ids):
    for function in (table[0].lookup, table[0]):
        with pytest.raises(ValueError, match=r"`ids` must be integers: pass int64"):
            function(ids)


def test_a_model_with_float_ids_is_refused(table):
    with pytest.raises(ValueError, match=r"`ids` must be integers: .* Received: 'float32'"):
        table[0](keras.Input((3,)))
    for dtype in ("int8", "uint8", "int32", "uint32"):
        np.testing.assert_array_equal(table[0].lookup(np.array([7, 9], dtype))[2], [True, False])


@pytest.mark.parametrize(
    "ids, rows, scales, rule",
    [
        ([1, 1], [[3, 4], [3, 4]], [0.2, 0.2], "`ids` must be unique"),
        ([1, 0], [[3, 4], [3, 4]], [0.2, 0.2], "`ids` must not hold 0"),
        ([1, 2], [[3, 4], [3, 4]], [0.2, 0.3], "`scales` must be 1 / norm"),
        ([1, 2], [[3, 4], [3, 4]], [0.2, np.nan], "`scales` must be 1 / norm"),
        ([1, 2], [[3, 400], [3, 4]], [0.2, 0.2], "whole numbers in -127..127"),
        ([1, 2], [[0.6, 0.8], [0.6, 0.8]], [1.0, 1.0], "whole numbers in -127..127"),
        ([1, 2, 3], [[3, 4], [3, 4]], [0.2, 0.2], "`ids` must be integers"),
        ([1, 2], [[3, 4], [3, 4]], [0.2], "`scales` must have the shape"),
        ([1, 2], [3, 4], [0.2], "`rows` must have 2 axes"),
    ],
)
def test_wrong_tables_are_refused(ids, rows, scales, rule):
    with pytest.raises(ValueError, match=rule):
        FrozenEmbedding.from_table(ids, rows, scales)


@pytest.mark.parametrize(
    "arguments, rule",
    [
        ({"num_items": 0, "dim": 4}, "`num_items` must be an int of at least 1"),
        ({"num_items": 2.0, "dim": 4}, "`num_items` must be an int"),
        ({"num_items": 2, "dim": True}, "`dim` must be an int"),
        ({"num_items": 1, "dim": 2000}, "`dim` must lie in"),
        ({"num_items": 1, "dim": 4, "by_index": "no"}, "`by_index` must be True or False"),
        ({"num_items": 1, "dim": 4, "output_form": "float"}, "`output_form` must be one of"),
    ],
)
def test_wrong_arguments_are_refused(arguments, rule):
    with pytest.raises(ValueError, match=rule):
        FrozenEmbedding(**arguments)


@pytest.mark.parametrize("output_form", ["vector", "rows"])
def test_conformance(make_int8, output_form):
    rows, scales = make_int8(5, 8)

    def make(**settings):
        layer = FrozenEmbedding(**settings)
        layer.build()
        layer.set_table(IDS, rows, scales)
        return layer

    check_layer(
        FrozenEmbedding,
        {"num_items": 5, "dim": 8, "output_form": output_form},
        {"ids": np.array([[7, 30], [-5, 9]])},
        make_layer=make,
        same_under_policies=True,
    )


@pytest.mark.parametrize("num_items", [1, 2, 3, 8, 100])
def test_search_under_xla_finds_what_plain_search_finds(make_int8, rng, num_items):
    ids = np.unique(rng.integers(-(2**63), 2**63 - 1, size=num_items))
    layer = FrozenEmbedding.from_table(ids, *make_int8(len(ids), 4))
    wanted = np.concatenate([ids, ids - 1, ids + 1, [0, -(2**63), 2**63 - 1]])
    plain = layer.lookup(wanted)
    compiled = tf.function(lambda x: layer.lookup(x), jit_compile=True, autograph=False)(wanted)
    for expected, received in zip(plain, compiled, strict=True):
        np.testing.assert_array_equal(received, expected)
    assert np.asarray(plain[2])[: len(ids)].all()


def test_rows_by_number_need_no_search(make_int8):
    rows, scales = make_int8(3, 4)
    layer = FrozenEmbedding.from_table([1, 2, 3], rows, scales, by_index=True, output_form="rows")
    found = layer(np.array([3, 0, 4, -1, 1]))
    np.testing.assert_array_equal(found["mask"], [True, False, False, False, True])
    np.testing.assert_array_equal(found["rows"].numpy()[[0, 4]], rows[[2, 0]])
    with pytest.raises(ValueError, match=r"`ids` must be 1\.\.n"):
        FrozenEmbedding.from_table([7, 8, 9], rows, scales, by_index=True)
