"""What a declaration means, as tables for a terminal."""

from __future__ import annotations

import typing

from rich import table

from tfmm.config import RunConfig
from tfmm.features import Column, Feature, Label


def tables(config: RunConfig) -> list[table.Table]:
    """Returns features, sequences, modalities, methods and model, embedding tables, a `rank`'s inputs, the label."""
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
    embeddings = table.Table("embedding", "rows", "dim", "bytes", "shared by", title="Embedding tables")
    for name, first in declared.embeddings.items():
        sharing = ", ".join(f.name for f in declared.features if f.is_embedded and f.embedding == name)
        rows = first.num_indices
        size = "by the data" if rows is None else f"{rows:,}"
        num_bytes = f"{4 * first.dim:,} a row" if rows is None else f"{4 * first.dim * rows:,}"
        embeddings.add_row(name, size, str(first.dim), num_bytes, sharing)
    inputs = table.Table("side", "name", "type", "shape", "left out", title="A request of rank")
    for column in declared.served:
        side = "user" if column.side == "user" else "candidates"
        left_out = "looked up by item id" if column.feature in declared.stored else "refused"
        inputs.add_row(side, column.name, _type(column), _shape(column), left_out)
    return [features, sequences, modalities, methods, model, embeddings, inputs, _label(declared.label)]


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


def _type(column: Column) -> str:
    if column.is_float:
        return "float32"
    return "int64 or string" if column.feature.kind in ("id", "ids") else "int64, microseconds"


def _shape(column: Column) -> str:
    rows = "1" if column.side == "user" else "C"
    return f"[{rows}, any]" if column.shape else f"[{rows}]"
