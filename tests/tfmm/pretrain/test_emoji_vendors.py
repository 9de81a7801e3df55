"""Real pairs: one vendor's drawing of an emoji finds the other vendor's."""

import pytest

from benchmarks.emoji_vendors import write_pairs
from tfmm.config import SCLConfig
from tfmm.pretrain.pair_table import NONE, read_pairs
from tfmm.pretrain.train import fit

PIXELS_ACC_AT_1 = 0.43  # 16 x 16, mean taken away, cosine; benchmarks/results/scl_quality.json, row "pixels"


@pytest.fixture(scope="module")
def pairs_dir(shared_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("emoji_vendors")
    write_pairs(shared_data / "emoji_vendors", folder)
    return folder


def test_split_keeps_items_apart(pairs_dir):
    for modality, sizes in (("image", (2446, 559)), ("text", (11304, 4803))):
        train, heldout = (read_pairs(pairs_dir / modality / f"{name}.parquet") for name in ("train", "heldout"))
        assert (len(train), len(heldout)) == sizes
        assert not set(train.item_ids) & set(heldout.item_ids)
    assert (read_pairs(pairs_dir / "image" / "train.parquet").negative != NONE).mean() > 0.9


@pytest.mark.slow
def test_images_beat_pixels(pairs_dir):
    config = SCLConfig(image_size=24, width=16, dim=128, augment=True, epochs=20)
    facts = fit(config, pairs_dir / "image").facts
    assert facts["acc_at_1"] > PIXELS_ACC_AT_1 > facts["acc_at_1_untrained"]
    assert facts["acc_at_5"] > 0.63


@pytest.mark.slow
def test_keywords_find_names(pairs_dir):
    """68 % of the keywords have several right answers: a perfect encoder would reach about 0.53."""
    config = SCLConfig(modality="text")
    facts = fit(config, pairs_dir / "text").facts
    assert facts["acc_at_1"] > 0.25 and facts["acc_at_5"] > 0.4
