"""Writes the trained click model as the SavedModel that TF Serving loads, with its index inside."""

from __future__ import annotations

import logging
import math
import pathlib
import shutil
import typing

from tfmm import artifacts, preprocessing
from tfmm import config as config_lib
from tfmm import saved_model as saved_model_lib
from tfmm.ctr import model as model_lib
from tfmm.ctr import pre_ranking as pre_ranking_lib
from tfmm.export import serving_module, warmup
from tfmm.index import graph_table, item_features, snapshot

KIND = "saved_model"
EXTRA = "assets.extra"  # TF Serving leaves this folder alone
PRE_RANKING = "pre_ranking"  # of a manifest: the settings of the head that `pre_rank` asks; absent without
TEACHER = "pre_ranking_teacher"  # of a manifest: id of the ranking model that taught the head; absent without
HEAD = "pre_ranking"  # folder of `EXTRA`: the head as it was trained, for the models that go on from this one
_ROWS = "rows"  # folder of a version that is being made: what becomes a part of its assets
ROOM = 1.25  # of the snapshot's size, where the configured capacity is smaller

Path = str | pathlib.Path
_log = logging.getLogger(__name__)


def export(
    model_dir: Path,
    vocabulary_dir: Path,
    snapshot_dir: Path | None,
    id_types: typing.Mapping[str, str],
    config: config_lib.ExportConfig,
    output_dir: Path,
    pre_ranking_dir: Path | None = None,
) -> dict[str, typing.Any]:
    """Writes a version folder: signatures, index tables, warm-up requests and a manifest.

    The folder appears at once when it is complete, so that a server that watches its parent never sees a part.
    A snapshot larger than `config.index_capacity` gets a table with a quarter more room than it needs. Item features
    that the snapshot holds are looked up where a request leaves them out; those that it lacks are named in the log.
    A head lies beside in `assets.extra/pre_ranking`, as it was trained, see `head_of`.

    Args:
        model_dir: the click model, see `ctr.train.train`.
        vocabulary_dir: the vocabularies that it was trained with.
        snapshot_dir: the index snapshot whose rows the tables start from; not read for a model of ids alone.
        id_types: "int64" or "string" per feature of ids: what callers send.
        config: capacity, buckets and whether XLA compiles the scoring core.
        output_dir: the version folder, such as `models/tfmm/17`; an earlier export there is replaced.
        pre_ranking_dir: the light head of the model or of the one that it goes on from, see `ctr.distillation.train`;
            None: without `pre_rank`.
    Returns:
        The manifest, which lies in `assets.extra/manifest.json`.
    Raises:
        FileNotFoundError: an artifact is missing or not complete.
        ValueError: the snapshot lacks a modality of the model, or its rows have another dim; the head is of a model
            that is declared otherwise.
    """
    model = model_lib.load_model(model_dir)
    head = None if pre_ranking_dir is None else pre_ranking_lib.load_model(pre_ranking_dir, model)
    preprocessor = _preprocessor(vocabulary_dir, model)
    target = pathlib.Path(output_dir)
    with artifacts.under_construction(target) as building:
        rows_dir = building / _ROWS
        tables = _tables(model, snapshot_dir, config, rows_dir)
        features = _features(model, snapshot_dir if tables and config.with_items else None, id_types, config, rows_dir)
        looked_up = () if features is None else features.names
        module = serving_module.ServingModule(model, preprocessor, tables, id_types, config, features, head)
        functions = module.signatures()
        saved_model_lib.save(module, functions, building)
        shutil.rmtree(rows_dir, ignore_errors=True)
        (building / EXTRA).mkdir(exist_ok=True)
        of_head: dict[str, typing.Any] = {}
        if head is not None and pre_ranking_dir is not None:
            shutil.copytree(pre_ranking_dir, building / EXTRA / HEAD)
            teacher = artifacts.read_manifest(pre_ranking_dir)["parents"][0]
            of_head = {PRE_RANKING: config_lib.to_dict(head.settings), TEACHER: teacher}
        num_warmup = warmup.write(
            building / EXTRA / warmup.FILE, model.feature_set, id_types, config, looked_up,
            () if head is None else head.settings.candidate_buckets,
        )  # fmt: skip
        manifest = artifacts.write_manifest(
            building / EXTRA,
            KIND,
            config,
            [path for path in (model_dir, snapshot_dir if tables else None, pre_ranking_dir) if path is not None],
            signatures=sorted(functions),
            id_types=dict(id_types),
            feature_set=config_lib.to_dict(model.feature_set),
            training=artifacts.read_manifest(model_dir).get("training"),
            warmup_requests=num_warmup,
            index={name: _facts(table) for name, table in tables.items()},
            item_features=None if features is None else {"names": list(looked_up), **_facts(features.table)},
            **of_head,
        )
        if target.exists():
            shutil.rmtree(target)
        building.replace(target)
    return manifest


def _facts(table: graph_table.GraphTable) -> dict[str, typing.Any]:
    return {
        "dim": table.dim,
        "capacity": table.capacity,
        "encoder_version": table.encoder_version,
        "watermark": int(table.status()["watermark"]),
    }


def read_manifest(version_dir: Path) -> dict[str, typing.Any]:
    """Reads the manifest of an exported version.

    Raises:
        FileNotFoundError: the folder is no complete export.
    """
    return artifacts.read_manifest(pathlib.Path(version_dir) / EXTRA, KIND)


def head_of(version_dir: Path) -> pathlib.Path | None:
    """Returns the folder of an exported version's pre-ranking head, as it was trained; None where it has none."""
    folder = pathlib.Path(version_dir) / EXTRA / HEAD
    return folder if (folder / artifacts.MANIFEST).is_file() else None


def kept_head(version_dir: Path, kept: pathlib.Path) -> str | None:
    """Copies a model's pre-ranking head to a place where it stays when the model's folder is made anew.

    Args:
        version_dir: the model's export.
        kept: the copy, of this model alone; perhaps an earlier start made it.
    Returns:
        The copy; None: the model has no head, and had none at an earlier start.
    """
    head = head_of(version_dir)
    if head is not None and not (kept.is_dir() and artifacts.digest(kept) == artifacts.digest(head)):
        with artifacts.under_construction(kept) as building:
            shutil.copytree(head, building)
            shutil.rmtree(kept, ignore_errors=True)
            building.replace(kept)
    return str(kept) if kept.is_dir() else None


def head_lines(version_dir: Path, in_service_dir: Path | None) -> list[str]:
    """Returns what to know of `pre_rank` before a version takes the place of the one in service; []: nothing.

    Args:
        version_dir: the new version.
        in_service_dir: None where there is none.
    """
    manifest = _manifest_if_any(version_dir)
    if PRE_RANKING in manifest:
        if manifest.get(TEACHER) in (None, manifest["parents"][0]):
            return []
        return [
            f"`pre_rank` keeps the head of the models before, which ranking model {manifest[TEACHER]} taught: an "
            f"earlier one than {manifest['parents'][0]}"
        ]
    if in_service_dir is None or PRE_RANKING not in _manifest_if_any(in_service_dir):
        return []
    return [
        f"Version {pathlib.Path(in_service_dir).name} in service answers `pre_rank`, and this model has no head, so "
        "that its callers would fail: a head stays with the models that go on from its own, and one that began anew "
        "needs its own, by `tfmm train --head pre-ranking`"
    ]


def training_of(version_dir: Path) -> dict[str, typing.Any] | None:
    """Returns through what a version was trained, see `ctr.lineage`; None where it does not say so."""
    trained: dict[str, typing.Any] | None = _manifest_if_any(version_dir).get("training")
    return trained


def _manifest_if_any(version_dir: Path) -> dict[str, typing.Any]:
    is_said = (pathlib.Path(version_dir) / EXTRA / artifacts.MANIFEST).is_file()
    return read_manifest(version_dir) if is_said else {}


def _preprocessor(vocabulary_dir: Path, model: model_lib.CTRModel) -> preprocessing.Preprocessor:
    preprocessor = preprocessing.load(model.feature_set, vocabulary_dir)
    if preprocessor.sizes != model.sizes:
        raise ValueError(
            f"`vocabulary_dir` must be the one that the model was trained with, with {model.sizes} indices. "
            f"Received: {preprocessor.sizes}."
        )
    return preprocessor


def _tables(
    model: model_lib.CTRModel, snapshot_dir: Path | None, config: config_lib.ExportConfig, rows_dir: pathlib.Path
) -> dict[str, graph_table.GraphTable]:
    if not model.modalities:
        return {}
    if snapshot_dir is None:
        raise ValueError(f"`snapshot_dir` must be given for a model with modalities {model.modalities}.")
    rows = snapshot.load_snapshot(snapshot_dir)
    missing = [m for m in model.modalities if m not in rows.modalities]
    if missing:
        raise ValueError(f"`snapshot_dir` must hold the model's modalities {model.modalities}. Missing: {missing}.")
    tables = {}
    for modality in model.modalities:
        table = rows[modality]
        if table.dim != model.dims[modality]:
            raise ValueError(
                f"The snapshot's {modality} rows must have {model.dims[modality]} values, as the model was "
                f"trained with. Received: {table.dim}."
            )
        own, capacity = (table, _capacity(config, table)) if config.with_items else (None, 1)
        tables[modality] = graph_table.GraphTable(
            modality, own, table.dim, capacity, table.encoder_version, rows_dir=rows_dir
        )
    return tables


def _capacity(config: config_lib.ExportConfig, table: snapshot.SnapshotTable) -> int:
    return max(config.index_capacity, math.ceil(ROOM * len(table)))


def _features(
    model: model_lib.CTRModel,
    snapshot_dir: Path | None,
    id_types: typing.Mapping[str, str],
    config: config_lib.ExportConfig,
    rows_dir: pathlib.Path,
) -> graph_table.FeatureTable | None:
    """Returns the table of the item features that the model takes and the snapshot holds, if there are any."""
    wanted = item_features.Layout.of(model.feature_set, id_types)
    found = None if snapshot_dir is None else snapshot.load_snapshot(snapshot_dir).features
    names = () if found is None else wanted.common(found.layout)
    lacking = [feature.name for feature in wanted.features if feature.name not in names]
    if lacking and snapshot_dir is not None:
        _log.warning(
            "%s holds no %s of items as the model takes them, so requests must bring them. Embed the catalog again "
            "with the model's run, and export.", snapshot_dir, ", ".join(lacking),
        )  # fmt: skip
    if found is None or not names:
        return None
    return graph_table.FeatureTable(found, names, _capacity(config, found.table), rows_dir)
