"""Requests with faults of every kind, over gRPC and REST: each is answered or refused with a reason, and none harms."""

import collections
import gzip
import json
import pathlib
import random
import sys

import grpc
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2

from serving import channel as channel_lib
from tests.serving.model_server.calls import METADATA, METHODS, PREDICT, RELOAD, TIMEOUT_S, Caller
from tfmm.export import signatures

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TABLE = tomllib.loads(pathlib.Path(__file__).with_name("protocol.toml").read_text("utf-8"))
GRPC_CASES = [
    (path, case["request"])
    for case in TABLE["grpc"]
    for path in METHODS
    if "request" in case and "repeat" not in case and path.endswith("/" + case["call"])
]
LITERALS = ("NaN", "-Infinity", "1e400", "9" * 5000, "[" * 3000, '"\\ud800"', '"\\u0000"', "null", "true", "1.0", "-1",
            "[[1]]", "[]", "{}", '""', "3000000000", "-9223372036854775809", '"' + "a" * 9000 + '"', '{"b64": "a"}',
            "[" * 33 + "1" + "]" * 33, "[" + "0," * 99 + "0]")  # fmt: skip
NAMES = ("", "tfmm", "half", "rank", "x", "inputs", "\0", "é", "a" * 3000, "__saved_model_init_op", "index_status")


def mutate(content, rng):
    """Changes bytes, cuts, doubles or adds some."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        place, act = rng.randrange(len(data) + 1), rng.randrange(5)
        if act == 0:
            data[place : place + 1] = bytes([rng.randrange(256)])
        elif act == 1:
            del data[place : place + rng.choice((1, 4, 50))]
        elif act == 2:
            data[place:place] = data[place : place + rng.randrange(40)]
        elif act == 3:
            data[place:place] = rng.choice((rng.randbytes(4), b"\xff" * 9, *map(str.encode, LITERALS)))
        else:
            del data[place:]
    return bytes(data)


@pytest.fixture
def caller(fuzzed_server):
    made = Caller(fuzzed_server)
    yield made
    made.close()
    assert fuzzed_server.process.poll() is None
    assert "Traceback" not in fuzzed_server.stderr.read_text()


@pytest.fixture(scope="module")
def definitions(fuzzed_server):
    """The signatures of both models, as the server tells them."""
    found = {}
    with grpc.insecure_channel(fuzzed_server.grpc) as channel:
        for model in ("tfmm", "half"):
            request = METHODS[METADATA](metadata_field=["signature_def"])
            request.model_spec.name = model
            answer = channel.unary_unary(METADATA)(request.SerializeToString(), timeout=TIMEOUT_S)
            known = get_model_metadata_pb2.SignatureDefMap()
            get_model_metadata_pb2.GetModelMetadataResponse.FromString(answer).metadata["signature_def"].Unpack(known)
            found |= {(model, name): definition for name, definition in known.signature_def.items()}
    return found


@pytest.fixture(scope="module")
def real_inputs(definitions, raw_example):
    """Draws sound inputs, by name as arrays, of a signature."""

    def values(name, dtype, shape, rng):
        count = int(np.prod(shape))
        if name in ("examples", "inputs") and dtype == tf.string:
            drawn = [raw_example(rng) for _ in range(count)]
        elif dtype == tf.string:
            drawn = [rng.choice((b"vector", b"brand 1", b"red", b"", b"\xff", "é".encode())) for _ in range(count)]
        elif dtype == tf.bool:
            drawn = [rng.random() < 0.8 for _ in range(count)]
        else:
            drawn = [rng.choice((0, 1, 2, 3, 100, 101)) for _ in range(count)]
        return np.array(drawn, dtype.as_numpy_dtype).reshape(shape)

    def draw(model, signature, rng):
        sizes, result = [rng.randint(1, 5), rng.randint(0, 6), 2], {}
        for name, info in definitions[model, signature].inputs.items():
            dims = [dim.size for dim in info.tensor_shape.dim]
            if info.tensor_shape.unknown_rank:
                dims = [-1] * rng.randint(0, 2)
            shape = [sizes[min(place, 2)] if size < 0 else size for place, size in enumerate(dims)]
            result[name] = values(name, tf.as_dtype(info.dtype), shape, rng)
        return result

    return draw


def predict_request(model, signature, inputs):
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = model, signature
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return request


def spoil_tensor(tensor, rng):
    """Gives a tensor another type, shape or content."""
    act = rng.randrange(6)
    if act == 0:
        tensor.dtype = rng.choice((*range(30), 101, 123, 2**31 - 1))
    elif act == 1:
        dims = tensor.tensor_shape.dim
        if dims and rng.random() < 0.5:
            del dims[rng.randrange(len(dims))]
        else:
            for _ in range(rng.choice((1, 1, 40, 300))):
                dims.add(size=rng.choice((-1, 0, 1, 3, 64, 65, 2**31, 2**62)))
    elif act == 2:
        tensor.tensor_shape.unknown_rank = True
    elif act == 3:
        tensor.tensor_content = rng.randbytes(rng.choice((0, 1, 8, 24, 100)))
    elif act == 4:
        for field in ("float_val", "int64_val", "int_val", "string_val", "half_val", "bool_val"):
            tensor.ClearField(field)
        getattr(tensor, rng.choice(("float_val", "int64_val", "int_val", "double_val"))).append(rng.choice((0, 1, 7)))
    elif tensor.tensor_content:
        tensor.tensor_content = rng.randbytes(len(tensor.tensor_content))  # NaN, infinity and any other number
    else:
        tensor.string_val.extend([rng.randbytes(9), b"\0", b"a" * 5000])


def spoil_request(request, rng):
    """Does to a PredictRequest what a wrong caller does."""
    names, act = sorted(request.inputs), rng.randrange(9)
    if act <= 3 and names:
        spoil_tensor(request.inputs[rng.choice(names)], rng)
    elif act == 4 and names:
        del request.inputs[rng.choice(names)]
    elif act == 5 and names:
        request.inputs[rng.choice(NAMES + tuple(names))].CopyFrom(request.inputs[rng.choice(names)])
    elif act == 6:
        request.output_filter.extend(rng.choices((*signatures.OUTPUTS, "watermark", *NAMES), k=rng.randint(1, 3)))
    elif act == 7:
        setattr(request.model_spec, rng.choice(("name", "signature_name", "version_label")), rng.choice(NAMES))
    else:
        request.model_spec.version.value = rng.choice((0, 1, -1, 123, 2**63 - 1))


def ask_grpc(caller, rng, definitions, real_inputs):
    """Asks one call, of a sound request or of one with up to three faults."""
    if rng.random() < 0.25:
        method, text = rng.choice(GRPC_CASES)
        raw = text_format.Parse(text, METHODS[method]()).SerializeToString()
    else:
        model, signature = rng.choice(sorted(definitions))
        request = predict_request(model, signature, real_inputs(model, signature, rng))
        for _ in range(rng.randint(0, 3)):
            spoil_request(request, rng)
        method, raw = PREDICT, request.SerializeToString()
    if rng.random() < 0.3:
        raw = mutate(raw, rng)
    if rng.random() < 0.05:
        method = rng.choice((*METHODS, "/grpc.health.v1.Health/Check", "/tensorflow.serving.PredictionService/Other"))
    metadata = []
    if method != RELOAD and rng.random() < 0.7:  # a reload that is let through would end the service
        metadata.append((channel_lib.AUTHORIZATION, channel_lib.SCHEME + caller.server.token))
    if rng.random() < 0.1:
        metadata.append((channel_lib.CAUGHT_UP, rng.choice(("vector=0", "", "a", "vector=x,y"))))
    caller.call(method, raw, *metadata)


def as_json(inputs):
    """Sound inputs as REST has them."""
    return {name: text_of(np.asarray(value).tolist()) for name, value in inputs.items()}


def text_of(value):
    if isinstance(value, list):
        return [text_of(element) for element in value]
    return value.decode("latin-1") if isinstance(value, bytes) else value


def spoil_json(value, rng):
    """Returns the text of a value with one of its places spelled otherwise, or with a name more or less."""
    place = value
    while isinstance(place, dict | list) and place:
        key = rng.choice(sorted(place)) if isinstance(place, dict) else rng.randrange(len(place))
        if rng.random() < 0.4 or not isinstance(place[key], dict | list):
            break
        place = place[key]
    if isinstance(place, dict | list) and place:
        if rng.random() < 0.15:
            del place[key]
        elif isinstance(place, dict) and rng.random() < 0.2:
            place[rng.choice(NAMES)] = place.pop(key)
        else:
            place[key] = "@"
    return json.dumps(value).replace('"@"', rng.choice(LITERALS), 1)


def ask_rest(caller, rng, definitions, real_inputs):
    """Asks one request, sound or with a fault in its values, its bytes, its path or its head."""
    if rng.random() < 0.25:
        case = rng.choice(TABLE["rest"])
        method, path = case.get("path", "POST /v1/models/half:predict").split(" ", 1)
        body = case.get("body", "").encode()
    else:
        model, signature = rng.choice(sorted(definitions))
        values = {"signature_name": signature, "inputs": as_json(real_inputs(model, signature, rng))}
        if rng.random() < 0.3:
            values["instances"] = [values.pop("inputs")] * rng.randint(0, 2)
        method, path = "POST", f"/v1/models/{model}:{rng.choice(('predict',) * 8 + ('classify', 'regress'))}"
        body = (json.dumps(values) if rng.random() < 0.3 else spoil_json(values, rng)).encode()
    if rng.random() < 0.2:
        body = mutate(body, rng)
    headers = {"host": "me", "content-length": str(len(body))}
    if rng.random() < 0.1:
        headers["content-encoding"] = "gzip"
        body = rng.choice((body, gzip.compress(body), gzip.compress(body)[:-5], gzip.compress(bytes(200_000))))
        headers["content-length"] = str(len(body))
    if rng.random() < 0.5:
        headers[channel_lib.AUTHORIZATION] = channel_lib.SCHEME + caller.server.token
    if rng.random() < 0.05:
        method = rng.choice(("GET", "HEAD", "PUT", "OPTIONS", "BREW", "PATCH"))
    if rng.random() < 0.1:
        path = mutate(path.encode(), rng).translate(None, b" \r\n").decode("latin-1") or "/"
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head, is_whole = f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1", "replace"), path.isprintable()
    if rng.random() < 0.005:  # some wait for the rest of their head
        head, is_whole = mutate(head, rng), False
    caller.send(head, body, is_whole=is_whole and path.isascii())


def ask_many(ask, count, caller, definitions, real_inputs):
    """Asks so many; returns the server's memory before each fiftieth of them."""
    rng, levels = random.Random(count), []
    for number in range(count):
        if number % (count // 50) == 0:
            levels.append(caller.server.memory())
        ask(caller, rng, definitions, real_inputs)
    print(ask.__name__, dict(caller.counts), [level >> 20 for level in levels[::5]], "MB")
    return levels


@pytest.mark.parametrize("ask", [ask_grpc, ask_rest])
def test_requests_with_faults_are_answered_or_refused_with_a_reason(ask, caller, definitions, real_inputs):
    ask_many(ask, 500, caller, definitions, real_inputs)
    good = caller.counts["OK"] + caller.counts[200]
    assert 0.05 < good / 500 < 0.9
    status, content = caller.post("/v1/models/half:predict", b'{"instances": [1.0]}')
    assert (status, json.loads(content)) == (200, {"predictions": [2.5]})


def test_word_of_having_caught_up_that_asks_for_nothing_is_no_fault_of_the_server(caller):
    request = predict_request("tfmm", signatures.STATUS, {})
    request.output_filter.append("size")
    token = (channel_lib.AUTHORIZATION, channel_lib.SCHEME + caller.server.token)
    answer = caller.call(PREDICT, request.SerializeToString(), token, (channel_lib.CAUGHT_UP, "vector=1"))
    assert set(predict_pb2.PredictResponse.FromString(answer).outputs) == {"size"}


def test_reloads_with_faults_are_taken_or_refused_and_the_next_one_is_taken(half_plus_two_dir, serving_at):
    rng, refused, whole = random.Random(3), collections.Counter(), METHODS[RELOAD]()
    config = whole.config.model_config_list.config.add(name="half_plus_two", base_path=str(half_plus_two_dir))
    config.version_labels["stable"] = 123
    with serving_at(half_plus_two_dir) as addresses, grpc.insecure_channel(addresses["grpc"]) as channel:
        reload = channel.unary_unary(RELOAD)
        for _ in range(40):
            try:
                reload(mutate(whole.SerializeToString(), rng), timeout=TIMEOUT_S)
            except grpc.RpcError as error:
                refused[error.code().name] += 1
                assert error.details()
        assert refused.keys() <= {"INVALID_ARGUMENT", "FAILED_PRECONDITION", "UNKNOWN"}, refused
        reload(whole.SerializeToString(), timeout=TIMEOUT_S)
        answer = channel.unary_unary(PREDICT)(
            predict_request("half_plus_two", "serving_default", {"x": np.float32([1])}).SerializeToString(),
            timeout=TIMEOUT_S,
        )
    assert predict_pb2.PredictResponse.FromString(answer).outputs["y"].float_val == [2.5]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("ask", [ask_grpc, ask_rest])
def test_twenty_thousand_requests_with_faults_leave_no_memory_behind(ask, caller, definitions, real_inputs):
    levels = ask_many(ask, 20_000, caller, definitions, real_inputs)
    assert np.median(levels[-10:]) <= 1.05 * np.median(levels[10:20])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
SIZES = st.integers(-2, 5) | st.sampled_from([64, 65, 2**31, 2**62])
TENSORS = st.builds(
    tensor_pb2.TensorProto,
    dtype=st.integers(0, 25),
    tensor_shape=st.lists(SIZES, max_size=4).map(lambda sizes: {"dim": [{"size": size} for size in sizes]}),
    tensor_content=st.just(b"") | st.binary(max_size=32),
    int64_val=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3),
    float_val=st.lists(st.floats(width=32), max_size=3),
    string_val=st.lists(st.binary(max_size=5), max_size=3),
)
DRAWN = pytest.mark.parametrize("count", [150, pytest.param(5000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])


@DRAWN
def test_any_values_are_answered_or_refused_with_a_reason(count, caller, definitions):
    @hypothesis.settings(max_examples=count)
    @hypothesis.given(st.data())
    def ask(data):
        model, signature = data.draw(st.sampled_from(sorted(definitions)))
        names = st.sampled_from([*definitions[model, signature].inputs, "x"])
        inputs = JSON | st.dictionaries(names, JSON | st.lists(st.integers() | st.floats() | st.text()))
        form = data.draw(st.sampled_from(["inputs", "instances", "examples"]))
        body = {"signature_name": signature, form: data.draw(inputs if form == "inputs" else st.lists(inputs))}
        action = data.draw(st.sampled_from(["predict", "predict", "classify", "regress"]))
        caller.post(f"/v1/models/{model}:{action}", json.dumps(body).encode())

    ask()


@DRAWN
def test_any_tensors_are_answered_or_refused_with_a_reason(count, caller, definitions):
    @hypothesis.settings(max_examples=count)
    @hypothesis.given(st.data())
    def ask(data):
        model, signature = data.draw(st.sampled_from(sorted(definitions)))
        request = predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = model, signature
        for name in definitions[model, signature].inputs:
            request.inputs[name].CopyFrom(data.draw(TENSORS))
        caller.call(PREDICT, request.SerializeToString())

    ask()
