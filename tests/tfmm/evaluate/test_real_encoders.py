"""Real clicks: training must not leave vectors worse than the encoder that it started from."""

import dataclasses

import pytest

from benchmarks import validation
from tfmm import presets
from tfmm.config import PairsConfig
from tfmm.data import pairs
from tfmm.data.sources import online_retail
from tfmm.pretrain.encoders import make_encoder
from tfmm.pretrain.train import fit


@pytest.fixture(scope="module")
def retail(shared_data, tmp_path_factory):
    """Online Retail before its eval split, with 25,000 pairs: a catalog of 3,659 items."""
    root = tmp_path_factory.mktemp("retail")
    online_retail.convert(shared_data / "online_retail", root / "data")
    folder = validation.write_tables(root / "data", root / "validation")
    pairs.build_pairs(folder, PairsConfig(max_pairs=25_000), root / "pairs")
    return folder, root / "pairs" / "text", validation.heldout_rows(folder)


def test_a_trained_encoder_ranks_clicks_better_than_an_untrained_one(retail):
    folder, pairs_dir, rows = retail
    config = dataclasses.replace(presets.quickstart().text, dim=64, epochs=3)
    fitted = fit(config, pairs_dir)
    assert fitted.facts["memory_bank_size"] == 0 and fitted.facts["distinct_positives"] < 3_659
    trained, untrained = (
        validation.probe_gauc(encoder, folder, rows) for encoder in (fitted.encoder, make_encoder(config))
    )
    assert trained > untrained + 0.01


@pytest.mark.slow
def test_a_bank_that_holds_the_whole_catalog_harms(retail):
    """Why the bank follows the distinct positives: every item that would also fit is a negative."""
    folder, pairs_dir, rows = retail
    config = dataclasses.replace(presets.quickstart().text, dim=64, epochs=3)
    bank = dataclasses.replace(config, memory_bank_size=8_192, memory_bank_share=1e9)
    without, with_bank = (validation.probe_gauc(fit(c, pairs_dir).encoder, folder, rows) for c in (config, bank))
    assert with_bank < without - 0.02
