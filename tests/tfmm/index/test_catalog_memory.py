"""What a later `embed` takes of a catalog whose items the stream has touched."""

import os
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tfmm import fingerprints
from tfmm.features import STORED, FeatureSet
from tfmm.index import beam, encode, item_features, item_index

DAY_US = 86_400_000_000
NOW_US = time.time_ns() // 1000
SHOE, HAT = 7, 8
GIVEN = encode.GivenVectors(2)
OLD, NEW, STREAM = [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]


@pytest.fixture
def shop(tmp_path):
    """Writes the catalog, embeds it, and says what the index then holds."""

    class Shop:
        path = tmp_path / "index.sqlite"

        def embed(self, shoe=OLD, created_us=NOW_US - 9 * DAY_US, written_us=NOW_US, category="shoes", time_zone="UTC"):
            table = pa.table({
                "item_id": [SHOE, HAT],
                "vector": [shoe, OLD],
                "category": [category, "hats"],
                "created_at": pa.array([created_us] * 2, pa.timestamp("us")),
            })  # fmt: skip
            file = tmp_path / "items.parquet"
            pq.write_table(table, file)
            os.utime(file, ns=(written_us * 1000, written_us * 1000))
            return beam.embed_catalog(tmp_path, {}, self.path, time_zone=time_zone)["vector"]["changed"]

        def event(self, time_us, withdrawn=False):
            with item_index.ItemIndex(self.path) as index:
                rows, scales = encode.quantize([STREAM])
                if withdrawn:
                    index.withdraw([SHOE], [time_us])
                else:
                    index.write(GIVEN.modality, GIVEN.version, [SHOE], rows, scales, [time_us])

        def shoe(self):
            with item_index.ItemIndex(self.path) as index:
                rows = index.embeddings(GIVEN.modality, GIVEN.version)
                return [row for item, row in zip(rows.ids.tolist(), rows.rows.tolist()) if item == SHOE]

        def category(self):
            with item_index.ItemIndex(self.path) as index:
                entry = index.active_features()
                rows = index.embeddings(STORED, entry.encoder_version)
                layout = item_features.Layout.of(FeatureSet(), {"category": "string"})
                return layout.unpack(rows.rows[rows.ids == SHOE])["category"][0]

    return Shop()


def test_stream_stays_where_the_catalog_says_what_it_said(shop):
    shop.embed()
    shop.event(NOW_US - DAY_US)
    assert shop.embed() == 0
    assert shop.shoe() == [[127, 127]]


def test_correction_in_the_catalog_is_taken_after_the_stream_touched_the_item(shop):
    shop.embed()
    shop.event(NOW_US - DAY_US)
    assert shop.embed(NEW) == 1
    assert shop.shoe() == [[0, 127]]
    assert shop.embed(NEW) == 0
    shop.event(NOW_US + 1)
    assert shop.shoe() == [[127, 127]]


def test_event_that_is_newer_than_the_corrected_file_stays(shop):
    shop.embed()
    shop.event(NOW_US - DAY_US)
    assert shop.embed(NEW, written_us=NOW_US - 2 * DAY_US) == 0
    assert shop.shoe() == [[127, 127]]


def test_withdrawn_item_stays_so_whatever_the_catalog_says(shop):
    shop.embed()
    shop.event(NOW_US - DAY_US, withdrawn=True)
    shop.embed(NEW)
    assert shop.shoe() == []


@pytest.mark.parametrize(
    "created_us", [NOW_US + 365 * DAY_US, 253_370_764_800_000_000, -5], ids=["in_a_year", "year_9999", "before_1970"]
)
def test_time_to_come_in_the_catalog_blocks_no_update(shop, created_us):
    shop.embed(created_us=created_us)
    shop.event(NOW_US - DAY_US)
    assert shop.shoe() == [[127, 127]]
    assert shop.embed(created_us=created_us) == 0
    shop.event(NOW_US, withdrawn=True)
    assert shop.shoe() == []


def test_created_at_is_read_on_the_clocks_of_the_zone(shop):
    """An item of Tokyo's 10 o'clock is older than an event of its 11: read as UTC it would be newer by 8 hours."""
    shop.embed(created_us=NOW_US - DAY_US, time_zone="Asia/Tokyo")
    shop.event(NOW_US - DAY_US - 8 * DAY_US // 24)
    assert shop.shoe() == [[127, 127]]


def test_corrected_feature_is_taken_too(shop):
    shop.embed()
    assert shop.category() == fingerprints.fingerprint(["shoes"])[0]
    with item_index.ItemIndex(shop.path) as index:  # as an event says it
        layout = index.active_features().encoder_version
        row = item_features.Layout.of(FeatureSet(), {"category": "string"}).pack({"category": np.array([99])})
        index.write(STORED, layout, [SHOE], row, [1], [NOW_US - DAY_US])
    shop.embed()
    assert shop.category() == 99
    shop.embed(category="boots")
    assert shop.category() == fingerprints.fingerprint(["boots"])[0]


def test_catalog_tells_the_types_of_its_ids(shop):
    shop.embed()
    with item_index.ItemIndex(shop.path) as index:
        assert index.id_types() == {"item_id": "int64", "category": "string"}


def test_forgotten_encoder_takes_its_memory_along(shop):
    shop.embed()
    with item_index.ItemIndex(shop.path) as index:
        index.forget(GIVEN.modality, GIVEN.version)
    assert shop.embed() == 2


def test_too_many_contents_that_fail_are_refused_and_the_active_encoders_stay(shop, tmp_path):
    shop.embed()
    vectors = [[1.0, 0.0], [0.0, 0.0]]
    pq.write_table(pa.table({"item_id": [SHOE, HAT], "vector": vectors}), tmp_path / "items.parquet")
    text = r"No reason may leave out more than 40 %[^$]*- 1 of 2 of items\.vector: vector: is all zeros[^$]*dead` shows"
    with pytest.raises(ValueError, match=text):
        beam.embed_catalog(tmp_path, {}, shop.path, tmp_path / "dead", max_bad_fraction=0.4)
    counts = beam.embed_catalog(tmp_path, {}, shop.path, tmp_path / "dead", max_bad_fraction=0.5)
    assert counts["vector"]["rejected"] == 1
