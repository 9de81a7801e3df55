"""The gate: whether a new model may be pushed, and why not."""

from __future__ import annotations

import dataclasses
import math
import typing

from tfmm import config as config_lib
from tfmm.evaluate import differences, in_service, missing
from tfmm.evaluate import recall as recall_lib
from tfmm.modalities import NOTHING

Rule = tuple[bool, str]  # whether it holds, and the line that says so


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the gate decided.

    Attributes:
        passed: True where no rule failed.
        reasons: one line per rule that failed, with the value, its interval and the bar; empty where the model passed.
        checks: one line per rule that was applied, failed or not, and per rule that could not be.
        warnings: what does not stop a model, and should be known first.
    """

    passed: bool
    reasons: tuple[str, ...]
    checks: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def decide(
    report: typing.Mapping[str, typing.Any],
    config: config_lib.GateConfig,
    *,
    candidate: str = "multimodal",
    baseline: str = "id",
    service: str = in_service.NAME,
    min_recall: float = 0.0,
) -> Verdict:
    """Holds a report against absolute bars, the ID-only twin and, where there is one, the model in service.

    A difference from the twin or the model in service fails where it misses its bound beyond the paired interval,
    which covers the evaluation's sampling; the spread of retraining is not in it, and the bars must cover that. On all
    rows a difference without an interval is held by its value, with a warning; on other slices it is not judged.

    Args:
        report: what `report.evaluate` returned; models are looked up under `report["models"]`.
        config: the bars.
        candidate: the model that would be pushed.
        baseline: its ID-only twin; the rules are left out where the candidate is that twin.
        service: the model in service; the rules are left out where the report has none (the first run).
        min_recall: of the candidate's pre-ranking head, where it has one, see `recall.report`.
    Returns:
        The verdict. A metric that does not exist (a single class in the rows) fails its rule: a model that
        could not be judged is not pushed.
    Raises:
        ValueError: the report lacks the candidate or its twin.

    >>> models = {"id": {"auc": 0.6, "gauc": 0.58, "logloss": 0.4},
    ...           "multimodal": {"auc": 0.65, "gauc": 0.62, "logloss": 0.38}}
    >>> decide({"models": models}, config_lib.GateConfig()).passed
    True
    >>> decide({"models": models}, config_lib.GateConfig(min_auc=0.7)).reasons
    ('AUC of multimodal is 0.6500, must be at least 0.7000',)
    """
    models = report["models"]
    for name in (candidate, baseline):
        if name not in models:
            raise ValueError(f"The report must have the model {name!r}. Received: {sorted(models)}.")
    new = models[candidate]
    rules = [
        _rule(f"AUC of {candidate}", new["auc"], config.min_auc),
        _rule(f"GAUC of {candidate}", new["gauc"], config.min_gauc),
        _rule(f"LogLoss of {candidate}", new["logloss"], config.max_logloss, at_most=True),
    ]
    references = {} if candidate == baseline else {baseline: config.min_gain_over_id}
    if service in models:
        references[service] = -config.max_loss_to_service
    warnings = []
    for reference, min_gain in references.items():
        rules += _difference_rules(report, config, candidate, reference, min_gain)
        warnings += _unjudged(report, candidate, reference)
    reason = report.get(service, {}).get("left_out")
    if service not in models and reason:
        warnings.append(f"{candidate} is not held against {service}: {reason}")
        rules.append((True, warnings[-1]))
    rules += _hidden_rules(report.get("hidden", {"models": {}}), candidate, config.max_hidden_bias)
    rules += _recall_rules(report.get(recall_lib.SECTION, {}).get(candidate), candidate, min_recall)
    encoder_rules = list(_encoder_rules(report, candidate, config.encoders))
    reasons = tuple(text for held, text in rules + encoder_rules if not held)
    warnings += [text for held, text in encoder_rules if held]
    return Verdict(not reasons, reasons, tuple(text for _, text in rules), tuple(warnings))


def _difference_rules(
    report: typing.Mapping[str, typing.Any],
    config: config_lib.GateConfig,
    candidate: str,
    reference: str,
    min_gain: float,
) -> list[Rule]:
    """Holds a model against another on each slice; a loss in GAUC on a slice is held to what service may lose.

    What has no interval is not judged on a slice, and on all rows held by its value: too few rows pass no model.
    """
    slices = report.get("differences", {}).get(candidate, {}).get(reference)
    values = _differences_alone(report["models"], candidate, reference)
    if slices is None:  # a report without intervals
        slices = {differences.ALL: {"gauc": values["gauc"]}}
    rules = []
    for name, found in slices.items():
        slice_gain = min_gain if name == differences.ALL else min(min_gain, -config.max_loss_to_service)
        bounds = {
            "gauc": slice_gain,
            "log_loss": config.max_logloss_rise,
            "calibration_error": config.max_calibration_rise,
        }
        for metric in (metric for metric in bounds if metric in found):
            what = f"{differences.METRICS[metric]} of {candidate} minus {differences.METRICS[metric]} of {reference}"
            what += f", {differences.SLICES[name]}" if differences.SLICES[name] else ""
            reason = found.get("undefined", {}).get(metric)
            if found[metric] is None and name == differences.ALL:
                rules.append(_paired_rule(what, values[metric], bounds[metric], at_most=metric != "gauc"))
            elif found[metric] is None and reason is not None:
                rules.append((True, f"{what}: not judged: {reason}"))
            else:
                rules.append(_paired_rule(what, found[metric], bounds[metric], at_most=metric != "gauc"))
    return rules


def _differences_alone(
    models: typing.Mapping[str, typing.Mapping[str, typing.Any]], candidate: str, reference: str
) -> dict[str, dict[str, float] | None]:
    """Returns how a model differs from another on all rows, without an interval; None for what one of them lacks."""
    new, old = (
        {
            "gauc": models[name]["gauc"],
            "log_loss": models[name]["logloss"],
            "calibration_error": None if found is None else abs(found - 1.0),
        }
        for name, found in ((name, models[name].get("calibration")) for name in (candidate, reference))
    )
    values = {metric: _minus(new[metric], old[metric]) for metric in new}
    return {
        metric: None if value is None else dict.fromkeys(("value", "low", "high"), value)
        for metric, value in values.items()
    }


def _unjudged(report: typing.Mapping[str, typing.Any], candidate: str, reference: str) -> list[str]:
    """Returns a warning for each reason for which a difference on all rows has no interval."""
    slices = report.get("differences", {}).get(candidate, {}).get(reference, {})
    reasons = dict.fromkeys(slices.get(differences.ALL, {}).get("undefined", {}).values())
    said = f"{candidate} is held against {reference} without an interval, so that chance may decide"
    return [f"{said}: {reason}" for reason in reasons]


def _paired_rule(
    name: str, found: typing.Mapping[str, float] | None, bar: float, at_most: bool
) -> Rule:
    """Holds a difference to a bar; where the bar lies inside the interval, or beyond it on the good side, it holds."""
    bound = f"must be at {'most' if at_most else 'least'} {bar:.4f}"
    if found is None:
        return False, f"{name} could not be measured, {bound}"
    is_exact = found["low"] == found["value"] == found["high"]
    interval = "" if is_exact else f" [{found['low']:.4f}, {found['high']:.4f}]"
    held = found["low"] <= bar if at_most else found["high"] >= bar
    return held, f"{name} is {found['value']:.4f}{interval}, {bound}{'' if is_exact else ' within the interval'}"


def _hidden_rules(hidden: typing.Mapping[str, typing.Any], candidate: str, bar: float) -> list[Rule]:
    if candidate in hidden.get("left_out", {}):
        reason = hidden["left_out"][candidate]
        return [(True, f"Scores of {candidate} with hidden vectors are not checked: {reason}")]
    sets = hidden["models"].get(candidate, {})
    return [_bias_rule(candidate, name, sets[name], bar) for name in sets if name != NOTHING]


def _encoder_rules(report: typing.Mapping[str, typing.Any], candidate: str, setting: str) -> typing.Iterator[Rule]:
    """Says what each encoder did not learn, and what the click model would lose without its vectors.

    With the setting "refuse", an encoder that is not better than its untrained self fails, unless the click model
    ranks worse, beyond the interval, with the vectors of its modality hidden, or that could not be measured.
    """
    worth = report.get("hidden", {}).get("worth", {}).get(candidate, {})
    for modality, facts in report.get("encoders", {}).items():
        warnings = facts.get("warnings", [])
        found = missing.set_of(modality, worth)
        gain = found.get("gauc")
        is_needed = gain is not None and gain["low"] > 0.0
        said = " ".join(warnings)
        if gain is not None:
            said += (
                f" Hiding the targets' {modality} vectors moves GAUC of {candidate} by {-gain['value']:+.4f} "
                f"[{-gain['high']:+.4f}, {-gain['low']:+.4f}]"
            )
            said += (
                ": it needs them."
                if is_needed
                else ", within noise: it may be as good without them, which a run tells whose `modalities` lack "
                f"{modality}."
            )
        else:
            why = (
                found.get("undefined", {}).get("gauc")
                or report.get("hidden", {}).get("left_out", {}).get(candidate)
                or "the report has no scores with hidden vectors"
            )
            said += f" What its vectors are worth to {candidate} could not be measured: {why}."
        if warnings:
            yield setting == "warn" or gain is None or is_needed or not facts.get("is_no_better"), said


def _recall_rules(found: typing.Mapping[str, typing.Any] | None, candidate: str, bar: float) -> list[Rule]:
    """Holds the recall of a pre-ranking head by its value; none where there is no head."""
    if found is None:
        return []
    what = f"{recall_lib.in_words(found).capitalize()}, {candidate}"
    if found["recall"] is None:
        return [(True, f"{what}: not judged: {found['undefined']}")]
    return [_rule(what, found["recall"], bar)]


def _minus(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left - right


def _bias_rule(model: str, hidden: str, found: typing.Mapping[str, float | None], bar: float) -> Rule:
    """Holds the mean score, over the click rate, to 1; what could be chance alone is allowed."""
    name = f"Mean score of {model} over the click rate, target's vectors hidden ({hidden})"
    bias, margin = found["bias"], found["bias_margin"]
    if bias is None or margin is None:
        return False, f"{name} could not be measured, must be within {bar:.4f} of 1"
    return abs(bias) - margin <= bar, f"{name} is {1 + bias:.4f} +- {margin:.4f}, must be within {bar:.4f} of 1"


def _rule(name: str, value: float | None, bar: float, at_most: bool = False) -> Rule:
    bound = f"must be at {'most' if at_most else 'least'} {bar:.4f}"
    if value is None or not math.isfinite(value):
        return False, f"{name} could not be measured, {bound}"
    return (value <= bar if at_most else value >= bar), f"{name} is {value:.4f}, {bound}"
