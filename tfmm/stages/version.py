"""The judged model as a version that a server loads: a copy, byte by byte."""

from __future__ import annotations

import json
import pathlib
import shutil
import time

from tfmm import artifacts
from tfmm.stages.folders import MULTIMODAL, SERVING, VERDICT, Folder
from tfmm.stages.judgement import JUDGED


def ship(
    models_dir: Folder, evaluation_dir: Folder | None, output_dir: Folder, is_unjudged: bool = False
) -> pathlib.Path:
    """Copies the multimodal model's SavedModel to a new version folder, which appears at once when it is complete.

    Args:
        models_dir: as `tfmm train` wrote them.
        evaluation_dir: as `tfmm evaluate` wrote it, for this model.
        output_dir: the folder of versions.
        is_unjudged: ship it whatever the gate said, or before it said anything.
    Returns:
        The version folder.
    Raises:
        FileNotFoundError: there is no exported model.
        ValueError: it was not judged, or another was, or the gate refused it.
    """
    model = pathlib.Path(models_dir) / MULTIMODAL / SERVING
    if not model.is_dir():
        raise FileNotFoundError(f"{model} is missing: `tfmm train` writes it. Run it to its end.")
    if not is_unjudged and (objection := _objection(model, evaluation_dir)):
        raise ValueError(f"The gate must have passed {model}. Received: {objection}. --unjudged exports it as it is.")
    versions, number = pathlib.Path(output_dir), int(time.time())
    while (versions / str(number)).exists():
        number += 1
    with artifacts.under_construction(versions / str(number)) as building:
        shutil.copytree(model, building)
        return building.replace(versions / str(number))


def _objection(model: pathlib.Path, evaluation_dir: Folder | None) -> str | None:
    """Returns why the verdict does not let the model pass; None where it does."""
    if evaluation_dir is None:
        return "no --evaluation: name the folder that `tfmm evaluate` wrote"
    path = pathlib.Path(evaluation_dir) / VERDICT
    if not path.is_file():
        return f"no {path}: `tfmm evaluate` writes it"
    verdict = json.loads(path.read_text())
    if verdict.get(JUDGED) is None:
        return f"{path} of an earlier version, which does not say what was judged: run `tfmm evaluate` again"
    if verdict[JUDGED] != artifacts.digest(model):
        return f"{path} is about another model: run `tfmm evaluate` on this one"
    return None if verdict["passed"] else f"refused: {'; '.join(verdict['reasons'])}"
