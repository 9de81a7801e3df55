"""A candidate whose judge was stopped with its service is judged later; one whose judge failed is refused."""

import json
import signal
import time

import numpy as np
import pytest

from serving.nearline import candidates
from tfmm.config import RunConfig


@pytest.fixture
def waiting(tmp_path):
    """A candidate that is ready to be judged, of a trainer's workdir."""
    found = candidates.Candidates(tmp_path / "model" / candidates.FOLDER, RunConfig(), {})
    place = tmp_path / "model" / candidates.FOLDER / "7"
    place.mkdir()
    np.save(place / candidates.TIMES, np.array([1.5]))
    (place / candidates.ORDER).write_text("{}")
    yield found
    found.close()


def end_judge(found, number):
    """Starts a judge, which takes seconds to load, and sends it a signal."""
    assert found.poll() is None and found.is_judging
    found._process.send_signal(number)
    while found.is_judging:
        time.sleep(0.01)


def test_a_judge_that_ends_with_its_service_leaves_its_candidate_to_the_next_start(waiting, tmp_path):
    end_judge(waiting, signal.SIGTERM)
    assert waiting.poll() is None and candidates.last_verdict(tmp_path) is None
    assert waiting.poll() is None and waiting.is_judging  # once more


def test_a_judge_that_fails_refuses_its_candidate_and_that_stays_known(waiting, tmp_path):
    end_judge(waiting, signal.SIGKILL)
    number, result, times_s = waiting.poll()
    assert (number, result["passed"], times_s.tolist()) == (7, False, [1.5])
    assert waiting.poll() is None and not waiting.is_judging
    for later in (8, 9):
        (tmp_path / "model" / candidates.FOLDER / str(later)).mkdir()
    waiting.clean()
    assert candidates.last_verdict(tmp_path) == (7, {**result, "candidate": 7})
    assert json.loads((tmp_path / "model" / candidates.FOLDER / candidates.LAST).read_text())["candidate"] == 7
