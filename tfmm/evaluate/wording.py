"""What is said of a report: the verdict and its reasons first, models, encoders beside their untrained selves."""

from __future__ import annotations

import typing

from tfmm.evaluate import differences, in_service, recall
from tfmm.evaluate import slices as slices_lib
from tfmm.modalities import NOTHING
from tfmm.pretrain import in_words

Facts = typing.Mapping[str, typing.Any]


def verdict_lines(verdict: Facts) -> list[str]:
    """Returns what the gate decided, then each reason, then each warning.

    >>> verdict_lines({"passed": False, "reasons": ["AUC is low"], "warnings": ["It learned nothing."]})
    ['The gate refused the multimodal model:', '- AUC is low', 'Warning: It learned nothing.']
    """
    said = "The gate passed the multimodal model." if verdict["passed"] else "The gate refused the multimodal model:"
    warnings = [f"Warning: {warning}" for warning in verdict.get("warnings", [])]
    return [said, *(f"- {reason}" for reason in verdict["reasons"]), *warnings]


def report_lines(report: Facts) -> list[str]:
    """Returns lines that say what `report.evaluate` found of each model and of each encoder."""
    lines = []
    for name, metrics in report["models"].items():
        found = {key: metrics.get(key) for key in ("auc", "gauc", "logloss", "calibration")}
        values = ", ".join(f"{key} {'too few rows' if v is None else format(v, '.4f')}" for key, v in found.items())
        lines.append(f"{name}: {values}")
    hidden = report.get("hidden", {"models": {}})["models"].get("multimodal", {})
    lines += sliced_lines(report) + unseen_lines(report) + recall_lines(report)
    lines += difference_lines(report) + slice_lines(hidden, report.get("missing", {})) + service_lines(report)
    for modality, facts in report["encoders"].items():
        lines += describe(modality, facts)
    return lines + training_lines(report.get("training", {}))


def training_lines(training: Facts, model: str = "multimodal") -> list[str]:
    """Returns through what a model that goes on from another was trained, and what it has not seen yet."""
    facts = training.get(model) or {}
    if not facts.get("parent"):
        return []
    lag, span = facts["lag"], facts["span"]
    late = f"; {span['late']:,} rows that came late are not in it" if span.get("late") else ""
    return [
        f"{model} is trained through span {span['number']}, {span['rows']:,} rows of {facts['rows']:,}{late}; it lags "
        f"{lag['rows']:,} rows and {lag['seconds']:,.0f} s behind the newest impression, which it was judged on"
    ]


def sliced_lines(report: Facts, model: str = "multimodal") -> list[str]:
    """Returns a line per thing that the evaluation was sliced by: rows, GAUC and its gain in each slice."""
    lines = []
    for name, parts in report.get("slices", {}).items():
        found = []
        for part, facts in parts.items():
            of_model = facts["models"].get(model, {})
            gain = of_model.get("gauc_gain")
            shown = "" if of_model.get("gauc") is None else f", gauc {of_model['gauc']:.4f}"
            shown += f" ({signed(gain)})" if gain and None not in gain.values() else ""
            found.append(f"{part}: {facts['rows']:,} rows{shown}")
        lines.append(f"{model} by {name}: {'; '.join(found)}")
    return lines


def unseen_lines(report: Facts) -> list[str]:
    """Returns that the held-out rows say nothing of users without behaviors, where it is so.

    >>> unseen_lines({"slices": {"history": {"none": {"rows": 9}}}})
    []
    """
    of_lengths = report.get("slices", {}).get(slices_lib.HISTORY)
    if of_lengths is None or slices_lib.NO_HISTORY in of_lengths:
        return []
    return [
        "Warning: no held-out row has an empty history, so what users without behaviors are scored was not judged; "
        "where no training row has one either, it was not learned, and may be far off"
    ]


def recall_lines(report: Facts) -> list[str]:
    """Returns a line per model with a pre-ranking head: how much of the ranking model's best it lets through.

    >>> found = {"recall": 0.95, "low": 0.94, "high": 0.96, "users": 9, "items": 800, "wanted": 100, "kept": 500}
    >>> recall_lines({"pre_ranking": {"multimodal": found}})[0]
    "multimodal: recall of ranking's best 100 in pre-ranking's best 500: 0.9500 [0.9400, 0.9600] (9 users, 800 items)"
    """
    lines = []
    for name, found in report.get(recall.SECTION, {}).items():
        said = f"{name}: {recall.in_words(found)}: "
        if found["recall"] is None:
            lines.append(f"{said}not judged: {found['undefined']}")
        else:
            bounds = f"{found['recall']:.4f} [{found['low']:.4f}, {found['high']:.4f}]"
            lines.append(f"{said}{bounds} ({found['users']:,} users, {found['items']:,} items)")
    return lines


def difference_lines(report: Facts, model: str = "multimodal") -> list[str]:
    """Returns a line for each reference and slice: how a model differs from it, with intervals."""
    lines = []
    for reference, slices in report.get("differences", {}).get(model, {}).items():
        for name, found in slices.items():
            parts = [f"{differences.METRICS[m]} {signed(found[m])}" for m in differences.METRICS if found.get(m)]
            parts += _unjudged(found.get("undefined", {}))
            where = f", {differences.SLICES[name]}" if differences.SLICES[name] else ""
            counts = f"{found['rows']:,} rows, {found['clicks']:,} clicks, {found['users']:,} users"
            lines.append(f"{model} - {reference}{where}: {', '.join(parts)} ({counts})")
    return lines


def _unjudged(undefined: typing.Mapping[str, str]) -> list[str]:
    """Returns per reason which metrics have no interval."""
    names: dict[str, list[str]] = {}
    for metric, reason in undefined.items():
        names.setdefault(reason, []).append(differences.METRICS[metric])
    return [f"{' and '.join(metrics)} not judged: {reason}" for reason, metrics in names.items()]


def signed(found: typing.Mapping[str, float]) -> str:
    """Returns a difference with its interval.

    >>> signed({"value": 0.0123, "low": -0.001, "high": 0.02})
    '+0.0123 [-0.0010, +0.0200]'
    """
    return f"{found['value']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]"


def slice_lines(hidden: Facts, missing: Facts, model: str = "multimodal") -> list[str]:
    """Returns a line for each set of vectors that targets lack: hidden from the model, or truly.

    Args:
        hidden: per set, a model's `missing.figures`.
        missing: as `missing.missing_report` returns it.
        model: whose figures of `missing` are told.
    """
    sets = {name: found for name, found in hidden.items() if name != NOTHING}
    lines = [figures_line(f"Target's vectors hidden ({name})", found) for name, found in sets.items()]
    for name, found in missing.items():
        if found["rows"]:
            title = f"Target's vectors missing ({name}), {found['rows']:,} rows"
            lines.append(figures_line(title, found["models"][model]))
    return lines


def figures_line(title: str, found: Facts) -> str:
    """Returns the bias and AUC of `missing.figures` in words.

    >>> figures_line("Hidden", {"bias": -0.02, "bias_margin": 0.01, "auc": 0.561})
    'Hidden: mean score / click rate 0.980 +- 0.010, AUC 0.5610'
    """
    if found["bias"] is None or found["auc"] is None:
        return f"{title}: too few rows"
    margin = f" +- {found['bias_margin']:.3f}" if found.get("bias_margin") is not None else ""
    return f"{title}: mean score / click rate {1 + found['bias']:.3f}{margin}, AUC {found['auc']:.4f}"


def service_lines(report: Facts) -> list[str]:
    """Returns how the model in service was made to see the index as it stands; the verdict says why one is left out."""
    facts, lines = report.get(in_service.NAME, {"index": {}}), []
    if facts.get("as_exported"):
        lines.append(
            "Warning: the model in service is judged as it was exported, without newer items: " + facts["as_exported"]
        )
    for modality, found in facts["index"].items():
        if found.get("ahead"):
            lines.append(f"Warning: the model in service is ahead of the index in {modality}: {found['ahead']}")
        lines.append(f"The model in service took {found['rows']:,} {modality} rows of the index, newer than its export")
        if found["left_out"]:
            lines.append(f"Warning: the model in service lacks {modality} rows of the index: {found['left_out']}")
    return lines


def describe(modality: str, facts: Facts) -> list[str]:
    """Returns lines that say what `probe_encoders` found of one modality; its warnings stand in the verdict."""
    lines = [f"{modality} encoder: {in_words.plan_text(facts)}"] if "distinct_positives" in facts else []
    if "acc_at_1" in facts:
        lines.append(f"{modality} encoder: {in_words.accuracy_text(facts)}")
        lines += [f"{modality} encoder: {line}" for line in in_words.looking_lines(facts)]
    probe = facts.get("probe")
    if probe is not None and probe["gauc"] is None:
        lines.append(f"{modality} probe: no user has both a click and a non-click with embeddings.")
    elif probe is not None:
        interval = probe["gauc_interval"]
        bounds = "" if interval["low"] is None else f" [{interval['low']:.4f}, {interval['high']:.4f}]"
        untrained = "" if probe.get("gauc_untrained") is None else f" (untrained {probe['gauc_untrained']:.4f})"
        lines.append(
            f"{modality} probe, vectors alone: GAUC {probe['gauc']:.4f}{bounds}{untrained}, AUC {probe['auc']:.4f}, "
            f"{probe['users']:,} users, {probe['rows']:,} rows"
        )
    return lines
