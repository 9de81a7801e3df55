"""What the demo shows of a verdict, and of processes that do not answer."""

import os

from serving.demo import figures
from serving.deploy import started
from serving.nearline import candidates


def found(**values):
    base = dict.fromkeys(field for field in figures.Figures.__dataclass_fields__)
    return figures.Figures(**{**base, "events_per_s": 0.0, "requests_per_s": 0.0, "failed": 0, "lost": 0, "waiting": 0,
                              "verdict": "", **values})  # fmt: skip


def test_what_is_not_known_is_a_dash_and_no_zero():
    assert figures.line(found()) == (
        "0.0 events/s, scored after -, 0 wait, lag - | 0.0 requests/s | - impressions in its window, - trained | - in "
        "service, none judged yet"
    )


def test_what_went_wrong_is_counted():
    line = figures.line(found(failed=3, lost=2, candidate=4, verdict=figures.in_words(
        {"passed": False, "reasons": ["AUC is 0.5, must be at least 0.52", "GAUC is low"]})))  # fmt: skip
    assert "0 wait, 2 lost," in line and "requests/s, 3 failed" in line
    assert line.endswith("candidate 4 refused: AUC is 0.5, must be at least 0.52 (and 1 more)")


def test_a_process_that_does_not_answer_has_no_samples():
    assert figures.samples(*started.free_ports(1)) == {}


def test_the_last_verdict_is_the_newest_of_any_model(tmp_path):
    assert candidates.last_verdict(tmp_path) is None
    for place, (model, number) in enumerate((("a", 7), ("b", 1))):
        path = tmp_path / model / candidates.FOLDER / candidates.LAST
        path.parent.mkdir(parents=True)
        path.write_text(f'{{"passed": true, "candidate": {number}}}')
        os.utime(path, (place + 1, place + 1))
    assert candidates.last_verdict(tmp_path) == (1, {"passed": True, "candidate": 1})
