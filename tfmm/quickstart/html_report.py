"""One HTML file that shows what a run did: pictures of items and their neighbors, training curves, the result."""

from __future__ import annotations

import base64
import pathlib
import typing

import numpy as np
import pyarrow as pa

from tfmm import extras, plots
from tfmm.evaluate import differences, wording
from tfmm.fingerprints import fingerprint

NUM_ITEMS = 8
NUM_NEIGHBORS = 5


def nearest_neighbors(
    rows: np.ndarray, scales: np.ndarray, chosen: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the most similar other items of some items.

    Args:
        rows: int8 [n, D]; scales: float32 [n]: the item index.
        chosen: int [m], positions in `rows`.
        count: neighbors per item; fewer where the index is smaller.
    Returns:
        Positions int64 [m, count] and cosines float32 [m, count], the most similar first.
    """
    vectors = rows.astype(np.float32)
    similarity = (vectors[chosen] @ vectors.T) * scales[chosen][:, None] * scales[None, :]
    similarity[np.arange(len(chosen)), chosen] = -np.inf
    order = np.argsort(-similarity, axis=1, kind="stable")[:, : min(count, len(rows) - 1)]
    return order, np.take_along_axis(similarity, order, axis=1)


def gallery(snapshot: typing.Any, modality: str, items: pa.Table, seed: int = 0) -> list[dict[str, typing.Any]]:
    """Chooses items and finds their neighbors in one modality.

    Args:
        snapshot: as `tfmm.index.snapshot.load_snapshot` returns it.
        modality: one of the snapshot's modalities.
        items: the catalog, with item_id and, where there are any, title and image.
        seed: of the choice.
    Returns:
        Per chosen item {"item": card, "neighbors": [card with "similarity", ...]}; a card has title and image.
    """
    table = snapshot[modality]
    cards = _cards(items)
    held = np.flatnonzero(table.scales > 0)
    chosen = np.sort(np.random.default_rng(seed).choice(held, min(NUM_ITEMS, len(held)), replace=False))
    neighbors, similarities = nearest_neighbors(table.rows, table.scales, chosen, NUM_NEIGHBORS)
    return [
        {
            "item": cards(int(table.ids[position])),
            "neighbors": [
                {**cards(int(table.ids[n])), "similarity": float(s)} for n, s in zip(near, scores, strict=True)
            ],
        }
        for position, near, scores in zip(chosen, neighbors, similarities, strict=True)
    ]


def _cards(items: pa.Table) -> typing.Callable[[int], dict[str, typing.Any]]:
    positions = {int(key): i for i, key in enumerate(fingerprint(items["item_id"].to_pylist()))}
    names = set(items.column_names)

    def card(item_id: int) -> dict[str, typing.Any]:
        position = positions.get(item_id)
        if position is None:
            return {"title": f"item {item_id}", "image": None}
        title = items["title"][position].as_py() if "title" in names else None
        image = items["image"][position].as_py() if "image" in names else None
        return {
            "title": title or f"item {items['item_id'][position].as_py()}",
            "image": base64.b64encode(image).decode() if image else None,
        }

    return card


def curves(histories: typing.Mapping[str, typing.Sequence[typing.Mapping[str, float]]]) -> str:
    """Draws one small plot per training run; returns SVG text.

    Args:
        histories: per run, its epochs as `tfmm.training.loop.run` returns them.
    """
    panels = [
        (run, name, [entry[name] for entry in history])
        for run, history in histories.items()
        if len(history) > 1
        for name in history[0]
        if name not in ("epoch", "segment", "seconds", "step", "steps")
    ]
    if not panels:
        return ""
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plots.pyplot().subplots(rows, columns, figsize=(3.0 * columns, 2.1 * rows), squeeze=False)
    for axis in axes.ravel()[len(panels) :]:
        axis.axis("off")
    for axis, (run, name, values) in zip(axes.ravel(), panels, strict=False):
        axis.plot(range(1, len(values) + 1), values, marker="o", markersize=3)
        axis.set_title(f"{run}: {name}", fontsize=8)
        axis.set_xlabel("epoch, or part of one", fontsize=7)
        axis.tick_params(labelsize=7)
    figure.tight_layout()
    return plots.svg(figure)


def write_report(
    path: str | pathlib.Path,
    summary: typing.Mapping[str, typing.Any],
    galleries: typing.Mapping[str, list],
    curves_svg: str,
    verdict: typing.Mapping[str, typing.Any],
    sheets: typing.Mapping[str, list] | None = None,
) -> None:
    """Writes the report, one self-contained file.

    Args:
        path: of the HTML file.
        summary: as in summary.json.
        galleries: per modality, `gallery`'s result.
        curves_svg: `curves`' result.
        verdict: the gate's, with `passed` and `reasons`.
        sheets: per modality, `contact_sheet.make`'s result of its encoder; None: nothing is shown.
    """
    jinja2 = extras.require("jinja2", "pipeline")
    template = (pathlib.Path(__file__).parent / "report.html.j2").read_text()
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    pathlib.Path(path).write_text(
        environment.from_string(template).render(
            summary=summary,
            galleries=galleries,
            sheets=sheets or {},
            curves=curves_svg,
            verdict=verdict,
            describe=wording.describe,
            signed=wording.signed,
            warning_lines=wording.unseen_lines(summary) + wording.service_lines(summary),
            metrics=differences.METRICS,
            slices=differences.SLICES,
        )
    )
