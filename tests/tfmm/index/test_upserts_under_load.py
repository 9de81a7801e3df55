"""Four writers, readers and compaction on one index at a time: no row is wrong."""

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_no_row_is_wrong_after_upserts_of_four_writers_against_readers(root):
    command = [sys.executable, "benchmarks/index_upserts.py", "--upserts=16384", "--items=500", "--without-record"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
