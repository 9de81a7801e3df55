"""What manifests of pairs and encoders say, in words."""

from __future__ import annotations

import typing

Facts = typing.Mapping[str, typing.Any]


def encoder_lines(manifest: Facts) -> list[str]:
    """Returns what pre-training made of one modality, the warnings last."""
    modality = manifest["modality"]
    if manifest.get("frozen"):
        return [f"{modality}: {manifest['config']['encoder']} as it is, {manifest['dim']} values."]
    lines = [f"{modality}: {plan_text(manifest)}. {accuracy_text(manifest)}."]
    lines += [f"{modality}: {line}" for line in looking_lines(manifest)]
    if unusable := manifest["unusable_contents"]:
        lines.append(f"{modality}: left out: {unusable:,} contents that cannot be decoded")
    return lines + [f"Warning: {warning}" for warning in manifest["warnings"]]


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


def looking_lines(facts: Facts) -> list[str]:
    """Returns what `looking.look` saw of an encoder in words, the categories of most pairs first; none of an older one.

    >>> looking_lines({"alignment": 0.31, "alignment_untrained": 0.9, "uniformity": -2.5, "uniformity_untrained": -1.0,
    ...                "siblings": 9, "acc_at_1_siblings": 0.6, "acc_at_1_siblings_untrained": 0.4,
    ...                "acc_at_1_siblings_chance": 0.1, "categories": {"7": {"acc_at_1": 0.5, "pairs": 40}}})
    ['alignment 0.310 (untrained 0.900), uniformity -2.500 (untrained -1.000);
      among 9 siblings that are nearly the same Acc@1 0.600 (untrained 0.400, chance 0.100)',
     'Acc@1 by category: 7 0.500 (40 pairs)']
    """
    lines, parts = [], []
    if facts.get("uniformity") is not None:
        parts.append(", ".join(_with_untrained(facts, name) for name in ("alignment", "uniformity")))
    if facts.get("siblings"):
        title = f"among {facts['siblings']} siblings that are nearly the same"
        parts.append(f"{title} {_accuracy(facts, 'acc_at_1_siblings', 'Acc@1')}")
    if parts:
        lines.append("; ".join(parts))
    if categories := facts.get("categories"):
        shown = (f"{name} {of['acc_at_1']:.3f} ({of['pairs']:,} pairs)" for name, of in categories.items())
        lines.append(f"Acc@1 by category: {', '.join(shown)}")
    return lines


def _with_untrained(facts: Facts, name: str) -> str:
    return f"{name} {facts[name]:.3f} (untrained {facts[f'{name}_untrained']:.3f})"


def _accuracy(facts: Facts, name: str, title: str) -> str:
    said = f"{title} {facts[name]:.3f}"
    if f"{name}_untrained" in facts:
        said += f" (untrained {facts[f'{name}_untrained']:.3f}, chance {facts[f'{name}_chance']:.3f})"
    if interval := facts.get(f"{name}_interval"):
        said += f" [{interval['low']:.3f}, {interval['high']:.3f}]"
    if gain := facts.get(f"{name}_gain"):
        said += f", gain {gain['value']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"
    return said
