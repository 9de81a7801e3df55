"""Plots as SVG inside HTML pages."""

from __future__ import annotations

import io
import typing

from tfmm import extras


def pyplot() -> typing.Any:
    """Returns matplotlib.pyplot, which opens no window."""
    extras.require("matplotlib", "pipeline").use("Agg")
    return extras.require("matplotlib.pyplot", "pipeline")


def svg(figure: typing.Any) -> str:
    """Returns a figure as an `<svg>` element, and closes it."""
    text = io.StringIO()
    figure.savefig(text, format="svg")
    pyplot().close(figure)
    return text.getvalue()[text.getvalue().index("<svg") :]
