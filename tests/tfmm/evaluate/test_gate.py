"""Tests of the gate."""

import dataclasses
import math

import pytest

from tfmm import config as config_lib
from tfmm.evaluate import gate

GOOD = {"auc": 0.66, "gauc": 0.63, "logloss": 0.40}
TWIN = {"auc": 0.62, "gauc": 0.60, "logloss": 0.42}
CONFIG = config_lib.GateConfig(min_auc=0.6, min_gauc=0.6, max_logloss=0.5, max_loss_to_service=0.01)


def decide(config=CONFIG, **models):
    return gate.decide({"models": models}, config)


def test_first_run_is_held_against_bars_and_twin():
    verdict = decide(id=TWIN, multimodal=GOOD)
    assert verdict.passed and verdict.reasons == ()
    assert len(verdict.checks) == 4 and "GAUC of multimodal minus GAUC of id is 0.0300" in verdict.checks[3]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"auc": 0.59}, "AUC of multimodal is 0.5900, must be at least 0.6000"),
        ({"gauc": 0.55}, "GAUC of multimodal is 0.5500, must be at least 0.6000"),
        ({"logloss": 0.6}, "LogLoss of multimodal is 0.6000, must be at most 0.5000"),
        ({"logloss": math.nan}, "LogLoss of multimodal could not be measured, must be at most 0.5000"),
        ({"gauc": None}, "GAUC of multimodal could not be measured, must be at least 0.6000"),
    ],
)
def test_each_rule_can_fail(change, reason):
    verdict = decide(id=TWIN, multimodal={**GOOD, **change})
    assert not verdict.passed and reason in verdict.reasons


def test_model_that_does_not_beat_its_twin_fails():
    verdict = decide(id=GOOD, multimodal={**GOOD, "gauc": 0.62})
    assert verdict.reasons == ("GAUC of multimodal minus GAUC of id is -0.0100, must be at least 0.0000",)


def test_model_in_service_may_be_missed_by_little_only():
    assert decide(id=TWIN, multimodal=GOOD, in_service={**GOOD, "gauc": 0.635}).passed
    verdict = decide(id=TWIN, multimodal=GOOD, in_service={**GOOD, "gauc": 0.65})
    assert verdict.reasons == (
        "GAUC of multimodal minus GAUC of in_service is -0.0200, must be at least -0.0100",
    )
    assert not decide(id=TWIN, multimodal=GOOD, in_service={**GOOD, "gauc": None}).passed


def test_twin_alone_is_not_held_against_itself():
    config = dataclasses.replace(CONFIG, min_gain_over_id=0.1)
    assert gate.decide({"models": {"id": TWIN}}, config, candidate="id").passed


def hidden(bias, margin, **more):
    sets = {"nothing": {"bias": 9.0, "bias_margin": 0.0}, "all": {"bias": bias, "bias_margin": margin}}
    report = {"models": {"id": TWIN, "multimodal": GOOD}, "hidden": {"models": {"multimodal": sets}, **more}}
    return gate.decide(report, CONFIG)


@pytest.mark.parametrize(("bias", "margin", "passed"), [
    (0.09, 0.0, True), (-0.09, 0.0, True), (0.12, 0.03, True), (-0.12, 0.01, False), (1.24, 0.04, False),
    (None, None, False),
])  # fmt: skip
def test_scores_of_targets_without_vectors_must_be_true(bias, margin, passed):
    verdict = hidden(bias, margin)
    assert verdict.passed is passed and len(verdict.checks) == 5
    assert all("target's vectors hidden (all)" in reason for reason in verdict.reasons)


def test_bias_is_said_with_what_chance_explains():
    assert hidden(1.242, 0.04).reasons == (
        "Mean score of multimodal over the click rate, target's vectors hidden (all) is 2.2420 +- 0.0400, must be "
        "within 0.1000 of 1",
    )


def test_model_that_cannot_hide_vectors_is_not_held_to_it_and_that_is_said():
    verdict = hidden(1.0, 0.0, left_out={"multimodal": "the model has no signature"})
    assert verdict.passed
    assert verdict.checks[4] == "Scores of multimodal with hidden vectors are not checked: the model has no signature"


def test_report_without_the_twin_is_refused():
    with pytest.raises(ValueError, match="The report must have the model 'id'"):
        decide(multimodal=GOOD)
