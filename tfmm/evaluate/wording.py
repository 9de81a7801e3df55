"""What is said of a report at a terminal: the models, and the encoders beside their untrained selves."""

from __future__ import annotations

import typing


def report_lines(report: typing.Mapping[str, typing.Any]) -> list[str]:
    """Returns lines that say what `report.evaluate` found of each model and of each encoder."""
    lines = []
    for name, metrics in report["models"].items():
        found = {key: metrics.get(key) for key in ("auc", "gauc", "logloss")}
        values = ", ".join(f"{key} {'too few rows' if v is None else format(v, '.4f')}" for key, v in found.items())
        lines.append(f"{name}: {values}")
    for modality, facts in report["encoders"].items():
        lines += describe(modality, facts)
    return lines


def encoder_line(manifest: typing.Mapping[str, typing.Any]) -> str:
    """Returns what pre-training made of one modality."""
    if manifest.get("frozen"):
        return f"{manifest['modality']}: {manifest['config']['encoder']} as it is, {manifest['dim']} values."
    return f"{manifest['modality']}: {plan_text(manifest)}. {accuracy_text(manifest)}."


def describe(modality: str, facts: typing.Mapping[str, typing.Any]) -> list[str]:
    """Returns lines that say what `probe_encoders` found of one modality, the warning last."""
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
    if facts.get("warning"):
        lines.append(f"Warning: {facts['warning']}")
    return lines


def plan_text(facts: typing.Mapping[str, typing.Any]) -> str:
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


def accuracy_text(facts: typing.Mapping[str, typing.Any]) -> str:
    """Returns Acc@N of an encoder's manifest in words, with its untrained and chance values and counts.

    >>> accuracy_text({"acc_at_1": 0.4, "acc_at_5": 0.6, "acc_at_1_untrained": 0.3, "acc_at_1_chance": 0.01,
    ...                "heldout_pairs": 2_000, "heldout_items": 100})
    'Acc@1 0.400 (untrained 0.300, chance 0.010), Acc@5 0.600, over 2,000 held-out pairs of 100 items'
    """
    return (
        f"Acc@1 {facts['acc_at_1']:.3f} (untrained {facts['acc_at_1_untrained']:.3f}, chance "
        f"{facts['acc_at_1_chance']:.3f}), Acc@5 {facts['acc_at_5']:.3f}, over {facts['heldout_pairs']:,} "
        f"held-out pairs of {facts['heldout_items']:,} items"
    )
