"""What the stages' files and folders are called."""

from __future__ import annotations

import pathlib

from tfmm.data import schema

ID, MULTIMODAL = "id", "multimodal"  # the click models: of ids alone, and with item vectors
PRE_RANKING = "pre_ranking"  # the light head of the multimodal model, where `tfmm train --head` made one
TRAINED, SERVING = "Format-TFMM", "Format-Serving"  # of a click model: as it was trained, and its SavedModel
STATE = "Format-State"  # of a click model: what its training goes on from, and nobody serves
REPORT, VERDICT = "report.json", "verdict.json"  # of an evaluation
SPLITS = schema.SPLITS
Folder = str | pathlib.Path
