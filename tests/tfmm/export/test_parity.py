"""Exported scores equal the Keras model's on the same int8 rows."""

import pytest

from tfmm import config as config_lib
from tfmm.export import parity


def check(exported, examples):
    return parity.check(
        exported.version_dir, exported.model_dir, exported.shop.vocabularies, exported.snapshot, examples
    )


def test_scores_equal_the_keras_model(multimodal, examples):
    result = check(multimodal, examples)
    assert result.num_rows == 100 and result.holds, result


@pytest.mark.slow
def test_scores_of_the_twin_without_xla_and_of_ids_alone_equal_it_too(export_model, examples):
    config = config_lib.ExportConfig(index_capacity=400, batch_buckets=(8,), candidate_buckets=(8,), jit_compile=False)
    assert check(export_model(config=config), examples).holds
    assert check(export_model(modalities=()), examples).holds


def test_examples_are_needed(multimodal):
    with pytest.raises(ValueError, match="at least one"):
        check(multimodal, [])
