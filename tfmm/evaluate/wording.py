"""What is said of a report: the verdict and its reasons first, models, encoders beside their untrained selves."""

from __future__ import annotations

import typing

from tfmm.evaluate import differences, in_service
from tfmm.modalities import NOTHING

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
    lines += difference_lines(report) + slice_lines(hidden, report.get("missing", {})) + service_lines(report)
    for modality, facts in report["encoders"].items():
        lines += describe(modality, facts)
    return lines


def encoder_lines(manifest: Facts) -> list[str]:
    """Returns what pre-training made of one modality, the warnings last."""
    modality = manifest["modality"]
    if manifest.get("frozen"):
        return [f"{modality}: {manifest['config']['encoder']} as it is, {manifest['dim']} values."]
    lines = [f"{modality}: {plan_text(manifest)}. {accuracy_text(manifest)}."]
    if unusable := manifest["unusable_contents"]:
        lines.append(f"{modality}: left out: {unusable:,} contents that cannot be decoded")
    return lines + [f"Warning: {warning}" for warning in manifest["warnings"]]


def difference_lines(report: Facts, model: str = "multimodal") -> list[str]:
    """Returns a line for each reference and slice: how a model differs from it, with intervals."""
    lines = []
    for reference, slices in report.get("differences", {}).get(model, {}).items():
        for name, found in slices.items():
            parts = [f"{differences.METRICS[m]} {signed(found[m])}" for m in differences.METRICS if found.get(m)]
            where = f", {differences.SLICES[name]}" if differences.SLICES[name] else ""
            counts = f"{found['rows']:,} rows, {found['clicks']:,} clicks, {found['users']:,} users"
            lines.append(f"{model} - {reference}{where}: {', '.join(parts) or 'too few rows'} ({counts})")
    return lines


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
    """Returns how the model in service was made to see the index as it stands."""
    facts = report.get(in_service.NAME, {"index": {}})
    lines = [] if facts.get("left_out") is None else [f"The model in service is not compared: {facts['left_out']}"]
    for modality, found in facts["index"].items():
        lines.append(f"The model in service took {found['rows']:,} {modality} rows of the index, newer than its export")
        if found["left_out"]:
            lines.append(f"Warning: the model in service lacks {modality} rows of the index: {found['left_out']}")
    return lines


def describe(modality: str, facts: Facts) -> list[str]:
    """Returns lines that say what `probe_encoders` found of one modality, the warnings last."""
    lines = [f"{modality} encoder: {plan_text(facts)}"] if "distinct_positives" in facts else []
    if "acc_at_1" in facts:
        lines.append(f"{modality} encoder: {accuracy_text(facts)}")
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
    return lines + [f"Warning: {warning}" for warning in facts.get("warnings", [])]


def pairs_text(facts: Facts) -> str:
    """Returns what a manifest of pairs says of where they come from.

    >>> pairs_text({"modality": "text", "train": 7, "heldout": 2, "found": 9, "source": "co-click",
    ...             "log": "behaviors", "log_rows": 48580, "log_rows_before_eval": 15})
    'text pairs: 7 to train on, 2 held out, of 9 by co-click; 15 of 48,580 rows of behaviors are before the eval split'
    """
    return (
        f"{facts['modality']} pairs: {facts['train']:,} to train on, {facts['heldout']:,} held out, of "
        f"{facts['found']:,} by {facts['source']}; {facts['log_rows_before_eval']:,} of {facts['log_rows']:,} rows of "
        f"{facts['log']} are before the eval split"
    )


def plan_text(facts: Facts) -> str:
    """Returns in words what the size of the data made of an encoder's settings.

    >>> plan_text({"distinct_positives": 1800, "memory_bank_size": 0, "batch_size": 64, "epochs": 8,
    ...            "pairs_per_epoch": 4992, "steps": 624})
    '1,800 distinct positives, no memory bank; 8 epochs of 4,992 pairs, 624 steps of 64'
    """
    bank = f"a memory bank of {facts['memory_bank_size']:,}" if facts["memory_bank_size"] else "no memory bank"
    return (
        f"{facts['distinct_positives']:,} distinct positives, {bank}; {facts['epochs']} epochs of "
        f"{facts['pairs_per_epoch']:,} pairs, {facts['steps']:,} steps of {facts['batch_size']}"
    )


def accuracy_text(facts: Facts) -> str:
    """Returns Acc@N of an encoder's manifest in words, with its untrained and chance values, intervals and counts.

    >>> accuracy_text({"acc_at_1": 0.4, "acc_at_5": 0.6, "acc_at_1_untrained": 0.3, "acc_at_1_chance": 0.01,
    ...                "heldout_pairs": 2_000, "heldout_items": 100})
    'Acc@1 0.400 (untrained 0.300, chance 0.010), Acc@5 0.600, over 2,000 held-out pairs of 100 items'
    """
    parts = [_accuracy(facts, name, title) for name, title in (("acc_at_1", "Acc@1"), ("acc_at_5", "Acc@5"))]
    counts = f"over {facts['heldout_pairs']:,} held-out pairs of {facts['heldout_items']:,} items"
    return ", ".join([*parts, counts])


def _accuracy(facts: Facts, name: str, title: str) -> str:
    said = f"{title} {facts[name]:.3f}"
    if f"{name}_untrained" in facts:
        said += f" (untrained {facts[f'{name}_untrained']:.3f}, chance {facts[f'{name}_chance']:.3f})"
    if interval := facts.get(f"{name}_interval"):
        said += f" [{interval['low']:.3f}, {interval['high']:.3f}]"
    if gain := facts.get(f"{name}_gain"):
        said += f", gain {gain['value']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"
    return said
