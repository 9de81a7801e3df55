"""Checks a data folder against the schema, table by table, with pandera."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import importlib.util
import pathlib
import typing

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tfmm import buckets, extras
from tfmm.config import DataConfig
from tfmm.data import as_known, declared, doubts, examples, instants, rules, schema, times, unread
from tfmm.data.layout import Unread
from tfmm.data.parts import LayoutError, Part
from tfmm.features import FeatureSet, Label
from tfmm.modalities import UNDECLARED, ModalitySet, refuses_long_texts

SHOWN = 5  # rows and values that a fault quotes
MAX_REASON = 2000  # characters of an error


UNIQUE = "must be unique"
COLLISION = "must not share its 64-bit fingerprint with another id"


@dataclasses.dataclass(frozen=True)
class Fault:
    """One rule that one column breaks."""

    table: str
    column: str  # "" where the rule is about the table
    rule: str
    count: int  # rows that break it
    rows: tuple[int, ...] = ()  # the first of them, from 0, over the table's files in order of name
    values: tuple[str, ...] = ()  # what stands there

    def __str__(self) -> str:
        place = f"{self.table}.{self.column}" if self.column else self.table
        where = f", first rows {', '.join(map(str, self.rows))}" if self.rows else ""
        return f"{place} {self.rule} ({self.count:,}{where})"


@dataclasses.dataclass(frozen=True)
class CheckReport:
    """What `check` found: rows per table, every broken rule, and what is no fault but worth knowing."""

    counts: dict[str, int]
    faults: tuple[Fault, ...]
    unread: tuple[Unread, ...] = ()  # what lies in the folder and is not read
    notes: tuple[str, ...] = ()  # coarse times and what follows (`data.times`), doubtful ones (`data.doubts`), ids of 0

    @property
    def ok(self) -> bool:
        """Whether there is no fault."""
        return not self.faults

    def stopping(self, max_bad_fraction: float) -> tuple[Fault, ...]:
        """Returns the faults that a run cannot leave out row by row.

        Those are the faults of a whole table or column, ids that are not unique, and rules that more than
        `max_bad_fraction` of a table's rows break. Rows of all others go to dead letters, each with its reason.
        Behaviors with items that the catalog lacks never stop a run: items are delisted, histories keep them.
        """
        return tuple(
            fault
            for fault in self.faults
            if not fault.rows
            or fault.rule in (UNIQUE, COLLISION, as_known.ONE_PER_TIME)
            or (
                fault.count > max_bad_fraction * self.counts[fault.table]
                and not (fault.rule == rules.UNKNOWN_ITEM and fault.table != "impressions")
            )
        )


def check(
    data_dir: str | pathlib.Path,
    config: DataConfig | None = None,
    feature_set: FeatureSet | None = None,
    modality_set: ModalitySet = UNDECLARED,
    max_pixels: typing.Mapping[str, int] | None = None,
) -> CheckReport:
    """Checks every table, column and row of a data folder.

    Args:
        data_dir: the data folder.
        config: how impressions are split and times are read; None: DataConfig().
        feature_set: what the run declares; None: the default features.
        modality_set: what the run declares.
        max_pixels: of pictures, by column (`RunConfig.max_pixels`); None: the default of encoders.
    Returns:
        `.counts`, rows per table; `.faults`, each with `table`, `column`, `rule`, `count`, and the first
        `rows` and `values`; `.ok`, True where there is no fault; `.unread`, what lies there and is not used;
        `.notes`, what is no fault but worth knowing.
    Raises:
        MissingExtraError: pandera is not installed.
    """
    feature_set = feature_set or FeatureSet()
    tables = declared.tables(feature_set, modality_set)
    config = config or DataConfig()
    run = _Check(data_dir, _pandera(), tables, feature_set.label, modality_set, max_pixels or {}, config.time_zone)
    unused = unread.of_folder(data_dir, tables)
    for name, table in tables.items():
        try:
            unused += unread.of_table(data_dir, name, tables)
            parts = schema.table_parts(data_dir, name, tables)
        except LayoutError as error:
            run.add(name, "", f"must be one readable table: {error}", 1)
            continue
        if parts:
            try:
                run.check_table(name, parts)
            except LayoutError as error:  # columns that can be read, but not together
                run.add(name, "", f"must be one readable table: {error}", 1)
                run.damaged.add(name)
        elif table.required:
            run.add(name, "", "must be there", 1)
    run.check_ids()
    run.check_declaration(feature_set)
    run.check_catalog()
    run.check_splits(config)
    return CheckReport(run.counts, tuple(run.faults), tuple(unused), run.notes(config))


def frame_schema(name: str, column_rules: typing.Sequence[rules.Rule], kinds: dict[str, pa.DataType]) -> typing.Any:
    """Returns a pandera DataFrameSchema that applies rules to a pandas frame of a table.

    Args:
        name: the table.
        column_rules: rules of its columns.
        kinds: the Arrow type of each column of the frame; rules of other columns are left out.
    """
    pandera = _pandera()
    checks = collections.defaultdict(list)
    for rule in column_rules:
        if rule.column in kinds:
            checks[rule.column].append(
                pandera.Check(_frame_check(rule, kinds[rule.column]), error=rule.text, ignore_na=False)
            )
    columns = {column: pandera.Column(checks=found, nullable=True) for column, found in checks.items()}
    return pandera.DataFrameSchema(columns, name=name)


def _frame_check(rule: rules.Rule, kind: pa.DataType) -> typing.Callable[[typing.Any], np.ndarray]:
    def holds(series: typing.Any) -> typing.Any:
        return type(series)(~rule.breaks(pa.array(series, kind, from_pandas=True)), index=series.index)

    return holds


def _frame(table: pa.Table) -> typing.Any:
    """Returns a pandas frame; integers as Int64, and times too, since pandas' nanoseconds end in the year 2262."""
    import pandas as pd

    for place, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type):
            table = table.set_column(place, field.name, table[field.name].cast(pa.int64()))
    return table.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)


def _value(column: pa.ChunkedArray, row: int) -> typing.Any:
    return instants.texts(column.slice(row, 1))[0] if pa.types.is_timestamp(column.type) else column[row].as_py()


def _pandera() -> typing.Any:
    extras.require("pandera", "pipeline")
    # From 0.24 on the pandas interface has a module of its own; pandas 1.5, which TFX 1.16 needs, has 0.22.
    has_own = importlib.util.find_spec("pandera.pandas") is not None
    return extras.require("pandera.pandas" if has_own else "pandera", "pipeline")


@dataclasses.dataclass
class _Cases:
    """The rows that break a rule: how many, and the first of them."""

    count: int = 0
    rows: list[int] = dataclasses.field(default_factory=list)
    values: list[typing.Any] = dataclasses.field(default_factory=list)

    def add(self, first: int, rows: np.ndarray, column: pa.ChunkedArray) -> None:
        """Adds rows of a row group that begins with row `first` of its table, and what stands in its column there."""
        shown = rows[: SHOWN - len(self.rows)].tolist()
        self.count += len(rows)
        self.rows += [first + row for row in shown]
        self.values += [_value(column, row) for row in shown]


class _Check:
    """The state of one check: what was counted, what was found, ids to look references up in."""

    def __init__(
        self,
        data_dir: str | pathlib.Path,
        pandera: typing.Any,
        tables: schema.Tables,
        label: Label,
        modality_set: ModalitySet,
        max_pixels: typing.Mapping[str, int],
        time_zone: str,
    ):
        self.data_dir, self._pandera, self._tables, self._label = data_dir, pandera, tables, label
        self._modality_set, self._max_pixels, self._time_zone = modality_set, max_pixels, time_zone
        self.counts: dict[str, int] = {}
        self.faults: list[Fault] = []
        self.damaged: set[str] = set()  # tables of which nothing more is read
        self._columns: dict[str, list[str]] = {}  # that can be read
        self._ids: dict[str, np.ndarray] = {}  # sorted fingerprints of items and searches
        self._dims: dict[str, int] = {}  # of items' vectors, by column
        self._zeros: collections.Counter[str] = collections.Counter()  # ids of 0 or "" that are no keys, by column

    def add(
        self,
        table: str,
        column: str,
        rule: str,
        count: int,
        rows: typing.Iterable[int] = (),
        values: typing.Iterable[typing.Any] = (),
    ) -> None:
        self.faults.append(Fault(table, column, rule, count, tuple(map(int, rows)), tuple(map(_quote, values))))

    def check_table(self, name: str, parts: typing.Sequence[Part]) -> None:
        self.counts[name] = sum(sum(part.row_groups) for part in parts)
        columns = self._columns[name] = self._readable_columns(name, parts)
        if not self.counts[name] and self._tables[name].required:
            self.add(name, "", "must have rows", 1)
        self._check_unique(name, columns)
        found: dict[tuple[str, str], _Cases] = {}
        column_rules, first = self._rules(name, columns, parts), 0
        for part in parts:
            for group in range(len(part.row_groups)):
                table = schema.read_part(part, name, columns, group, self._tables)
                self._count_zeros(name, table)
                for column, text, rows in self._failures(name, table, column_rules):
                    found.setdefault((column, text), _Cases()).add(first, rows, table[column])
                first += table.num_rows
        for rule in column_rules:  # in the rules' order
            if cases := found.pop((rule.column, rule.text), None):
                self.add(name, rule.column, rule.text, cases.count, cases.rows, cases.values)

    def _count_zeros(self, name: str, table: pa.Table) -> None:
        for column in self._tables[name].columns:
            if column.kind == "id" and not column.is_key and column.name in table.column_names:
                self._zeros[f"{name}.{column.name}"] += int(rules.is_zero(table[column.name]).sum())

    def _failures(
        self,
        name: str,
        table: pa.Table,
        column_rules: typing.Sequence[rules.Rule],
    ) -> typing.Iterator[tuple[str, str, np.ndarray]]:
        """Yields the rows of a row group that break a rule, ascending, by column and rule."""
        kinds = {field.name: field.type for field in table.schema}
        try:
            frame_schema(name, column_rules, kinds).validate(_frame(table), lazy=True)
        except self._pandera.errors.SchemaErrors as error:
            cases = error.failure_cases
            unexpected = cases["index"].isna()
            if unexpected.any():  # a check that crashed is our mistake, not the data's
                raise RuntimeError(f"A check of {name!r} failed: {cases[unexpected].to_dict('records')}.") from error
            for (column, rule), of_rule in cases.groupby(["column", "check"], sort=False):
                yield column, rule, np.sort(of_rule["index"].to_numpy(np.int64))

    def _rules(self, name: str, columns: typing.Sequence[str], parts: typing.Sequence[Part]) -> list[rules.Rule]:
        has_split = False
        if "split" in columns:
            splits = schema.read_table(self.data_dir, name, ["split"])["split"]
            has_split = splits.null_count < len(splits)
        for column in self._tables[name].columns:
            if column.kind == "vector" and column.name in columns:
                self._dims[column.name] = declared.vector_dim(parts, column.name)
        searches = self._ids.get("searches")
        own = rules.row_rules(name, self._ids.get("items"), searches, has_split, self._tables, self._label)
        dims, texts = (self._dims, self._short_texts(columns, parts)) if name == "items" else ({}, [])
        return own + rules.content_rules(name, dims, self._tables, self._max_pixels, texts)

    def _short_texts(self, columns: typing.Sequence[str], parts: typing.Sequence[Part]) -> list[str]:
        """Returns the columns of items that are embedded, and of which long texts are not."""
        names = self._modality_set.present(lambda column: column in columns and schema.has_value(parts, column))
        embedded = map(self._modality_set.__getitem__, names)
        return sorted({modality.content for modality in embedded if refuses_long_texts(modality.encoder)})

    def _readable_columns(self, name: str, parts: typing.Sequence[Part]) -> list[str]:
        columns = []
        stored = {buckets.relative(part.path, self.data_dir): part.schema.names for part in parts}
        for column in self._tables[name].columns:
            missing = [path for path, names in stored.items() if column.name not in names]
            if column.required and missing:
                rule = f"must be a column ({schema.kind_text(column)})"
                received = [f"{path} with {', '.join(stored[path]) or 'no columns'}" for path in missing[:SHOWN]]
                self.add(name, column.name, rule, len(missing), values=map(ValueError, received))
            elif len(missing) < len(parts):
                try:
                    schema.read_table(self.data_dir, name, [column.name], self._tables)
                    columns.append(column.name)
                except LayoutError as error:
                    self.add(name, column.name, f"must be one readable table: {error}", 1)
                except (ValueError, pa.ArrowInvalid) as error:
                    self.add(name, column.name, f"must be {schema.kind_text(column)}", 1, values=[error])
        return columns

    def _check_unique(self, name: str, columns: typing.Sequence[str]) -> None:
        key = declared.unique_key(name)
        if key is None or key not in columns:
            return
        ids = schema.read_table(self.data_dir, name, [key], self._tables)[key]
        if pa.types.is_null(ids.type):
            return  # each is told as a null
        prints = schema.fingerprints(ids)
        order = np.argsort(prints, kind="stable")
        again, before = as_known.repeated(prints, order)
        same = np.asarray(pc.fill_null(pc.equal(ids.take(pa.array(again)), ids.take(pa.array(before))), True)).astype(
            bool
        )
        repeated, rule, usable = again[same], UNIQUE, np.ones(len(prints), bool)
        if schema.UPDATED_AT in columns:
            seen = as_known.see(self.data_dir, self._time_zone, self._tables, [name])
            if updates := as_known.read_updates(self.data_dir, name, seen, self._tables):
                repeated, rule, usable = as_known.doubled(prints, updates), as_known.ONE_PER_TIME, ~updates.faulty
        for rows, text in ((np.sort(repeated), rule), (np.sort(again[~same]), COLLISION)):
            if len(rows):
                self.add(name, key, text, len(rows), rows[:SHOWN], ids.take(pa.array(rows[:SHOWN])).to_pylist())
        self._ids[name] = prints[order][usable[order]]

    def check_ids(self) -> None:
        try:
            schema.id_types(self.data_dir)
        except LayoutError:
            pass  # reported with its table
        except ValueError as error:
            self.add("impressions", "", f"and all tables must have ids of one type: {error}", 1)

    def check_declaration(self, feature_set: FeatureSet) -> None:
        """Adds what the data lacks of a declaration; what is wrong with files was reported with their tables."""
        with contextlib.suppress(LayoutError):
            for text in declared.faults(self.data_dir, feature_set, self._modality_set, self._dims):
                self.add("declaration", "", text, 1)

    def check_catalog(self) -> None:
        if not self.counts.get("items") or self._modality_set.modalities:  # declared ones: with the declaration
            return
        for column, dim in self._dims.items():
            if text := declared.dim_fault(dim):
                self.add("items", column, text, 1)
        is_readable = all(fault.rows for fault in self.faults if fault.table == "items")
        if is_readable and not schema.modalities(self.data_dir):
            self.add("items", "", "must have a title, an image or a vector in at least one row", 1)

    def check_splits(self, config: DataConfig) -> None:
        label = self._label.column
        if not self.counts.get("impressions") or "impressions" in self.damaged or any(
            fault.table == "impressions" and fault.column in ("timestamp", label, "split") for fault in self.faults
        ):
            return
        table = schema.read_table(self.data_dir, "impressions", [label, "split"], self._tables)
        (seen,) = times.resolutions(self.data_dir, config.time_zone, ["impressions"]).values()
        shown_at, _ = times.read_bounds(self.data_dir, "impressions", seen)
        labels = table[label].to_numpy()
        if table["split"].null_count < table.num_rows:
            in_eval = np.asarray(pc.equal(table["split"], schema.EVAL)).astype(bool)
        else:
            in_eval = shown_at >= examples.eval_start(shown_at, config.eval_fraction)
        for split, rows in zip(schema.SPLITS, (~in_eval, in_eval)):
            if not rows.any():
                self.add("impressions", "timestamp", f"must leave rows in the {split} split", 1)
            elif len(np.unique(labels[rows])) < 2:
                self.add("impressions", label, f"must be both 0 and 1 in the {split} split", int(rows.sum()))

    def notes(self, config: DataConfig) -> tuple[str, ...]:
        unreadable = {(fault.table, fault.column) for fault in self.faults if not fault.rows}
        with_times = [name for name in self.counts if name in times.COLUMNS and name not in self.damaged]
        names = [name for name in with_times if (name, times.COLUMNS[name]) not in unreadable]
        whole = {table: columns for table, columns in self._columns.items() if table not in self.damaged}
        names += [key for table, key in times.VERSIONS.items() if schema.UPDATED_AT in whole.get(table, [])]
        seen = times.resolutions(self.data_dir, config.time_zone, names, self._tables)
        zeros = [
            f'{place} is 0 or "" in {count:,} rows, which stands for missing.'
            for place, count in self._zeros.items()
            if count
        ]
        return (*times.notes(seen), *doubts.notes(self.data_dir, seen, self._tables, self._columns), *zeros)


def _quote(value: typing.Any) -> str:
    """Returns a value of the data, cut, or whole what an error says."""
    text = f"{len(value)} bytes" if isinstance(value, bytes) else str(value)
    most = MAX_REASON if isinstance(value, Exception) else 60
    return text if len(text) <= most else text[: most - 3] + "..."
