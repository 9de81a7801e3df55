"""The gate on differences from the twin and the model in service: what chance explains refuses no model."""

import dataclasses
import json

import numpy as np
import pytest

from tfmm import config as config_lib
from tfmm import metrics
from tfmm.evaluate import differences, gate
from tfmm.evaluate import report as report_lib

CONFIG = config_lib.GateConfig(max_hidden_bias=9.0)


def log(num_users=600, rows=20, seed=0):
    """Clicks with known probabilities; returns labels, users, probabilities."""
    generator = np.random.default_rng(seed)
    user = np.repeat(np.arange(num_users), rows)
    probability = 1 / (1 + np.exp(1.5 - generator.normal(size=len(user))))
    return (generator.random(len(user)) < probability).astype(int), user, probability


def logit(probability):
    return np.log(probability / (1 - probability))


def sigmoid(values):
    return 1 / (1 + np.exp(-values))


def judge(scores, labels, users, slices=None, config=CONFIG, items=None):
    counts, items = np.ones(len(labels), int), np.arange(len(labels)) if items is None else items
    report = report_lib.compare(scores, labels, users, items, counts)
    slices = {differences.ALL: np.ones(len(labels), bool), **(slices or {})}
    report["differences"] = differences.report(scores, ("id", "in_service"), labels, users, items, slices)
    json.dumps(report, allow_nan=False)
    return gate.decide(report, config)


def noisy(probability, size, seed=1):
    return sigmoid(logit(probability) + np.random.default_rng(seed).normal(0, size, len(probability)))


def test_better_order_with_worse_log_loss_is_refused():
    """As on a real set: GAUC rose, LogLoss by .026, since all logits had grown."""
    labels, users, probability = log()
    model = sigmoid(1.8 * logit(probability) + 1.2)
    scores = {"id": noisy(probability, 0.5), "multimodal": model}
    assert metrics.gauc(labels, model, users).value > metrics.gauc(labels, scores["id"], users).value
    rise = metrics.log_loss(labels, model) - metrics.log_loss(labels, scores["id"])
    assert 0.01 < rise < 0.04
    verdict = judge(scores, labels, users)
    assert not verdict.passed
    reason = verdict.reasons[0]
    assert reason.startswith(f"LogLoss of multimodal minus LogLoss of id is {rise:.4f} [0.0")
    assert reason.endswith("must be at most 0.0020 within the interval")


def test_same_rise_on_few_rows_may_be_chance_and_the_interval_says_so():
    labels, users, probability = log(num_users=60, rows=6)
    scores = {"id": noisy(probability, 0.5), "multimodal": noisy(probability, 0.6, seed=2)}
    rise = metrics.log_loss(labels, scores["multimodal"]) - metrics.log_loss(labels, scores["id"])
    assert rise > CONFIG.max_logloss_rise
    verdict = judge(scores, labels, users)
    assert verdict.passed, verdict.reasons
    (line,) = [check for check in verdict.checks if check.startswith("LogLoss of multimodal minus")]
    assert f"is {rise:.4f} [-0." in line


def test_model_of_the_same_truth_is_refused_by_chance_alone_in_few_of_many_runs():
    refused = 0
    for seed in range(60):
        labels, users, probability = log(num_users=150, rows=8, seed=seed)
        names = ("id", "multimodal", "in_service")
        scores = {name: noisy(probability, 0.5, 100 * seed + place) for place, name in enumerate(names)}
        new = np.random.default_rng(seed).random(len(labels)) < 0.3
        refused += not judge(scores, labels, users, {"new_items": new}).passed
    assert refused <= 6  # a dozen lines each, no true difference in any; 2 of 60 are refused


def refusals(num_items, name, runs=60):
    """Judges models that each err once per item, on a slice of so many items that all users see: none is better."""
    refused = 0
    for seed in range(runs):
        generator = np.random.default_rng(seed)
        users, items = np.repeat(np.arange(600), 5), generator.integers(0, num_items, 3000)
        truth = generator.normal(-1.5, 0.7, len(users))
        labels = (generator.random(len(users)) < sigmoid(truth)).astype(int)
        errors = generator.normal(0, 0.5, (3, num_items))
        names = ("id", "multimodal", "in_service")
        scores = {model: sigmoid(truth + error[items]) for model, error in zip(names, errors)}
        rows = np.ones(len(users), bool)
        found = differences.report(scores, ("id", "in_service"), labels, users, items, {name: rows})
        models = {model: {"auc": 0.6, "gauc": 0.6, "logloss": 0.4} for model in scores}
        refused += not gate.decide({"models": models, "differences": found}, CONFIG).passed
    return refused


def test_models_that_err_by_item_are_refused_by_chance_on_few_slices_of_items():
    assert refusals(8, "new_items") == 0  # too few to judge; by users alone 22 of 60 are refused
    assert refusals(40, "without_vectors") <= 2  # by users alone 5


def test_slice_of_few_items_is_not_judged_and_that_is_said():
    labels, users, probability = log()
    items = np.arange(len(users)) % 8
    scores = {"id": probability, "multimodal": noisy(probability, 1.5)}
    rows = np.random.default_rng(0).random(len(labels)) < 0.2
    verdict = judge(scores, labels, users, {"new_items": rows}, items=items)
    said = [line for line in verdict.checks if "new items" in line]
    assert len(said) == 3 and all(line.endswith(", new items: not judged: 8 items, 30 are needed") for line in said)


def test_interval_of_a_slice_of_items_holds_that_of_items():
    labels, users, probability = log()
    items = np.random.default_rng(1).integers(0, 35, len(users))
    error = np.random.default_rng(2).normal(0, 0.5, 35)[items]
    columns = labels, sigmoid(logit(probability) + error), probability, users
    alone, both = differences.slice_difference(*columns), differences.slice_difference(*columns, item_ids=items)
    for metric in ("log_loss", "calibration_error"):
        drawn = metrics.user_bootstrap(
            metric, labels, columns[1], items, baseline_scores=probability, level=differences.LEVEL
        )
        assert both[metric]["low"] == min(alone[metric]["low"], drawn.low)
        assert both[metric]["high"] == max(alone[metric]["high"], drawn.high)
    assert both["gauc"] == alone["gauc"]


def test_scores_off_the_click_rate_are_refused_though_the_order_is_better():
    labels, users, probability = log()
    scores = {"id": noisy(probability, 0.5), "multimodal": sigmoid(logit(probability) + 0.17)}
    config = dataclasses.replace(CONFIG, max_logloss_rise=1.0)
    (reason,) = judge(scores, labels, users, config=config).reasons
    name = "Calibration error of multimodal minus Calibration error of id"
    assert reason.startswith(f"{name} is 0.0902 [0.0819, 0.0990], must be at most 0.0500")
    assert judge(scores, labels, users, config=dataclasses.replace(config, max_calibration_rise=0.2)).passed


@pytest.mark.parametrize("name", ["new_items", "without_vectors"])
def test_loss_on_a_slice_alone_is_refused(name):
    words = differences.SLICES[name]
    labels, users, probability = log()
    rows = np.random.default_rng(0).random(len(labels)) < 0.2
    model = np.where(rows, noisy(probability, 1.6), probability)
    verdict = judge({"id": noisy(probability, 0.8), "multimodal": model}, labels, users, {name: rows})
    assert not verdict.passed and all(f"of id, {words} is" in reason for reason in verdict.reasons)
    assert {reason.split()[0] for reason in verdict.reasons} >= {"GAUC", "LogLoss"}


def test_slice_with_few_users_is_not_judged_and_that_is_said():
    labels, users, probability = log()
    scores = {"id": probability, "multimodal": np.where(users < 12, 1 - probability, probability)}
    verdict = judge(scores, labels, users, {"new_items": users < 12}, dataclasses.replace(CONFIG, max_logloss_rise=1.0))
    said = [line for line in verdict.checks if "new items" in line]
    assert len(said) == 3 and all("not judged: 12 users" in line for line in said)
    assert all(line.endswith(", 30 are needed") for line in said)


def test_model_in_service_is_held_against_by_the_same_metrics():
    labels, users, probability = log()
    scores = {"id": noisy(probability, 0.8), "multimodal": noisy(probability, 0.7), "in_service": probability}
    verdict = judge(scores, labels, users)
    assert not verdict.passed and all("of in_service is" in reason for reason in verdict.reasons)
    assert sum("in_service" in line for line in verdict.checks) == 3
    assert judge({**scores, "in_service": scores["multimodal"]}, labels, users).passed


def test_model_in_service_that_cannot_score_the_rows_is_said():
    models = {name: {"auc": 0.6, "gauc": 0.6, "logloss": 0.4} for name in ("id", "multimodal")}
    report = {"models": models, "in_service": {"index": {}, "left_out": "it cannot score these examples: no age"}}
    verdict = gate.decide(report, CONFIG)
    assert verdict.passed
    assert verdict.checks[-1] == "multimodal is not held against in_service: it cannot score these examples: no age"


def test_twin_alone_is_held_against_the_model_in_service():
    labels, users, probability = log(num_users=100)
    slices = {differences.ALL: np.ones(len(labels), bool)}
    scores = {"id": noisy(probability, 0.5), "in_service": probability}
    found = differences.report(scores, ("id", "in_service"), labels, users, np.arange(len(users)), slices)
    assert list(found) == ["id"] and list(found["id"]) == ["in_service"]


def encoders_report(low, is_no_better=True):
    models = {name: {"auc": 0.6, "gauc": 0.6, "logloss": 0.4} for name in ("id", "multimodal")}
    worth = {"all": {"gauc": {"value": 0.004, "low": low, "high": 0.01, "level": 0.99}}}
    return {
        "models": models,
        "encoders": {"text": {"warnings": ["The text encoder learned nothing."], "is_no_better": is_no_better}},
        "hidden": {"models": {}, "worth": {"multimodal": worth}},
    }


def test_encoder_that_learned_nothing_is_warned_of_with_what_it_is_worth():
    verdict = gate.decide(encoders_report(low=-0.002), CONFIG)
    assert verdict.passed
    assert verdict.warnings == (
        "The text encoder learned nothing. Hiding the targets' text vectors moves GAUC of multimodal by -0.0040 "
        "[-0.0100, +0.0020], within noise: it may be as good without them, which a run tells whose `modalities` lack "
        "text.",
    )


@pytest.mark.parametrize(("low", "is_no_better", "passed"), [
    (-0.002, True, False), (0.001, True, True), (-0.002, False, True),
])  # fmt: skip
def test_by_a_setting_an_encoder_that_adds_nothing_is_refused(low, is_no_better, passed):
    config = dataclasses.replace(CONFIG, encoders="refuse")
    verdict = gate.decide(encoders_report(low, is_no_better), config)
    assert verdict.passed is passed
    assert ("learned nothing" in "".join(verdict.reasons)) is not passed


def test_settings_are_checked():
    with pytest.raises(ValueError, match='`encoders` must be "warn" or "refuse"'):
        config_lib.GateConfig(encoders="drop")
    with pytest.raises(ValueError, match="`max_logloss_rise` must not be negative"):
        config_lib.GateConfig(max_logloss_rise=-0.1)
