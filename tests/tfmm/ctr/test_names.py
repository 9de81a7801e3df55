"""No two parts of a click model share a name, whatever modalities, sequences and methods are called."""

import keras
import numpy as np
import pytest

from tfmm import config as config_lib
from tfmm import vectors as vectors_lib
from tfmm.ctr import model as model_lib
from tfmm.features import FeatureSet
from tfmm.index import encode

FEATURES = FeatureSet().resolved(max_behaviors=3, min_count=1)
SIZES = {"user_id": 5, "item_id": 9, "category": 4}
SIMTIER = config_lib.Method("simtier", {"num_tiers": 4})


def build(modalities, methods=(SIMTIER,), seed=0, **changes):
    """A click model with vectors of 4 values, every weight moved off its start."""
    keras.utils.set_random_seed(seed)
    config = config_lib.CTRConfig(units=(8,), attention_units=(4,), **changes)
    model = model_lib.CTRModel(config, config_lib.MAKEConfig(), FEATURES, SIZES, dict.fromkeys(modalities, 4), methods)
    model.build()
    for variable in model.trainable_variables:
        variable.assign(variable + keras.random.normal(variable.shape, stddev=0.3, seed=seed))
    return model


def draw_inputs(modalities, batch=6):
    """Inputs in which every target and behavior has vectors."""
    generator = np.random.default_rng(0)
    inputs = {
        column.input: generator.integers(1, SIZES[column.feature.embedding], (batch, *column.shape))
        for column in FEATURES.columns
    }
    for modality in modalities:
        for side, shape in (("target", (batch,)), ("behavior", (batch, 3))):
            rows, scales = encode.quantize(generator.normal(size=(int(np.prod(shape)), 4)))
            vectors = vectors_lib.Vectors(rows.reshape(*shape, 4), scales.reshape(shape), np.ones(shape, bool))
            inputs |= vectors_lib.named(modality, side, vectors)
    return inputs


@pytest.mark.parametrize(("id_head", "largest"), [(True, 1), (False, 3)])
def test_logits_with_hidden_modalities_are_those_of_their_own_set(id_head, largest):
    modalities = ("image", "image_title", "title")
    model, inputs = build(modalities, id_head=id_head), draw_inputs(modalities)
    outputs = model(inputs, training=True)
    sets = model.hidden_sets()
    assert max(map(len, sets)) == largest
    assert len([name for name in outputs if name.startswith("logit_without_")]) == len(sets)
    for hidden in sets:
        without = {**inputs, **{f"{modality}_target_mask": np.zeros(6, bool) for modality in hidden}}
        expected = model(without, training=False)["logit"].numpy()
        np.testing.assert_allclose(outputs[model_lib.hidden_name(hidden)].numpy(), expected, atol=1e-5)


def test_hidden_sets_with_one_name_between_them_are_told_apart():
    assert model_lib.hidden_name(("image", "title")) != model_lib.hidden_name(("image_title",))


@pytest.mark.parametrize("id_head", [True, False])
def test_training_hides_each_modality_alone_and_all_so_that_its_cost_grows_with_their_number(id_head):
    modalities = [f"m{i}" for i in range(8)]
    config = config_lib.CTRConfig(units=(8,), id_head=id_head)
    model = model_lib.CTRModel(
        config, config_lib.MAKEConfig(), FEATURES, SIZES, dict.fromkeys(modalities, 4), (SIMTIER,)
    )
    alone = [(name,) for name in modalities]
    assert model.hidden_sets() == alone + ([] if id_head else [tuple(modalities)])
    one = model_lib.CTRModel(config, config_lib.MAKEConfig(), FEATURES, SIZES, {"m0": 4}, (SIMTIER,))
    assert one.hidden_sets() == ([] if id_head else [("m0",)])
