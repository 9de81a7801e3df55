"""What the client makes of a caller's values, and that it follows the version in service."""

import shutil
import time

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from serving.client import Input, PredictError, RankingClient, as_tensor

NUMBER, INTEGER, TEXT = (Input(kind, False, False) for kind in (np.float32, np.int64, object))
TAGS = Input(object, True, False)


@pytest.fixture
def served(serving_at, write_ranker, tmp_path):
    """A folder with version 1, served, and a client of it."""
    base = tmp_path / "base"
    write_ranker(base / "1")
    with serving_at(base, "tfmm") as addresses:
        with RankingClient(addresses["grpc"], addresses["rest"], timeout_s=60) as client:
            yield base, client


@pytest.fixture
def swap(served, write_ranker):
    """Returns a function that puts another version into service in place of the one that is."""
    base, client = served

    def swap(**more):
        (old,) = client.versions()
        write_ranker(base.parent / "staged", **more)
        shutil.move(base.parent / "staged", base / str(old + 1))
        deadline = time.monotonic() + 120
        while client.versions() != [old + 1] and time.monotonic() < deadline:
            time.sleep(0.05)
        assert client.versions() == [old + 1]

    return swap


@pytest.mark.parametrize("way", ["rank", "rank_rest"])
def test_client_follows_a_version_with_other_features(served, swap, way):
    _, client = served
    rank, user = getattr(client, way), {"user_id": 1}
    assert rank(user, {"item_id": [3, 4]}).tolist() == [3, 4]
    swap(price=([None], tf.float32))
    with pytest.raises(ValueError, match=r"`candidates` must have .*Missing: \['price'\]"):
        rank(user, {"item_id": [3, 4]})
    assert rank(user, {"item_id": [3, 4], "price": [1, 0.5]}).tolist() == [4, 4.5]
    swap(price=([None], tf.string))  # another type
    assert rank(user, {"item_id": [3, 4], "price": ["low", ""]}).tolist() == [6, 4]
    swap(price=([1], tf.string))  # of the user
    assert rank(user | {"price": "low"}, {"item_id": [3, 4]}).tolist() == [6, 7]
    swap()
    assert rank(user, {"item_id": [3, 4]}).tolist() == [3, 4]
    with pytest.raises(ValueError, match=r"no others\. Received: \['price'\]"):
        rank(user | {"price": "low"}, {"item_id": [3]})


def test_version_that_is_asked_for_says_what_it_takes(served, swap):
    _, client = served
    assert client.rank({"user_id": 1}, {"item_id": [3]}, version=1).tolist() == [3]
    swap(price=([None], tf.float32))
    ask = {"item_id": [3], "price": [1.0]}
    assert client.rank({"user_id": 1}, ask, version=2).tolist() == [4]
    with pytest.raises(PredictError, match="NOT_FOUND"):
        client.rank({"user_id": 1}, ask, version=3)


@pytest.mark.parametrize(
    ("values", "wanted", "tensor"),
    [
        ([np.bool_(True), False, None, True], NUMBER, [1, 0, np.nan, 1]),
        ([np.int8(3), np.float16(0.5), 10**400, -1e300], NUMBER, [3, 0.5, np.inf, -np.inf]),
        ([np.uint8(3), 2**63 - 1, None], INTEGER, [3, 2**63 - 1, 0]),
        (["a", b"b", np.str_("\u00e9"), None], TEXT, [b"a", b"b", b"\xc3\xa9", b""]),
        ([np.array(["a"]), pa.array(["b", None]), ("c",)], TAGS, [[b"a", b""], [b"b", b""], [b"c", b""]]),
    ],
)
def test_values_of_a_kind_in_any_form_are_taken(values, wanted, tensor):
    found = as_tensor(values, wanted)
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, np.array(tensor, wanted.dtype))


@pytest.mark.parametrize(
    ("values", "wanted", "words"),
    [
        ([True], INTEGER, "`x` must hold integers, as the model was exported. Received: True"),
        ([np.bool_(True)], INTEGER, "`x` must hold integers"),
        ([2.0], INTEGER, "`x` must hold integers"),
        ([2**63], INTEGER, "`x` must hold integers of 64 bits"),
        ([1j], NUMBER, "`x` must hold numbers"),
        ([np.complex64(1)], NUMBER, "`x` must hold numbers"),
        (["1"], NUMBER, "`x` must hold numbers"),
        ([7], TEXT, "`x` must hold strings"),
        (["\ud800"], TEXT, "`x` must hold strings of UTF-8"),
        (["red"], TAGS, "`x` must be a list of values, or an array. Received: 'red'"),
        ([{"red": 1}], TAGS, "`x` must be a list of values"),
        ([7], TAGS, "`x` must be a list of values"),
    ],
)
def test_values_of_another_kind_are_named(values, wanted, words):
    with pytest.raises(ValueError, match=words):
        as_tensor(values, wanted, "x")


@pytest.mark.parametrize("ids", ["12", 12, None, np.array(12), {1: 2}])
def test_candidates_are_lists(served, ids):
    _, client = served
    with pytest.raises(ValueError, match="`item_id` must be a list of values, or an array"):
        client.rank({"user_id": 1}, {"item_id": ids})
    with pytest.raises(ValueError, match="`candidates` must have 'item_id'"):
        client.top(1, {"user_id": 1}, {})
