"""Pictures that say to be larger than may be: known by their header, and not opened."""

import numpy as np
import tensorflow as tf

from tfmm.data import checks, rules

PNG = tf.io.encode_png(np.zeros((4, 4, 3), np.uint8)).numpy()
JPEG = tf.io.encode_jpeg(np.zeros((4, 4, 3), np.uint8)).numpy()


def test_picture_bomb_is_told_by_its_header_and_not_opened(tables, at, monkeypatch):
    def refuse(image, **how):
        assert len(image) < 900, "opened"
        return tf.constant(np.zeros((1, 1, 3), np.uint8))

    monkeypatch.setattr(rules.tf.io, "decode_image", refuse)
    rows = [{"user_id": 1, "item_id": 1, "timestamp": at(m), "label": m % 2} for m in range(20)]
    items = [{"item_id": k, "title": "t", "image": image} for k, image in ((1, PNG), (2, JPEG), (3, None))]
    data = {"items": items, "impressions": rows}
    data["items"][0]["image"] = PNG[:16] + (8000).to_bytes(4, "big") * 2 + PNG[24:] + bytes(1000)
    (fault,) = checks.check(tables(**data)).faults
    assert (fault.column, fault.rule, fault.count) == ("image", "must have at most 50,000,000 pixels", 1)
    data["items"][0]["image"] = JPEG[:-2] + (b"\xff\xda" + (2).to_bytes(2, "big")) * 300 + JPEG[-2:]
    (fault,) = checks.check(tables(**data)).faults
    assert (fault.column, fault.rule, fault.count) == ("image", "must have at most 100 scans", 1)
    data["items"][0]["image"] = PNG
    rule = "must have at most 15 pixels"
    found = checks.check(tables(**data), max_pixels={"image": 15}).faults
    assert [(fault.column, fault.rule, fault.count) for fault in found] == [("image", rule, 2)]
