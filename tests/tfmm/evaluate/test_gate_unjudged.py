"""What could not be judged: all rows are held by their values, the rest is said."""

import dataclasses

import numpy as np
import pytest

from tests.tfmm.evaluate.test_gate_differences import CONFIG, encoders_report, judge, log, noisy, sigmoid
from tfmm import config as config_lib
from tfmm.evaluate import gate, wording

SHORT = "25 users, 30 are needed"


def of_few_users():
    labels, users, probability = log(num_users=25, rows=200)
    return labels, users, probability


def test_all_rows_of_few_users_are_held_by_their_values_and_that_is_warned_of():
    labels, users, probability = of_few_users()
    model = sigmoid(3.0 * np.log(probability / (1 - probability)) + 2.0)  # the order is perfect, LogLoss twice as high
    verdict = judge({"id": noisy(probability, 0.5), "multimodal": model}, labels, users)
    assert not verdict.passed
    assert any(reason.startswith("LogLoss of multimodal minus LogLoss of id is 0.") for reason in verdict.reasons)
    assert [warning for warning in verdict.warnings if SHORT in warning] == [
        f"multimodal is held against id without an interval, so that chance may decide: {SHORT}"
    ]


def test_good_model_of_few_users_passes_with_the_warning():
    labels, users, probability = of_few_users()
    verdict = judge({"id": noisy(probability, 0.8), "multimodal": probability}, labels, users)
    assert verdict.passed and SHORT in verdict.warnings[0]
    assert not judge({"id": probability, "multimodal": noisy(probability, 0.8)}, labels, users).passed


def test_few_users_with_both_classes_leave_the_other_metrics_their_intervals():
    labels, users, probability = log(num_users=5000, rows=1)
    users[:20] = users[20:40]  # twenty users have two rows
    verdict = judge({"id": noisy(probability, 0.8), "multimodal": probability}, labels, users)
    assert any("users with a click and a non-click, 30 are needed" in warning for warning in verdict.warnings)
    (said,) = [line for line in verdict.checks if line.startswith("LogLoss of multimodal minus")]
    assert said.endswith("within the interval")


def test_slices_that_are_not_judged_are_no_warning():
    labels, users, probability = log()
    scores = {"id": noisy(probability, 0.8), "multimodal": probability}
    verdict = judge(scores, labels, users, {"new_items": users < 12})
    assert verdict.passed and verdict.warnings == ()


def test_model_in_service_that_is_not_compared_is_a_warning():
    models = {name: {"auc": 0.6, "gauc": 0.6, "logloss": 0.4} for name in ("id", "multimodal")}
    report = {"models": models, "in_service": {"index": {}, "left_out": "it cannot score these examples: no age"}}
    said = "multimodal is not held against in_service: it cannot score these examples: no age"
    verdict = gate.decide(report, CONFIG)
    assert verdict.warnings == (said,)
    lines = wording.verdict_lines(dataclasses.asdict(verdict)) + wording.report_lines({**report, "encoders": {}})
    assert [line for line in lines if "no age" in line] == [f"Warning: {said}"]  # once


def test_line_of_a_difference_says_which_metric_is_not_judged_and_why():
    found = {
        "rows": 5000, "clicks": 1296, "users": 25, "gauc": None, "calibration_error": None,
        "log_loss": {"value": 0.1, "low": 0.05, "high": 0.2, "level": 0.99},
        "undefined": {"gauc": SHORT, "calibration_error": SHORT},
    }  # fmt: skip
    (line,) = wording.difference_lines({"differences": {"multimodal": {"id": {"all": found}}}})
    assert line == (
        "multimodal - id: LogLoss +0.1000 [+0.0500, +0.2000], GAUC and Calibration error not judged: "
        f"{SHORT} (5,000 rows, 1,296 clicks, 25 users)"
    )


@pytest.mark.parametrize(("worth", "left_out", "why"), [
    ({"all": {"gauc": None, "undefined": {"gauc": "12 clicks, 30 are needed"}}}, {}, "12 clicks, 30 are needed"),
    ({}, {"multimodal": "the model has no signature"}, "the model has no signature"),
    ({}, {}, "the report has no scores with hidden vectors"),
])  # fmt: skip
def test_encoder_whose_worth_cannot_be_measured_is_warned_of_and_never_refused(worth, left_out, why):
    report = encoders_report(low=-0.002)
    report["hidden"] = {"models": {}, "worth": {"multimodal": worth}, "left_out": left_out}
    verdict = gate.decide(report, dataclasses.replace(config_lib.GateConfig(), encoders="refuse"))
    assert verdict.passed
    assert verdict.warnings == (
        f"The text encoder learned nothing. What its vectors are worth to multimodal could not be measured: {why}.",
    )
