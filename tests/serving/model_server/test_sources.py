"""An error about an input of a click model names the column of the data that the input is."""

import grpc
import numpy as np
import pytest
import tensorflow as tf

from serving.client import PredictError, RankingClient
from serving.model_server import errors, sources

USER = {"user_id": [3], "device": [5], "clicks_item_id": [[101, 102, 0]], "clicks_age": [[50.0, 4.0, 3.0]]}
ITEMS = {"item_id": [100, 139, 7]}


@pytest.fixture(scope="module")
def client(tmp_path_factory, write_click_model, serving_at):
    plain = {"batch_buckets": (4,), "candidate_buckets": (4,), "jit_compile": False}
    with serving_at(write_click_model(tmp_path_factory.mktemp("named"), **plain), "tfmm") as server:
        with RankingClient(server["grpc"], server["rest"], "tfmm", timeout_s=120) as client:
            yield client


def arrays(columns):
    return {
        name: np.asarray(values, np.float32 if name.endswith("age") else np.int64) for name, values in columns.items()
    }


def without(name):
    return {key: values for key, values in (USER | ITEMS).items() if key != name}


WRONG = {
    "missing": (without("device"), "device is impressions.device"),
    "of another length": (USER | ITEMS | {"clicks_age": [[5.0]]}, "clicks_age is behaviors.age of the sequence clicks"),
    "of another shape": (USER | ITEMS | {"user_id": [[3]]}, "user_id is impressions.user_id"),
}


@pytest.mark.parametrize(("request_", "said"), WRONG.values(), ids=WRONG)
def test_the_column_of_an_input_that_does_not_fit_is_named(client, request_, said):
    for predict in (client.predict, client.predict_rest):
        with pytest.raises(PredictError, match=rf"In the data, .*{said}"):
            predict(arrays(request_), "rank_ids")


def test_the_column_of_an_input_of_another_type_is_named(client):
    with pytest.raises(PredictError, match=r"expects int64, got string. In the data, device is impressions.device\."):
        client.predict(arrays(without("device")) | {"device": np.array([b"web"])}, "rank_ids")
    with pytest.raises(PredictError, match=r"expected type: int64. In the data, device is impressions.device\."):
        client.predict_rest(arrays(without("device")) | {"device": np.array(["web"])}, "rank_ids")


def test_what_fits_is_answered_and_other_errors_stay_as_they_are(client):
    assert client.predict(arrays(USER | ITEMS), "rank_ids")["score"].shape == (3,)
    with pytest.raises(PredictError) as refused:
        client.predict(arrays(USER | ITEMS), "rank_ids", version=9)
    assert refused.value.code == grpc.StatusCode.NOT_FOUND.name and "In the data" not in str(refused.value)
    for error in (errors.ServingError(errors.UNAVAILABLE, "a"), tf.errors.InvalidArgumentError(None, None, "b")):
        with pytest.raises(type(error)) as raised, sources.told({"a": "items.a"}):
            raise error
        assert raised.value is error


def test_versions_of_others_have_no_columns(tmp_path):
    assert sources.of_version(tmp_path) == {}
