"""Makes the pictures of docs/gallery.md, from the generator's drawings, a run and an experiment:

python docs/site/gallery.py my_run experiments/table3
"""

from __future__ import annotations

import base64
import io
import json
import pathlib
import sys
import typing

import numpy as np
import pyarrow.parquet as pq

from tfmm import plots
from tfmm.experiments import page
from tfmm.experiments.experiment import Figure
from tfmm.index import snapshot as snapshot_lib
from tfmm.marketplace import drawing
from tfmm.quickstart import html_report
from tfmm.stages import folders

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "gallery"
COLUMNS = 12  # drawn products beside each other
ROWS = 4  # items that are shown with their neighbors
_DPI = 90


def main(workdir: pathlib.Path, experiment: pathlib.Path, folder: pathlib.Path = FOLDER) -> None:
    """Writes every picture.

    Args:
        workdir: of a quickstart on the marketplace.
        experiment: the folder of a `table3`.
        folder: made where missing.
    """
    folder.mkdir(exist_ok=True)
    _save(folder / "drawings.png", _drawings())
    items = pq.read_table(workdir / "marketplace" / "items.parquet")
    snapshot = snapshot_lib.load_snapshot(workdir / "snapshot")
    for modality in snapshot.modalities:
        found = html_report.gallery(snapshot, modality, items, seed=3)[:ROWS]
        _save(folder / f"neighbors_{modality}.png", _neighbors(found))
    places = {"MAKE": "models/make", "ids alone": f"models/id/{folders.TRAINED}", "SCL image": "encoders/image"}
    histories = {name: json.loads((workdir / at / "history.json").read_text()) for name, at in places.items()}
    (folder / "curves.svg").write_text(html_report.curves(histories))
    (figure,) = json.loads((experiment / page.RESULT).read_text())["figures"]
    (folder / "gains.svg").write_text(page.plot(Figure(*figure)))


def _drawings() -> typing.Any:
    """Draws products as the shop shows them, above the same as shoppers photograph them."""
    rng = np.random.default_rng(7)
    look = drawing.Look(
        np.arange(COLUMNS) % len(drawing.SHAPES),
        rng.permutation(COLUMNS) % drawing.NUM_PALETTES,
        rng.integers(0, len(drawing.PATTERNS), COLUMNS),
        rng.uniform(size=(COLUMNS, 6)),
    )
    figure, axes = plots.pyplot().subplots(2, COLUMNS, figsize=(COLUMNS, 2.1))
    drawn = drawing.draw_catalog(look, 48, rng), drawing.draw_query(look, 48, rng)
    for row, pictures in zip(axes, drawn, strict=True):
        for axis, picture in zip(row, pictures, strict=True):
            axis.imshow(picture)
    return figure


def _neighbors(found: typing.Sequence[typing.Mapping[str, typing.Any]]) -> typing.Any:
    """Draws items, each with those whose vectors are most similar to its own, and their cosines."""
    width = 1 + html_report.NUM_NEIGHBORS
    figure, axes = plots.pyplot().subplots(len(found), width, figsize=(1.6 * width, 1.9 * len(found)), squeeze=False)
    for row, one in zip(axes, found, strict=True):
        for axis, card in zip(row, [one["item"], *one["neighbors"]], strict=True):
            if card["image"]:
                axis.imshow(plots.pyplot().imread(io.BytesIO(base64.b64decode(card["image"]))))
            cosine = f"\n{card['similarity']:.2f}" if "similarity" in card else ""
            axis.set_title(_wrapped(card["title"]) + cosine, fontsize=6)
    return figure


def _wrapped(title: str) -> str:
    words = title.split()
    return " ".join(words[:3]) + "\n" + " ".join(words[3:])


def _save(path: pathlib.Path, figure: typing.Any) -> None:
    for axis in figure.axes:
        axis.axis("off")
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})
    plots.pyplot().close(figure)


if __name__ == "__main__":
    main(*map(pathlib.Path, sys.argv[1:]))
