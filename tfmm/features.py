"""What a click model knows of an impression, as values that a run declares: features, and sequences of behaviors.

All that handles columns derives from them: which columns of the tables are read and checked, the join, the examples'
spec, Transform, vocabularies, the model's inputs, the signatures, warm-up, requests.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import typing

from tfmm import declared_values
from tfmm.declared_values import COLUMN_RULE, NAME_RULE, SERVING_RULES
from tfmm.labels import DEFAULT_LABEL, FIELDS, KEYS, LABEL, Label

PADDING = 0  # id and index of padding and of a missing value
OUT_OF_VOCABULARY = 1  # index of an id that the vocabulary lacks
NUM_SPECIAL = 2  # indices before the vocabulary's own
ACTIONS = ("click", "cart", "favorite", "purchase")
_TABLES = {  # where a feature of a role may come from; the first is where it is looked for
    "user": ("users", "impressions"),
    "item": ("items", "impressions"),
    "context": ("impressions",),
    "behavior": ("behaviors",),
}
ROLES = tuple(_TABLES)
KINDS = ("id", "ids", "number", "boolean", "time")
SCALINGS = ("standard", "log", "quantiles")
PARTS = {"hour": 24, "weekday": 7}
STATISTICS_SUFFIX = "_statistics"  # of a number's name: the column and file that hold what scales it
AGE = "age"  # the source of a behavior's age: seconds from the behavior to the impression
STORED = "item_features"  # the table of the index, beside those of modalities, that keeps the items' features


@dataclasses.dataclass(frozen=True)
class Feature:
    """One column of the tables and what it means to a click model.

    Roles: `user` and `context` describe who is asking and when, `item` what is scored, `behavior` what rides along
    with each behavior of a sequence. Kinds, and how each says that it is missing:

    - `id`: an integer or string; an embedding by vocabulary, or by hash buckets. 0, "" or null is missing.
    - `ids`: a list of these, such as tags; the mean of their embeddings. An empty list or null is missing.
    - `number`: a float; `scaling` says what becomes of it. Null and what is not finite are missing, a state of its own.
    - `boolean`: true or false, 1 or 0 in a request; NaN or null is missing.
    - `time`: a timestamp or date; an embedding of the hour or weekday of its instant, UTC. Null is missing (0 in a
      request). What names no zone is read on the clocks of `data.time_zone`.
    """

    name: str
    role: str  # user, item, context or behavior
    kind: str = "id"  # id, ids, number, boolean or time
    source: str = ""  # table.column; "": the role's table, the feature's name. behaviors.age: the behavior's age, in s
    dim: int = 8  # values of an embedding
    vocabulary: str = ""  # features that name the same one share it, with its embeddings; "": the feature's own
    min_count: int = 0  # ids seen less often in training share one embedding; 0: data.min_id_count
    num_buckets: int = 0  # hash buckets in place of a vocabulary: memory is bounded, and ids may share an embedding
    max_values: int = 8  # of `ids`: the first ones are kept
    scaling: str = "standard"  # of a number: standard, log (of its size, the sign kept) or quantiles (an embedding)
    num_quantiles: int = 16
    part: str = "hour"  # of a time: hour or weekday
    serving_value: float | str | None = None  # known in training only: what serving takes for it, e.g. 1 for position

    @property
    def table(self) -> str:
        """The table that has it."""
        return self.source.partition(".")[0] or _TABLES[self.role][0]

    @property
    def column(self) -> str:
        """Its column there."""
        return self.source.partition(".")[2] or self.name

    @property
    def is_embedded(self) -> bool:
        """Whether it enters the model as an embedding; else as a number beside whether it is there."""
        return self.kind != "number" or self.scaling == "quantiles"

    @property
    def has_vocabulary(self) -> bool:
        """Whether its ids are looked up in a vocabulary, not hashed."""
        return self.kind in ("id", "ids") and not self.num_buckets

    @property
    def embedding(self) -> str:
        """The name of its embedding table, which features of one vocabulary share."""
        return self.vocabulary or self.name

    @property
    def statistics(self) -> str:
        """The name of the column and file that hold what scales a number."""
        return self.name + STATISTICS_SUFFIX

    @property
    def num_indices(self) -> int | None:
        """Rows of its embedding table; None where the vocabulary says."""
        if self.kind in ("id", "ids"):
            return self.num_buckets + NUM_SPECIAL if self.num_buckets else None
        return 1 + {"number": self.num_quantiles, "boolean": 2, "time": PARTS.get(self.part, 0)}[self.kind]

    def faults(self) -> typing.Iterator[str]:
        """Yields what is wrong with it, a line each."""
        name = f"feature {self.name!r}"
        if not declared_values.is_column(self.name):
            yield f"{name}: `name` must be {COLUMN_RULE}"
        for field, allowed in (("role", ROLES), ("kind", KINDS), ("scaling", SCALINGS), ("part", tuple(PARTS))):
            if getattr(self, field) not in allowed:
                yield f"{name}: `{field}` must be one of {', '.join(allowed)}, not {getattr(self, field)!r}"
        for field, least in (("dim", 1), ("min_count", 0), ("num_buckets", 0), ("max_values", 1), ("num_quantiles", 2)):
            if getattr(self, field) < least:
                yield f"{name}: `{field}` must be at least {least}, not {getattr(self, field)}"
        if self.role in ROLES:
            if self.source and (self.source.count(".") != 1 or self.table not in _TABLES[self.role]):
                yield (
                    f"{name}: `source` must be table.column, the table of role {self.role} one of "
                    f"{', '.join(_TABLES[self.role])}, not {self.source!r}"
                )
            if self.role == "behavior" and self.kind == "ids":
                yield f"{name}: a behavior's own column must hold one value, so `kind` cannot be 'ids'"
        if self.source == f"behaviors.{AGE}" and self.kind != "number":
            yield f"{name}: the age of a behavior is a number of seconds, so `kind` must be 'number'"
        if self.vocabulary and self.kind not in ("id", "ids"):
            yield f"{name}: only ids have a `vocabulary`; {self.kind} has none"
        elif self.vocabulary and not declared_values.is_name(self.vocabulary):
            yield f"{name}: `vocabulary` must be {NAME_RULE}, not {self.vocabulary!r}"
        if self.serving_value is not None and (self.role == "behavior" or self.name in KEYS or self.kind == "ids"):
            yield f"{name}: `serving_value` is for single values of users, items and contexts, not for this one"
        elif self.serving_value is not None and not declared_values.can_serve(self.serving_value, self.kind):
            yield f"{name}: `serving_value` must be {SERVING_RULES.get(self.kind)}, not {self.serving_value!r}"
        if self.name in KEYS:
            role = self.name.removesuffix("_id")
            if (self.kind, self.role, self.column) != ("id", role, self.name):
                yield f"{name}: must be of kind 'id' and role {role!r}, from a column {self.name!r}"
        rows = self.num_indices if self.is_embedded and self.kind in KINDS and self.dim >= 1 else None
        if rows and (text := declared_values.size_fault(self.dim, rows)):
            yield f"{name}: {text}. Lower `dim`, `num_buckets` or `num_quantiles`"


@dataclasses.dataclass(frozen=True)
class Sequence:
    """A user's behaviors before the impression, the newest of certain actions, and what rides along with each."""

    name: str
    actions: tuple[str, ...] = ()  # click, cart, favorite, purchase; (): all of them
    length: int = 0  # L; 0: data.max_behaviors
    features: tuple[str, ...] = ("item_id",)  # of the behavior's item, or its own (role behavior); item_id among them
    column_names: tuple[str, ...] = ()  # of the columns, one per feature; (): <sequence>_<feature>
    din: bool = True  # whether the click model's attention reads it
    simtier: bool = True
    make: bool = True

    def __post_init__(self) -> None:
        declared_values.with_tuples(self)

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of an example's columns, in the order of `features`."""
        return self.column_names or tuple(f"{self.name}_{feature}" for feature in self.features)

    @property
    def item_ids(self) -> str:
        """The column with the behaviors' items."""
        return self.columns[self.features.index("item_id")]

    def faults(self, known: typing.Mapping[str, Feature]) -> typing.Iterator[str]:
        """Yields what is wrong with it, a line each; `known` are the declared features by name."""
        name = f"sequence {self.name!r}"
        if not declared_values.is_name(self.name) or self.name == "target":
            yield f"{name}: `name` must be {NAME_RULE}, and not 'target'"
        if unknown := sorted(set(self.actions) - set(ACTIONS)):
            yield f"{name}: `actions` must be among {', '.join(ACTIONS)}, not {', '.join(unknown)}"
        if self.length < 0:
            yield f"{name}: `length` must be at least 1 (0: data.max_behaviors), not {self.length}"
        if "item_id" not in self.features:
            yield f"{name}: `features` must hold 'item_id', by which vectors are found"
        if self.column_names and len(self.column_names) != len(self.features):
            yield f"{name}: `column_names` must name one per feature, {len(self.features)} in all"
        if wrong := [repr(column) for column in self.columns if not declared_values.is_column(column)]:
            yield f"{name}: `column_names` must be {COLUMN_RULE}, not {', '.join(wrong)}"
        for feature in self.features:
            if feature not in known:
                yield f"{name}: `features` must be declared; {feature!r} is not"
            elif known[feature].role not in ("item", "behavior") or known[feature].kind == "ids":
                yield f"{name}: `features` must be single values of items or behaviors; {feature!r} is not"
            elif known[feature].role == "item" and feature != "item_id" and known[feature].table == "impressions":
                yield f"{name}: {feature!r} comes from impressions, which say nothing of a behavior's item"
            elif known[feature].serving_value is not None:
                place = f"{known[feature].table}.{known[feature].column}"
                yield (
                    f"{name}: {feature!r} has a `serving_value`, so it is known of no behavior in service. Leave it "
                    f"out, or declare another feature with source {place!r} and without it"
                )


DEFAULT_FEATURES = (
    Feature("user_id", "user", source="impressions.user_id", dim=16),
    Feature("item_id", "item", source="impressions.item_id", dim=16),
    Feature("category", "item"),
)
DEFAULT_SEQUENCES = (
    Sequence(
        "behavior", features=("item_id", "category"), column_names=("behavior_item_ids", "behavior_categories")
    ),
)


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of an example, and one input of a request."""

    name: str
    feature: Feature
    sequence: Sequence | None = None

    @property
    def side(self) -> str:
        """`user`: one value per request; `item`: one per candidate."""
        return "item" if self.feature.role == "item" and self.sequence is None else "user"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one example."""
        if self.sequence is not None:
            return (self.sequence.length,)
        return (self.feature.max_values,) if self.feature.kind == "ids" else ()

    @property
    def is_float(self) -> bool:
        """Whether it holds float32; else int64."""
        return self.feature.kind in ("number", "boolean")

    @property
    def missing(self) -> float:
        """What stands for a missing value, and for padding."""
        return float("nan") if self.is_float else PADDING

    @property
    def input(self) -> str:
        """The name under which the model takes it, preprocessed."""
        return f"{self.name}_{'index' if self.feature.is_embedded else 'value'}"

    @property
    def is_served(self) -> bool:
        """Whether a request brings it."""
        return self.feature.serving_value is None


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """The features, sequences and label of one run, checked together.

    Raises:
        ValueError: all that is wrong with them, a line each.

    >>> FeatureSet().vocabularies
    ('user_id', 'item_id', 'category')
    >>> [column.name for column in FeatureSet().columns]
    ['user_id', 'item_id', 'category', 'behavior_item_ids', 'behavior_categories']
    """

    features: tuple[Feature, ...] = DEFAULT_FEATURES
    sequences: tuple[Sequence, ...] = DEFAULT_SEQUENCES
    label: Label = DEFAULT_LABEL

    def __post_init__(self) -> None:
        if found := list(dict.fromkeys(self._faults())):
            raise ValueError("The declaration of features must hold together. Received:\n- " + "\n- ".join(found))

    def resolved(self, max_behaviors: int, min_count: int) -> FeatureSet:
        """Returns the same with lengths and least counts that were left open filled in."""
        return dataclasses.replace(
            self,
            features=tuple(dataclasses.replace(f, min_count=f.min_count or min_count) for f in self.features),
            sequences=tuple(dataclasses.replace(s, length=s.length or max_behaviors) for s in self.sequences),
        )

    @functools.cached_property
    def columns(self) -> tuple[Column, ...]:
        """Every column of an example but `timestamp` and those of the label."""
        own = [Column(f.name, f) for f in self.features if f.role != "behavior"]
        riding = [
            Column(name, self[feature], sequence)
            for sequence in self.sequences
            for feature, name in zip(sequence.features, sequence.columns)
        ]
        return (*own, *riding)

    @property
    def served(self) -> tuple[Column, ...]:
        """The columns that a request brings."""
        return tuple(column for column in self.columns if column.is_served)

    @property
    def stored(self) -> tuple[Feature, ...]:
        """The item features that the catalog brings: the index keeps them, so that a request may leave them out."""
        own = (f for f in self.features if f.role == "item" and f.table == "items" and f.name not in KEYS)
        return tuple(feature for feature in own if feature.serving_value is None)

    @property
    def vocabularies(self) -> tuple[str, ...]:
        """The names of the vocabularies that the training data gives."""
        return tuple(dict.fromkeys(f.embedding for f in self.features if f.has_vocabulary))

    @property
    def embeddings(self) -> dict[str, Feature]:
        """The embedding tables by name, each with the first of the features that share it."""
        result: dict[str, Feature] = {}
        for feature in self.features:
            if feature.is_embedded:
                result.setdefault(feature.embedding, feature)
        return result

    @property
    def numbers(self) -> tuple[Feature, ...]:
        """The features whose scaling the training data gives."""
        return tuple(f for f in self.features if f.kind == "number")

    def __getitem__(self, name: str) -> Feature:
        return next(feature for feature in self.features if feature.name == name)

    def sequence(self, name: str) -> Sequence:
        """Returns the sequence of a name."""
        return next(sequence for sequence in self.sequences if sequence.name == name)

    def of_table(self, table: str) -> tuple[Feature, ...]:
        """The features that a table brings."""
        return tuple(f for f in self.features if f.table == table and f.source != f"behaviors.{AGE}")

    def _faults(self) -> typing.Iterator[str]:
        parts: list[tuple[str, typing.Any]] = [(f"feature {f.name!r}", f) for f in self.features]
        parts += [("label", self.label), *((f"sequence {s.name!r}", s) for s in self.sequences)]
        if wrong := [f"{name}: {text}" for name, part in parts for text in declared_values.faults(part)]:
            yield from wrong  # the other rules are about values of these types
            return
        known = {feature.name: feature for feature in self.features}
        yield from self.label.faults()
        for feature in self.features:
            yield from feature.faults()
            for own, column in self.label.sources.items():
                if feature.role in ROLES and (feature.table, feature.column) == ("impressions", column):
                    what = "the label" if own == LABEL else f"the label's `{FIELDS[own]}`"
                    yield f"feature {feature.name!r}: reads {what}, impressions.{column}, which no request knows"
        for key in KEYS:
            if key not in known:
                yield f"`features` must declare {key!r}, by which tables and vectors are joined"
        for sequence in self.sequences:
            yield from sequence.faults(known)
        names = [f.name for f in self.features if f.role != "behavior"]
        names += [name for sequence in self.sequences for name in sequence.columns]
        names += [f.name for f in self.features if f.role == "behavior"]
        for name, count in collections.Counter(names).items():
            if count > 1:
                yield f"names of features and of sequences' columns must differ; {name!r} stands {count} times"
        yield from self._derived_faults(set(names), known)
        for name, count in collections.Counter(s.name for s in self.sequences).items():
            if count > 1:
                yield f"names of sequences must differ; {name!r} stands {count} times"
        riding = {name for sequence in self.sequences for name in sequence.features}
        for feature in self.features:
            if feature.role == "behavior" and feature.name not in riding:
                yield f"feature {feature.name!r}: a behavior's column must ride along in a sequence; none names it"
        shared: dict[str, Feature] = {}
        for feature in self.features:
            if feature.is_embedded:
                first = shared.setdefault(feature.embedding, feature)
                fields = ("dim", "min_count", "num_buckets")
                if first is not feature and not {first.kind, feature.kind} <= {"id", "ids"}:
                    yield (
                        f"features {first.name!r} and {feature.name!r} share {feature.embedding!r}, so both must be "
                        "ids. Name another `vocabulary`"
                    )
                elif any(getattr(first, field) != getattr(feature, field) for field in fields):
                    yield (
                        f"features {first.name!r} and {feature.name!r} share {feature.embedding!r}, so `dim`, "
                        "`min_count` and `num_buckets` must be the same"
                    )

    def _derived_faults(self, names: set[str], known: typing.Mapping[str, Feature]) -> typing.Iterator[str]:
        """Yields where what derives from a name, such as an input of the model, is called as something else is."""
        places = {name: [f"the column {name!r}"] for name in names}
        own = [Column(f.name, f) for f in self.features if f.role != "behavior"]
        riding = [Column(n, known[f], s) for s in self.sequences for f, n in zip(s.features, s.columns) if f in known]
        for column in (*own, *riding):
            places.setdefault(column.input, []).append(f"the model's input of {column.name!r}")
        for feature in self.numbers:
            places.setdefault(feature.statistics, []).append(f"what scales {feature.name!r}")
        for feature in self.features:
            if feature.vocabulary in {number.statistics for number in self.numbers}:
                places[feature.vocabulary].append(f"the vocabulary of {feature.name!r}")
        for name, found in places.items():
            if len(dict.fromkeys(found)) > 1:
                yield f"{name!r} must name one thing, not {' and '.join(dict.fromkeys(found))}. Rename one"
