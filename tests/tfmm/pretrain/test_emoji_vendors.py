"""Real pairs: one vendor's drawing of an emoji finds the other vendor's."""

import pyarrow.parquet as pq
import pytest

from benchmarks import emoji_vendors
from benchmarks.emoji_vendors import write_pairs
from tfmm.config import SCLConfig
from tfmm.pretrain.pair_table import NONE, read_pairs
from tfmm.pretrain.train import fit

PIXELS_ACC_AT_1 = 0.49  # 16 x 16, mean taken away, cosine; `pixels` of benchmarks/emoji_vendors.py


@pytest.fixture(scope="module")
def pairs_dir(shared_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("emoji_vendors")
    write_pairs(shared_data / "emoji_vendors", folder)
    return folder


def test_split_keeps_items_apart(pairs_dir):
    for modality, sizes in (("image", (2596, 559)), ("text", (11129, 4978))):
        train, heldout = (read_pairs(pairs_dir / modality / f"{name}.parquet") for name in ("train", "heldout"))
        assert (len(train), len(heldout)) == sizes
        assert not set(train.item_ids) & set(heldout.item_ids)
    assert (read_pairs(pairs_dir / "image" / "train.parquet").negative != NONE).mean() > 0.9


def test_siblings_stand_on_one_side(shared_data):
    """No gender, age or skin tone of what is held out is trained on."""
    items = pq.read_table(shared_data / "emoji_vendors" / "items.parquet", columns=["base_item_id"])
    bases = set(items["base_item_id"].to_pylist())
    heldout = emoji_vendors.heldout_bases(bases)
    assert len(heldout) / len(bases) == pytest.approx(0.3, abs=0.02)
    forms = [{emoji_vendors.sibling_form(base) for base in side} for side in (heldout, bases - heldout)]
    assert not forms[0] & forms[1]


def test_settings_are_chosen_on_bases_that_no_figure_is_of(shared_data):
    items = pq.read_table(shared_data / "emoji_vendors" / "items.parquet", columns=["base_item_id"])
    bases = set(items["base_item_id"].to_pylist())
    heldout = emoji_vendors.heldout_bases(bases)
    validation = emoji_vendors.heldout_bases(bases - heldout, emoji_vendors.VALIDATION_SEED)
    assert not validation & heldout and len(validation) / len(bases - heldout) == pytest.approx(0.3, abs=0.02)
    forms = [{emoji_vendors.sibling_form(base) for base in side} for side in (validation, bases - heldout - validation)]
    assert not forms[0] & forms[1]


@pytest.mark.slow
def test_images_beat_pixels(pairs_dir):
    config = SCLConfig(image_size=32, width=24, dim=128, augment=True, epochs=16)
    facts = fit(config, pairs_dir / "image").facts
    assert facts["acc_at_1"] > PIXELS_ACC_AT_1 > facts["acc_at_1_untrained"]
    assert facts["acc_at_5"] > 0.66


@pytest.mark.slow
def test_with_edge_directions_images_beat_pixels_by_far(pairs_dir):
    """A minute on one core: 640 steps."""
    facts = fit(emoji_vendors.IMAGE, pairs_dir / "image").facts
    assert facts["acc_at_1"] > PIXELS_ACC_AT_1 + 0.08 and facts["acc_at_5"] > 0.7


@pytest.mark.slow
def test_keywords_find_names(pairs_dir):
    """68 % of the keywords have several right answers: a perfect encoder would reach about 0.53."""
    config = SCLConfig(modality="text", dim=128)
    facts = fit(config, pairs_dir / "text").facts
    assert facts["acc_at_1"] > 0.23 and facts["acc_at_5"] > 0.36
