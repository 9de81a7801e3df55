"""What an experiment found, as JSON, plots and one HTML page."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import typing

import numpy as np

from tfmm import extras, plots
from tfmm.experiments.experiment import Experiment, Facts, Figure, Result

RESULT, PAGE = "result.json", "index.html"
_COUNTS = 1_000.0  # numbers from here on are shown without a fraction


def write(folder: pathlib.Path, experiment: Experiment, result: Result, how: Facts) -> None:
    """Writes `result.json`, a plot per figure (`figure-1.svg`, ...) and `index.html` into an experiment's folder.

    Args:
        folder: made where missing.
        experiment: says what was asked.
        result: what was found.
        how: `seeds`, `minutes`, `command`, `data`, what `carry_out` returns.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [plot(figure) for figure in result.figures]
    for number, svg in enumerate(drawn, 1):
        (folder / f"figure-{number}.svg").write_text(svg)
    about = {"experiment": experiment.name, "title": experiment.title, "about": experiment.about}
    found = {**about, **how, **dataclasses.asdict(result)}
    (folder / RESULT).write_text(json.dumps(_finite(found), indent=2, allow_nan=False) + "\n")
    jinja2 = extras.require("jinja2", "pipeline")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = (pathlib.Path(__file__).parent / "page.html.j2").read_text()
    (folder / PAGE).write_text(
        environment.from_string(template).render(about=about, how=how, result=result, plots=drawn, shown=shown)
    )


def shown(value: typing.Any) -> str:
    """Returns a value of a table for people.

    >>> shown(0.61234), shown(12345.6), shown([0.1, -0.2]), shown(None)
    ('0.6123', '12,346', '0.1000 -0.2000', '')
    """
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    if isinstance(value, (list, tuple)):
        return " ".join(shown(one) for one in value)
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= _COUNTS else f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def plot(figure: Figure) -> str:
    """Returns a figure as SVG."""
    drawn, axis = plots.pyplot().subplots(figsize=(7.0, 3.6))
    count = max(len(figure.series), 1)
    for number, (name, points) in enumerate(figure.series.items()):
        x, y = [point[0] for point in points], [point[1] for point in points]
        if figure.kind == "bars":
            places = np.arange(len(x)) + (number - (count - 1) / 2) * 0.8 / count
            axis.bar(places, y, 0.8 / count, label=name)
            axis.set_xticks(np.arange(len(x)), x, rotation=25, ha="right", fontsize=7)
        elif figure.kind == "points":
            axis.plot(x, y, "o", label=name)
        else:
            axis.plot(x, y, marker="o", label=name)
    if figure.x.endswith("log"):
        axis.set_xscale("log")
    axis.set(xlabel=figure.x, ylabel=figure.y, title=figure.title)
    if figure.kind == "bars":
        axis.axhline(0.0, color="#888", linewidth=0.5)
    axis.legend(fontsize=7)
    drawn.tight_layout()
    return plots.svg(drawn)


def _finite(value: typing.Any) -> typing.Any:
    """Returns JSON values with null where a number has no value."""
    if isinstance(value, dict):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value
