"""What a declaration means, as tables for a terminal."""

from __future__ import annotations

import pathlib
import typing

from rich import table

from tfmm import vectors
from tfmm.config import RunConfig
from tfmm.data import declared as declared_lib
from tfmm.data import schema, vocabulary_sizes
from tfmm.features import NUM_SPECIAL, Column, Feature, FeatureSet, Label
from tfmm.modalities import Modality


def tables(config: RunConfig, data_dir: str | pathlib.Path | None = None) -> list[table.Table]:
    """Returns features, sequences, modalities, methods and model, embedding tables, signatures, the label.

    Args:
        config: what is declared.
        data_dir: tables that have it, which say how many ids there are, and of which type; None: that stays open.
    """
    declared = config.feature_set
    features = table.Table("feature", "role", "kind", "from", "enters as", title="Features")
    for feature in declared.features:
        place = f"{feature.table}.{feature.column}"
        features.add_row(feature.name, feature.role, feature.kind, place, enters_as(feature))
    sequences = table.Table("sequence", "actions", "length", "each behavior brings", "read by", title="Sequences")
    for sequence in declared.sequences:
        readers = [name for name in ("din", "simtier", "make") if getattr(sequence, name)]
        actions = ", ".join(sequence.actions) or "all"
        columns = ", ".join(sequence.features)
        sequences.add_row(sequence.name, actions, str(sequence.length), columns, ", ".join(readers))
    title = "Modalities" if config.modalities else "Modalities: those that the data has; own vectors stand alone"
    modalities = table.Table("modality", "from", "queries", "encoder", title=title)
    for modality in config.modality_set.known:
        queries = f"searches.{modality.query_column}" if modality.query_column else ""
        encoder = "ready vectors" if modality.is_ready else modality.encoder + (", frozen" if modality.frozen else "")
        modalities.add_row(modality.name, f"items.{modality.content}", queries, encoder)
    methods = table.Table("method", "settings", title="How item vectors come in")
    for method in config.methods:
        methods.add_row(method.name, _settings(method.settings))
    model = table.Table("model", "settings", title="What scores")
    model.add_row(config.ctr.model or "ours", _settings(config.ctr.model_settings))
    embeddings = _embeddings(declared, data_dir)
    signatures = _signatures(config, data_dir)
    found = [features, sequences, modalities, methods, model, embeddings, *signatures, _label(declared.label)]
    for column in (column for one in found for column in one.columns):
        column.overflow = "fold"  # a name that is cut where the terminal is narrow is of no use
    return found


def _embeddings(declared: FeatureSet, data_dir: str | pathlib.Path | None) -> table.Table:
    result = table.Table("embedding", "rows", "dim", "parameters", "bytes", "shared by", title="Embedding tables")
    known, total = declared_lib.tables(declared), 0
    for name, first in declared.embeddings.items():
        sharing = ", ".join(f.name for f in declared.features if f.is_embedded and f.embedding == name)
        rows, most = first.num_indices, ""
        if rows is None and data_dir is not None:
            rows, most = vocabulary_sizes.num_ids(data_dir, declared, known, name) + NUM_SPECIAL, "at most "
        if rows is None:
            sizes = "by the data", str(first.dim), f"{first.dim:,} a row", f"{4 * first.dim:,} a row"
        else:
            num_parameters = rows * first.dim
            sizes = f"{most}{rows:,}", str(first.dim), f"{num_parameters:,}", f"{4 * num_parameters:,}"
            total += num_parameters
        result.add_row(name, *sizes, sharing)
    if data_dir is not None:
        result.add_row("all", "", "", f"{total:,}", f"{4 * total:,}", "")
    return result


def _signatures(config: RunConfig, data_dir: str | pathlib.Path | None) -> list[table.Table]:
    """Returns what the exported model's signatures take, by name, type and shape."""
    declared = config.feature_set
    types = {} if data_dir is None else declared_lib.id_types(data_dir, declared)
    kinds = table.Table("signature", "takes", title="Signatures")
    logged = ", ".join(column.name for column in declared.columns if not column.is_served)
    for name, takes in (
        ("serving_default", "every input, a row per user and item: B is any"),
        ("rank", "every input, the user's once and C candidates'; an input left empty is looked up by item id, where "
         "the index has it"),
        ("rank_ids", "as rank, without what is looked up"),
        ("score_vectors", "as serving_default, and item vectors"),
        ("serve_examples", "serialized tf.Example" + (f", which may bring {logged}" if logged else "")),
    ):  # fmt: skip
        kinds.add_row(name, takes)
    inputs = table.Table("side", "name", "type", "serving_default", "rank", "rank_ids", title="Inputs")
    for column in declared.served:
        side = "user" if column.side == "user" else "candidates"
        rank = _shape(column, "1" if column.side == "user" else "C")
        by_ids = "looked up" if column.feature in declared.stored else rank
        inputs.add_row(side, column.name, _type(column, types), _shape(column, "B"), rank, by_ids)
    items = table.Table("side", "names", "types", "shapes", title="Inputs of score_vectors beside these")
    present = None if data_dir is None else schema.modalities(data_dir, config.modality_set)
    for modality in config.modality_set.known:
        if present is None or modality.name in present:
            dim = _dim(config, modality, data_dir)
            for place in (vectors.TARGET, *(sequence.name for sequence in declared.sequences)):
                rows = "B" if place == vectors.TARGET else "B, any"
                names = ", ".join(vectors.names(modality.name, place))
                items.add_row(place, names, "int8, float32, bool", f"[{rows}, {dim}], [{rows}], [{rows}]")
    return [kinds, inputs, items]


def _dim(config: RunConfig, modality: Modality, data_dir: str | pathlib.Path | None) -> str:
    if not modality.is_ready:
        own = config.encoders([modality.name])[modality.name]
        return str(own.dim) if modality.is_trained else "D"  # a frozen encoder's own
    if data_dir is None:
        return "D"
    parts = schema.table_parts(data_dir, "items", schema.documented(config.modality_set))
    return str(declared_lib.vector_dim(parts, modality.content))


def _label(label: Label) -> table.Table:
    result = table.Table("label", "a row counts", "negatives in the log", title="Label")
    kept = f"a share by impressions.{label.negative_rate_column}" if label.negative_rate_column else "all"
    if label.negative_rate != 1.0:
        kept = f"{label.negative_rate:g} of all"
    result.add_row(f"impressions.{label.column}", f"impressions.{label.weight}" if label.weight else "once", kept)
    return result


def enters_as(feature: Feature) -> str:
    """Returns in words what the model makes of a feature.

    >>> enters_as(Feature("city", "user", num_buckets=100, dim=4))
    'embedding of 4, 100 hash buckets'
    """
    if not feature.is_embedded:
        how: typing.Any = f"number, {feature.scaling}"
    elif feature.num_buckets:
        how = f"embedding of {feature.dim}, {feature.num_buckets:,} hash buckets"
    elif feature.kind in ("id", "ids"):
        pooled = "mean of embeddings" if feature.kind == "ids" else "embedding"
        how = f"{pooled} of {feature.dim}, ids seen {feature.min_count} times or more"
    else:
        part = {"number": f"{feature.num_quantiles} quantiles", "boolean": "yes or no", "time": feature.part}
        how = f"embedding of {feature.dim}, {part[feature.kind]}"
    return how if feature.serving_value is None else f"{how}; {feature.serving_value} in service"


def _settings(settings: typing.Mapping[str, typing.Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items()) or "defaults"


def _type(column: Column, types: typing.Mapping[str, str]) -> str:
    if column.is_float:
        return "float32"
    if column.feature.kind in ("id", "ids"):
        return types.get(column.feature.name, "int64 or string")
    return "int64, microseconds"


def _shape(column: Column, rows: str) -> str:
    return f"[{rows}, any]" if column.shape else f"[{rows}]"
