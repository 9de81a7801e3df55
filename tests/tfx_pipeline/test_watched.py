"""What a person sees of a run: its stages and what it came to, or one block that says what failed."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

pytest.importorskip("tfx", reason="TFX is not installed")

import pyarrow as pa
import pyarrow.parquet as pq

from tfx_pipeline import watched, workdir

BEAM = """Traceback (most recent call last):
  File "apache_beam/runners/common.py", line 1498, in process
    return self.do_fn_invoker.invoke_process(windowed_value)
ValueError: row 7 has no label

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "apache_beam/runners/worker/sdk_worker.py", line 307, in _execute
    response = task()
ValueError: row 7 has no label [while running 'Join']
"""


def start(tmp_path, root, **variables):
    environment = {
        **os.environ, "PYTHONPATH": str(root), "TF_CPP_MIN_LOG_LEVEL": "3", "TFMM_WORKDIR": str(tmp_path / "work")
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "tfx_pipeline/local_runner.py"],
        cwd=root, env={**environment, **variables}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_of_a_beam_error_the_error_is_told_and_not_the_workers_traceback():
    said = watched.in_words("ExampleGenerator", RuntimeError(BEAM))
    assert said == (
        "Generate examples (Beam) (ExampleGenerator) failed. RuntimeError: ValueError: row 7 has no label [while "
        "running 'Join']"
    )


def test_error_before_any_stage_is_told_as_such():
    assert watched.in_words("", ValueError("no such run")).startswith("The run, before its first stage, failed. Value")


def test_settings_that_cannot_be_used_are_one_block_with_the_log(tmp_path, root):
    out, err = start(tmp_path, root, TFMM_RUN="none.json").communicate()
    log = workdir.log_path(tmp_path / "work")
    assert err == (
        "The run, before its first stage, failed. ValueError: The run none.json must be a file. Received: none of that "
        f"name.\nThe whole log: {log}\n"
    )
    assert out == f"Run in {tmp_path / 'work'}. TFX's log: {log}\n"
    assert "Traceback" in log.read_text()


def test_workdir_that_tfx_takes_for_a_pattern_is_not_made(tmp_path, root):
    process = start(tmp_path, root, TFMM_WORKDIR=str(tmp_path / "run[v2]"))
    _, err = process.communicate()
    assert process.returncode == 1 and err.startswith("The workdir must have none of") and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_node_that_fails_is_named_with_its_error(tmp_path, root):
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"item_id": [1, 1], "title": ["a", "b"]}), tmp_path / "data" / "items.parquet")
    process = start(tmp_path, root, TFMM_DATA=str(tmp_path / "data"))
    out, err = process.communicate()
    assert process.returncode == 1
    block = err.strip().splitlines()
    assert "failed. " in block[0] and block[-1] == f"The whole log: {workdir.log_path(tmp_path / 'work')}"
    assert len(block) < 25 and "INFO" not in out + err


@pytest.mark.slow
def test_run_that_is_killed_says_by_what_and_stops_say_how_to_go_on(tmp_path, root):
    process = start(tmp_path, root)
    log = workdir.log_path(tmp_path / "work")
    _wait_for(lambda: log.exists() and "is running" in log.read_text())
    (dag,) = (child for child in psutil.Process(process.pid).children() if "local_runner" in " ".join(child.cmdline()))
    dag.send_signal(signal.SIGKILL)
    _, err = process.communicate()
    assert process.returncode == 1 and f"The pipeline was ended by SIGKILL. The end of {log}" in err

    before = log.stat().st_size
    process = start(tmp_path, root)
    _wait_for(lambda: "is running" in log.read_text()[before:])
    children = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 130 and "The same command goes on from here" in err
    assert psutil.wait_procs(children, timeout=20)[1] == []


def _wait_for(condition):
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.1)
    pytest.fail("it did not come to that")
