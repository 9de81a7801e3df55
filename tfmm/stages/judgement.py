"""The exported models, scored on held-out impressions and judged by the gate."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import typing

from tfmm import artifacts
from tfmm.config import RunConfig
from tfmm.ctr import state as state_lib
from tfmm.evaluate import encoders, gate, in_service, report, slices, wording
from tfmm.export import saved_model
from tfmm.stages.folders import ID, MULTIMODAL, SERVING, STATE, VERDICT, Folder

JUDGED = "judged"  # of a verdict: the digest of the SavedModel that it is about


def judge(
    run: RunConfig,
    model_dirs: typing.Mapping[str, Folder],
    patterns: tuple[str, str],
    output_dir: Folder,
    say: typing.Callable[[str], object],
    *,
    in_service_dir: Folder | None = None,
    index_url: Folder | None = None,
    snapshot_dir: Folder | None = None,
    encoders_dir: Folder | None = None,
    data_dir: Folder | None = None,
) -> tuple[dict[str, typing.Any], gate.Verdict]:
    """Scores held-out impressions with each exported model and judges the multimodal one.

    Args:
        run: the gate's bars, and what the examples hold.
        model_dirs: `id` and `multimodal`, as `click_model.train_click_model` wrote them; without `id` the
            multimodal one is held against absolute bars and the model in service alone.
        patterns: examples as the join made them, train and eval.
        output_dir: gets `report.json`, `predictions.parquet` and `verdict.json`, which names what was judged.
        say: is told the verdict with its reasons and warnings, what becomes of `pre_rank`, then what was found of each
            model and encoder.
        in_service_dir: the SavedModel in service, where there is one.
        index_url: the item index that servers follow, a path or a URL: the model in service sees it as it stands.
        snapshot_dir: probe its vectors.
        encoders_dir: probe them untrained too; needs `data_dir` and `snapshot_dir`.
        data_dir: the tables.
    Returns:
        The report and the verdict.
    """
    models = {name: str(pathlib.Path(folder) / SERVING) for name, folder in model_dirs.items()}
    if in_service_dir is not None:
        models[in_service.NAME] = str(in_service_dir)
    baseline = ID if ID in model_dirs else MULTIMODAL
    train_pattern, eval_pattern = patterns
    folders = encoders.encoder_folders(encoders_dir)
    probed = encoders.probe_encoders(
        eval_pattern, run.feature_set, snapshot_dir, data_dir, folders, run.modality_set, run.data.time_zone
    )
    trained = {name: saved_model.training_of(folder) for name, folder in models.items()}
    shown_items = None
    if (trained[MULTIMODAL] or {}).get("parent"):  # examples are those of its span alone
        shown_items = state_lib.shown_before(pathlib.Path(model_dirs[MULTIMODAL]) / STATE)
    judged = report.evaluate(
        models,
        train_pattern,
        eval_pattern,
        output_dir,
        run.feature_set,
        encoders=probed,
        snapshot_dir=snapshot_dir,
        baseline=baseline,
        index_url=index_url,
        training=trained,
        shown_items=shown_items,
        sliced=slices.Sliced(run.gate.slices, data_dir, run.modality_set, run.data.time_zone),
    )
    bar = run.pre_ranking.min_recall
    verdict = gate.decide(judged, run.gate, candidate=MULTIMODAL, baseline=baseline, min_recall=bar)
    said = {**dataclasses.asdict(verdict), JUDGED: artifacts.digest(models[MULTIMODAL])}
    (pathlib.Path(output_dir) / VERDICT).write_text(json.dumps(said, indent=2) + "\n")
    head_lines = saved_model.head_lines(models[MULTIMODAL], in_service_dir)
    for line in [*wording.verdict_lines(said), *head_lines, *wording.report_lines(judged)]:
        say(line)
    return judged, verdict
