"""Logs: one line per event, text or JSON; a traceback for our faults alone."""

import json
import logging
import subprocess
import sys

import grpc
import httpx
import pytest
import tensorflow as tf

from serving.model_server import errors


def written(code, *arguments):
    setup = f"import logging; from serving import logs; logs.configure(*{arguments!r}); log = logging.getLogger('x'); "
    result = subprocess.run([sys.executable, "-c", setup + code], capture_output=True, text=True, check=True)
    return result.stderr.splitlines()


def test_a_line_has_time_level_and_logger():
    (line,) = written("log.warning('it is %d', 3); log.debug('no')")
    assert line.endswith(" WARNING x it is 3")


def test_json_has_one_object_per_event_with_its_traceback():
    code = "\ntry:\n    1 / 0\nexcept ZeroDivisionError:\n    log.exception('a\\nb')\nlog.info('no')"
    (event,) = map(json.loads, written(code, "json", "error"))
    assert event["level"] == "ERROR" and event["logger"] == "x" and event["message"] == "a\nb"
    assert "ZeroDivisionError" in event["traceback"] and event["time"].endswith("+00:00")


def test_tensorflow_writes_its_lines_once():
    code = "\nfrom tensorflow.python.platform import tf_logging\nlogs.configure('json')\ntf_logging.warning('once')"
    result = subprocess.run(
        [sys.executable, "-c", "from serving import logs" + code], capture_output=True, text=True, check=True
    )
    (line,) = [line for line in result.stderr.splitlines() if "once" in line]
    assert json.loads(line)["logger"] == "tensorflow"


def test_our_faults_are_logged_with_their_traceback(caplog):
    try:
        raise ZeroDivisionError("ours")
    except ZeroDivisionError as error:
        assert errors.report("POST /v1/models/m:predict", error).code == errors.INTERNAL
    (record,) = caplog.records
    assert record.levelno == logging.ERROR and "POST /v1/models/m:predict" in record.getMessage()
    assert record.exc_info[0] is ZeroDivisionError


@pytest.mark.parametrize(
    "error", [errors.ServingError(errors.INVALID_ARGUMENT, "theirs"), tf.errors.OutOfRangeError(None, None, "theirs")]
)
def test_clients_faults_leave_no_traceback(caplog, error):
    errors.report("call", error)
    assert not caplog.records


def test_what_the_server_foresaw_is_logged_without_a_traceback(caplog):
    """A reload that names no model: the operator's fault, and UNKNOWN as TensorFlow Serving answers it."""
    errors.report("HandleReloadConfigRequest", errors.ServingError(errors.UNKNOWN, "Model m did not become available."))
    (record,) = caplog.records
    assert "Model m did not become available." in record.getMessage() and not record.exc_info


def test_truncated_and_mangled_requests_leave_no_traceback(server, caplog, capfd):
    with grpc.insecure_channel(server["grpc"]) as channel:
        for method in ("PredictionService/Predict", "PredictionService/Classify", "ModelService/GetModelStatus"):
            with pytest.raises(grpc.RpcError, match="INVALID_ARGUMENT"):
                channel.unary_unary(f"/tensorflow.serving.{method}")(b"\x0a\xff", timeout=60)
    httpx.post(server["rest"] + "/v1/models/half_plus_two:predict", content=b"{", timeout=60)
    assert "Traceback" not in caplog.text + capfd.readouterr().err
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
