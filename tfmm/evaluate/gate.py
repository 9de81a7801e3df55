"""The gate: whether a new model may be pushed, and why not."""

from __future__ import annotations

import dataclasses
import math
import typing

from tfmm import config as config_lib
from tfmm.modalities import NOTHING


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the gate decided.

    Attributes:
        passed: True where no rule failed.
        reasons: one line per rule that failed, with the value and the bar; empty where the model passed.
        checks: one line per rule that was applied, failed or not.
    """

    passed: bool
    reasons: tuple[str, ...]
    checks: tuple[str, ...] = ()


def decide(
    report: typing.Mapping[str, typing.Any],
    config: config_lib.GateConfig,
    *,
    candidate: str = "multimodal",
    baseline: str = "id",
    service: str = "in_service",
) -> Verdict:
    """Holds a report against absolute bars, the ID-only twin and, where there is one, the model in service.

    Args:
        report: what `report.evaluate` returned; models are looked up under `report["models"]`.
        config: the bars.
        candidate: the model that would be pushed.
        baseline: its ID-only twin; the rule is left out where the candidate is that twin.
        service: the model in service; the rule is left out where the report has none (the first run).
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
    if candidate != baseline:
        rules.append(
            _rule(
                f"GAUC of {candidate} minus GAUC of {baseline}",
                _difference(new["gauc"], models[baseline]["gauc"]),
                config.min_gain_over_id,
            )
        )
    if service in models:
        rules.append(
            _rule(
                f"GAUC of {candidate} minus GAUC of {service}",
                _difference(new["gauc"], models[service]["gauc"]),
                -config.max_loss_to_service,
            )
        )
    hidden = report.get("hidden", {"models": {}})
    if candidate in hidden.get("left_out", {}):
        reason = hidden["left_out"][candidate]
        rules.append((True, f"Scores of {candidate} with hidden vectors are not checked: {reason}"))
    else:
        sets = hidden["models"].get(candidate, {})
        rules += [_bias_rule(candidate, name, sets[name], config.max_hidden_bias) for name in sets if name != NOTHING]
    reasons = tuple(text for held, text in rules if not held)
    return Verdict(not reasons, reasons, tuple(text for _, text in rules))


def _difference(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left - right


def _bias_rule(model: str, hidden: str, found: typing.Mapping[str, float | None], bar: float) -> tuple[bool, str]:
    """Holds the mean score, over the click rate, to 1; what could be chance alone is allowed."""
    name = f"Mean score of {model} over the click rate, target's vectors hidden ({hidden})"
    bias, margin = found["bias"], found["bias_margin"]
    if bias is None or margin is None:
        return False, f"{name} could not be measured, must be within {bar:.4f} of 1"
    return abs(bias) - margin <= bar, f"{name} is {1 + bias:.4f} +- {margin:.4f}, must be within {bar:.4f} of 1"


def _rule(name: str, value: float | None, bar: float, at_most: bool = False) -> tuple[bool, str]:
    bound = f"must be at {'most' if at_most else 'least'} {bar:.4f}"
    if value is None or not math.isfinite(value):
        return False, f"{name} could not be measured, {bound}"
    return (value <= bar if at_most else value >= bar), f"{name} is {value:.4f}, {bound}"
