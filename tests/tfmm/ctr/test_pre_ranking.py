"""The pre-ranking head: its numbers by hand, what it shares with the ranking model, and its training."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmm import artifacts
from tfmm import config as config_lib
from tfmm import vectors as vectors_lib
from tfmm.ctr import distillation, pre_ranking
from tfmm.ctr import model as model_lib
from tfmm.ctr import train as train_lib
from tfmm.pre_ranking import PreRankingConfig

SMALL = PreRankingConfig(epochs=2, batch_size=256, num_tiers=8, dim=4, units=(6,))
CTR = config_lib.CTRConfig(batch_size=256, units=(16, 8), attention_units=(6,), block_rows=512, segments=2)
METHODS = (config_lib.Method("simtier", {"num_tiers": 10}),)
NUM_CANDIDATES = 7


@pytest.fixture(scope="module")
def ranking_dir(shop, tmp_path_factory):
    """A ranking model that was trained on the shop."""
    folder = tmp_path_factory.mktemp("ranking")
    train_lib.train(
        CTR, shop.train, shop.eval, shop.vocabularies, folder, shop.features, modalities=("image", "text"),
        methods=METHODS, snapshot_dir=shop.snapshot,
    )  # fmt: skip
    return folder


def train(shop, ranking_dir, output_dir, config=SMALL, **options):
    patterns = shop.train, shop.eval
    return distillation.train(
        config, *patterns, shop.vocabularies, ranking_dir, shop.snapshot, output_dir, **options
    )


@pytest.fixture(scope="module")
def ranking_digest(ranking_dir):
    """Of the ranking model before a head was trained on it."""
    return artifacts.digest(ranking_dir)


@pytest.fixture(scope="module")
def trained(shop, ranking_dir, ranking_digest, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pre_ranking")
    return folder, train(shop, ranking_dir, folder)


@pytest.fixture(scope="module")
def models(ranking_dir, trained):
    ranking = model_lib.load_model(ranking_dir)
    return ranking, pre_ranking.load_model(trained[0], ranking)


def draw_inputs(ranking, num_rows, rng, num_users=None):
    """Random inputs of a ranking model, of `num_users` users."""
    inputs = {}
    for column in ranking.feature_set.columns:
        rows = num_users or num_rows if column.side == "user" else num_rows
        size = ranking.sizes[column.feature.embedding]
        inputs[column.input] = rng.integers(0, size, (rows, *column.shape)).astype(np.int32)
    for modality, dim in ranking.dims.items():
        for side in (vectors_lib.TARGET, *(s.name for s in ranking.feature_set.sequences)):
            is_target = side == vectors_lib.TARGET
            shape = (num_rows,) if is_target else (num_users or num_rows, ranking.feature_set.sequence(side).length)
            rows = rng.integers(-127, 128, (*shape, dim)).astype(np.int8)
            scales = (1.0 / np.linalg.norm(rows, axis=-1)).astype(np.float32)
            vectors = vectors_lib.Vectors(rows, scales, rng.random(shape) < 0.7)
            inputs |= vectors_lib.named(modality, side, vectors)
    return inputs


def reference(ranking, head, inputs):
    """The head's logits in float64, in loops over candidates and behaviors."""

    def weights(layer):
        return [np.asarray(weight, np.float64) for weight in layer.get_weights()]

    def dense(layer, x):
        kernel, *bias = weights(layer)
        return x @ kernel + (bias[0] if bias else 0.0)

    tables = {name: weights(layer)[0] for name, layer in ranking.embeddings.items()}
    columns = {column.name: column for column in ranking.feature_set.columns}

    def embed(name, row):
        return tables[columns[name].feature.embedding][inputs[columns[name].input][row]]

    logits, (sequence,) = [], ranking.feature_set.sequences
    for row in range(len(inputs["item_id_index"])):
        own = row if len(inputs["user_id_index"]) > 1 else 0
        is_behavior = inputs[columns[sequence.item_ids].input][own] != 0
        behaviors = np.concatenate([embed(name, own) for name in sequence.columns], axis=-1)
        mean = behaviors[is_behavior].sum(0) / max(is_behavior.sum(), 1)
        target = np.concatenate([embed(name, row) for name in sequence.features])
        user = np.concatenate([embed("user_id", own), mean, [np.log1p(is_behavior.sum())]])
        user = dense(head.user, np.maximum(dense(head.user_hidden, user), 0.0))
        item = dense(head.item, np.concatenate([embed("item_id", row), embed("category", row)]))
        parts = [*item, user @ item, mean @ target]
        for modality in ranking.dims:
            targets = vectors_lib.take(inputs, modality, vectors_lib.TARGET)
            others = vectors_lib.take(inputs, modality, sequence.name)
            counts = np.zeros(head.settings.num_tiers)
            for i in np.flatnonzero(others.mask[own]) if targets.mask[row] else ():
                dot = int(targets.rows[row].astype(int) @ others.rows[own, i].astype(int))
                similarity = np.float32(np.float32(dot) * targets.scales[row]) * others.scales[own, i]
                tier = int(np.floor((np.clip(similarity, -1, 1) + np.float32(1)) * (len(counts) / 2)))
                counts[min(tier, len(counts) - 1)] += 1
            without = np.log1p((is_behavior & ~others.mask[own]).sum())
            parts += [float(targets.mask[row]), without, *np.log1p(counts)]
        x = np.array(parts)
        for layer in head.hidden:
            x = np.maximum(dense(layer, x), 0.0)
        logits.append(dense(head.output_layer, x)[0])
    return np.array(logits)


def test_one_users_candidates_are_scored_as_float64_loops_do(models):
    ranking, head = models
    inputs = draw_inputs(ranking, NUM_CANDIDATES, np.random.default_rng(0), num_users=1)
    for jit_compile in (False, True):
        served = tf.function(lambda x: head(x)["logit"], jit_compile=jit_compile)
        found = served({name: tf.constant(values) for name, values in inputs.items()}).numpy()
        np.testing.assert_allclose(found, reference(ranking, head, inputs), atol=1e-4)  # float32 sums


def test_rows_of_many_users_are_scored_alike(models):
    ranking, head = models
    inputs = draw_inputs(ranking, NUM_CANDIDATES, np.random.default_rng(1))
    found = head({name: tf.constant(values) for name, values in inputs.items()})
    np.testing.assert_allclose(found["logit"], reference(ranking, head, inputs), atol=1e-4)
    np.testing.assert_allclose(found["score"], 1 / (1 + np.exp(-found["logit"].numpy())), atol=1e-6)


def test_a_row_of_padding_has_a_finite_logit(models):
    ranking, head = models
    assert np.isfinite(head(model_lib.padding_inputs(ranking.feature_set, ranking.dims))["logit"]).all()


def test_its_weights_are_its_own_and_few(models):
    ranking, head = models
    assert not {id(one) for one in head.variables} & {id(one) for one in ranking.variables}
    widest = max(variable.shape[0] for variable in head.variables)
    assert widest < min(ranking.sizes["user_id"], ranking.sizes["item_id"]), "no table"


def test_the_ranking_model_stays_as_it_is(ranking_dir, ranking_digest, trained):
    assert artifacts.digest(ranking_dir) == ranking_digest


def test_it_learns_from_clicks_and_from_the_ranking_model(shop, ranking_dir, trained):
    history = json.loads((trained[0] / "history.json").read_text())
    assert history[-1]["loss_distillation"] < 0.7 * history[0]["loss_distillation"]
    ranking = artifacts.read_manifest(ranking_dir)
    assert trained[1]["metrics"]["auc"] > ranking["metrics"]["auc"] - 0.1
    assert trained[1]["parents"][0] == ranking["id"] == trained[1]["ranking"]


def test_a_stopped_training_ends_as_one_that_was_not(shop, ranking_dir, trained, tmp_path):
    def stop(stage, done, total, **metrics):
        if metrics.get("epoch") == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(shop, ranking_dir, tmp_path / "out", checkpoint_dir=tmp_path / "checkpoints", progress=stop)
    notes = []
    train(
        shop, ranking_dir, tmp_path / "out", checkpoint_dir=tmp_path / "checkpoints",
        progress=lambda *_, note="", **__: notes.append(note),
    )  # fmt: skip
    assert any("parts were trained before" in note for note in notes)
    weights = [folder / pre_ranking.WEIGHTS for folder in (trained[0], tmp_path / "out")]
    found = [_read(path) for path in weights]
    for name, values in found[0].items():
        np.testing.assert_array_equal(values, found[1][name])


def _read(path):
    import h5py

    result = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, one: result.update({name: one[()]}) if isinstance(one, h5py.Dataset) else None)
    return result


def test_distance_counts_rows_by_weight_and_leaves_fillers_out():
    logit, teacher = tf.constant([1.0, 0.0, 7.0]), tf.constant([0.0, 2.0, 0.0])
    mask, weight = tf.constant([True, True, False]), tf.constant([3.0, 1.0, 9.0])
    assert float(distillation.distance(logit, teacher, mask, weight)) == pytest.approx((3 * 1 + 1 * 4) / 4)
    assert float(distillation.distance(logit, teacher, tf.zeros(3, tf.bool))) == 0.0


def test_no_gradient_reaches_the_teacher():
    teacher = tf.Variable([0.0, 2.0])
    with tf.GradientTape() as tape:
        value = distillation.distance(tf.constant([1.0, 1.0]), teacher, tf.ones(2, tf.bool))
    assert tape.gradient(value, teacher) is None


def test_hidden_targets_are_those_that_the_index_would_not_have(models):
    ranking, head = models
    inputs = {n: tf.constant(v) for n, v in draw_inputs(ranking, 4, np.random.default_rng(2)).items()}
    hidden = distillation.with_hidden(inputs, tf.constant([True, True, False, False]), ranking.dims)
    without = dict(inputs)
    for modality in ranking.dims:
        name = vectors_lib.names(modality, vectors_lib.TARGET).mask
        without[name] = tf.zeros(4, tf.bool)
    np.testing.assert_array_equal(head(hidden)["logit"][:2], head(without)["logit"][:2])
    np.testing.assert_array_equal(head(hidden)["logit"][2:], head(inputs)["logit"][2:])


def test_a_head_of_another_declaration_is_refused(shop, trained):
    other = model_lib.CTRModel(CTR, config_lib.MAKEConfig(), shop.features, {"user_id": 9, "item_id": 9, "category": 9},
                               {"image": 16}, METHODS)  # fmt: skip
    other.build()
    with pytest.raises(ValueError, match=r"of this declaration\. Received: another dims\. Train it again"):
        pre_ranking.load_model(trained[0], other)


def test_vectors_of_other_encoders_are_refused(shop, ranking_dir, tmp_path):
    from tfmm.index import encode, item_index, snapshot

    with item_index.ItemIndex(tmp_path / "index.sqlite") as index:
        for modality, dim in {"image": 16, "text": 8}.items():
            rows, scales = encode.quantize(np.ones((1, dim)))
            index.write(modality, "v2", np.array([1000]), rows, scales, np.ones(1, np.int64))
        snapshot.write_snapshot(index, tmp_path / "snapshot")
    with pytest.raises(ValueError, match="with vectors of the encoders that it was trained with"):
        distillation.train(
            SMALL, shop.train, shop.eval, shop.vocabularies, ranking_dir, tmp_path / "snapshot", tmp_path / "out"
        )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epochs": 0, "units": ()}, "`epochs` must be at least 1. Received: 0. `units` must name hidden layers"),
        ({"candidate_buckets": (64, 8)}, r"ascending positive sizes. Received: \[64, 8\]"),
        ({"distillation_weight": -1.0}, "`distillation_weight` must not be negative. Received: -1.0"),
        ({"learning_rate": float("nan")}, "`learning_rate` must be positive. Received: nan"),
        ({"hidden_fraction": 1.5}, r"`hidden_fraction` must lie in 0..1. Received: 1.5"),
    ],
)
def test_settings_that_cannot_be_are_refused_all_at_once(change, words):
    with pytest.raises(ValueError, match=words):
        PreRankingConfig(**change)


def test_in_16_bits_it_computes_in_float32(shop, ranking_dir, trained, tmp_path):
    training = config_lib.TrainingConfig(precision="mixed_bfloat16")
    manifest = train(shop, ranking_dir, tmp_path, training=training)
    assert manifest["metrics"] == pytest.approx(trained[1]["metrics"], abs=1e-6)
    assert keras.config.dtype_policy().name == "float32"
