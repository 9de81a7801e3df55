"""What an exported encoder says of the contents that it takes."""

import numpy as np
import pytest

from tfmm.config import SCLConfig
from tfmm.index import encode
from tfmm.pretrain import pair_table, train
from tfmm.pretrain.content_form import NFKC_CASEFOLD, ContentForm
from tfmm.pretrain.encoders import make_encoder


@pytest.mark.parametrize("modality", ["image", "text"])
def test_pretraining_writes_the_form_that_service_uses(image_pairs, text_pairs, tmp_path, modality):
    pairs = {"image": image_pairs, "text": text_pairs}[modality]
    config = SCLConfig(modality=modality, dim=8, image_size=16, width=4, epochs=1, batch_size=16, max_pixels=5000)
    train.train(config, pairs, tmp_path)
    expected = {"image": ContentForm(max_pixels=5000), "text": ContentForm(NFKC_CASEFOLD, 5000)}[modality]
    assert encode.load_encoder(tmp_path).form == expected


def test_training_reads_one_spelling_and_refuses_large_pictures(image_pairs):
    text = make_encoder(SCLConfig(modality="text", dim=8))
    table = pair_table.ContentTable(text, ["Café".encode(), "CAFE\u0301".encode(), b"tea"])
    tokens = table.fetch(np.array([0, 1, 2]))[0].numpy()
    assert tokens[0].tolist() == tokens[1].tolist() != tokens[2].tolist()

    contents = pair_table.read_pairs(image_pairs / "train.parquet").contents[:3]
    for limit, expected in ((16 * 16, True), (16 * 16 - 1, False)):
        image = make_encoder(SCLConfig(image_size=16, width=4, max_pixels=limit))
        assert pair_table.ContentTable(image, contents).valid.tolist() == [expected] * 3


def test_version_tells_how_contents_are_read(monkeypatch):
    encoder = make_encoder(SCLConfig(image_size=16, width=4))
    before = encoder.version()
    monkeypatch.setattr("tfmm.pretrain.images.READING", "as stored")
    assert encoder.version() != before
