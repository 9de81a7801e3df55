"""What the person at the terminal sees when all has run: verdict, table, and what was found."""

from __future__ import annotations

import pathlib
import typing

from rich import table as rich_table

from tfmm import dead_letters
from tfmm.evaluate import wording

REPORT = "report.html"  # in the workdir


def result_table(summary: typing.Mapping[str, typing.Any]) -> rich_table.Table:
    """Builds the closing table: both models, their difference, and the serving figures."""
    model = f", scored by {summary['model']}" if summary["model"] else ""
    table = rich_table.Table(title=f"ID-only against {summary['methods']}{model}, on held-out impressions")
    for name in ("", "ID-only", "multimodal", "difference"):
        table.add_column(name, justify="left" if not name else "right")
    for key, title in (
        ("auc", "AUC"),
        ("gauc", "GAUC"),
        ("logloss", "LogLoss"),
        ("calibration", "Calibration"),
        ("gauc_new_items", "GAUC, new items"),
    ):
        base, new = summary["id"][key], summary["multimodal"][key]
        if base is None or new is None:
            table.add_row(title, "too few rows", "too few rows", "")
        else:
            table.add_row(title, f"{base:.4f}", f"{new:.4f}", f"{new - base:+.4f}")
    return table


def opening_lines(summary: typing.Mapping[str, typing.Any]) -> list[str]:
    """Returns what stands above the closing table: the verdict, its reasons, what was not learned."""
    stays = [] if summary["gate"]["passed"] else ["The model in service stays."]
    return wording.verdict_lines(summary["gate"]) + stays


def closing_lines(summary: typing.Mapping[str, typing.Any], workdir: pathlib.Path) -> list[str]:
    """Returns what stands under the closing table."""
    lines = wording.difference_lines(summary)
    lines += wording.slice_lines(summary["hidden"], summary.get("missing", {}))
    lines += wording.unseen_lines(summary) + wording.service_lines(summary)
    for modality, facts in summary["encoders"].items():
        lines += wording.describe(modality, facts)
    lines += summary.get("not_read", [])
    lines += [f"left out: {dead_letters.Count(**found)}" for found in summary.get("left_out", [])]
    lines += [f"`tfmm dead-letters {workdir}` shows them."] if summary.get("left_out") else []
    lines.append(
        f"Predict: gRPC {summary['grpc_predict_ms']:.1f} ms, REST {summary['rest_predict_ms']:.1f} ms. A new item "
        f"was scored with its embedding {summary['new_item_delay_s']:.2f} s after its event."
    )
    lines.append(
        f"{summary['total_seconds']:.0f} s, at most {summary['peak_memory_gb']:.1f} GB. Report: {workdir / REPORT}"
    )
    return lines
