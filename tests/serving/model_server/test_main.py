"""The command: flags, ready file and a clean stop."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request

import pytest

from serving.model_server.__main__ import main, parser


@contextlib.contextmanager
def command(root, *flags):
    process = subprocess.Popen(
        [sys.executable, "-m", "serving.model_server", *flags],
        cwd=root,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(120)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serves_until_a_signal_and_leaves_nothing(root, tmp_path, half_plus_two_dir, number):
    ready_file = tmp_path / "ready.json"
    with command(
        root,
        "--model-name",
        "half",
        "--model_base_path",
        str(half_plus_two_dir),
        "--port=0",
        "--rest-api-port=0",
        "--ready-file",
        str(ready_file),
    ) as process:
        deadline = time.monotonic() + 500
        while not ready_file.exists() and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.05)
        facts = json.loads(ready_file.read_text())
        assert facts["pid"] == process.pid
        url = f"http://127.0.0.1:{facts['rest_port']}/v1/models/half:predict"
        with urllib.request.urlopen(url, data=b'{"instances": [2]}', timeout=60) as answer:
            assert json.load(answer) == {"predictions": [3.0]}
        process.send_signal(number)
        assert process.wait(120) == 0
        assert not ready_file.exists()


def test_flags_have_the_official_names_and_take_dashes():
    flags = parser().parse_args(
        ["--model-base-path=/m", "--enable_model_warmup=false", "--enable_serialization_as_tensor_content"]
    )
    assert flags.model_base_path == "/m" and not flags.enable_model_warmup
    assert flags.enable_serialization_as_tensor_content


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--model_base_path or --model_config_file"),
        (["--model_base_path=/m", "--xla_cpu_compilation_enabled=false"], "jit_compile=False"),
        (["--model_base_path=/m", "--enable_model_warmup=maybe"], "must be true or false"),
        (["--model_config_file=/nowhere/models.config"], "No such file"),
    ],
)
def test_bad_flags_are_refused(capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert message in capsys.readouterr().err
