"""Tests of encoders that users bring by dotted name."""

import sys

import pytest

from tfmm import own_classes, runs
from tfmm.config import Method, RunConfig
from tfmm.modalities import Modality

TEAM = """
class Trained:
    def __init__(self, config): ...
    def prepare(self, contents): ...
    def build_model(self): ...


class Fixed:
    def encode(self, contents): ...


def make(config):
    return Fixed()


number = 3
"""


@pytest.fixture
def team(tmp_path, monkeypatch):
    """Names of encoders in a module of the current folder."""
    (tmp_path / "own_team.py").write_text(TEAM)
    (tmp_path / "broken_team.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return lambda name: f"own_team:{name}"


def test_names_of_the_current_folder_are_found(team):
    assert own_classes.load(team("number"), "number") == 3
    good = (Modality("a", team("Trained")), Modality("b", team("Fixed"), frozen=True), Modality("c", team("make")))
    runs.verify(RunConfig(modalities=good))


def test_all_that_cannot_be_used_is_told_before_any_work(team):
    bad = (
        Modality("a", "no_such_module:Audio"),
        Modality("b", team("Missing")),
        Modality("c", "broken_team:Audio"),
        Modality("d", team("number")),
        Modality("e", team("Fixed")),
        Modality("f", team("Trained"), frozen=True),
    )
    with pytest.raises(ValueError, match="The run's encoders, methods and model must work") as error:
        runs.verify(RunConfig(modalities=bad, methods=(Method("no_such_module:Best"),)))
    said = str(error.value)
    for fault in (
        "The method 'no_such_module:Best' must name an importable class",
        "The a encoder 'no_such_module:Audio' must name an importable class",
        "The b encoder",
        "ZeroDivisionError: division by zero",
        "modality 'd': `encoder` must be callable, not int",
        "modality 'e': `encoder`, the class own_team:Fixed, must have prepare, build_model. Derive it from",
        "modality 'f': `encoder`, the class own_team:Trained, must have encode. Give it `encode`",
    ):
        assert fault in said
