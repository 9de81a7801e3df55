"""Values as they were known at the impression, by brute force: versions with true instants, told in many ways.

What is expected comes from Python's datetime and zoneinfo, row by row, and from nothing of the library.
"""

import datetime
import zoneinfo

import apache_beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from apache_beam.options.pipeline_options import PipelineOptions

from tfmm import preprocessing
from tfmm.config import DataConfig, PairsConfig
from tfmm.data import as_known, beam, examples, join, pairs, shards, transform
from tfmm.features import DEFAULT_FEATURES, Feature, FeatureSet, Sequence
from tfmm.index.item_vectors import ItemVectors, slots_name
from tfmm.training import sources

UTC = datetime.timezone.utc
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=UTC)
US = datetime.timedelta(microseconds=1)
SECOND, DAY = 10**6, 86_400 * 10**6
CHANGE = (datetime.datetime(2024, 10, 27, 1, tzinfo=UTC) - EPOCH) // US  # of clocks in Berlin
BEGINNING = np.iinfo(np.int64).min
USERS, ITEMS, SHOWN, ACTS = 12, 30, 400, 400


def utc(instant):
    return EPOCH + int(instant) * US


def us(aware):
    return (aware - EPOCH) // US


def readings(wall, zone):
    """All instants at which clocks of a zone show a naive time."""
    found = [us(wall.replace(tzinfo=zone, fold=fold).astimezone(UTC)) for fold in (0, 1)]
    return [instant for instant in found if utc(instant).astimezone(zone).replace(tzinfo=None) == wall]


def cut(kind, unit):
    """Tells instants in UTC, down to a unit: the column, and for each row its first instant and the first after it."""

    def tell(instants):
        starts = instants // unit * unit
        return pa.array(starts, pa.timestamp("us")).cast(kind), starts, starts + unit

    return tell


def walls(name, as_dates):
    """Tells what clocks of a zone showed, without a zone: dates, or times."""
    zone = zoneinfo.ZoneInfo(name)

    def tell(instants):
        told = [utc(instant).astimezone(zone).replace(tzinfo=None) for instant in instants]
        if as_dates:
            told = [datetime.datetime.combine(wall.date(), datetime.time()) for wall in told]
        last = [wall + (DAY - 1) * US if as_dates else wall for wall in told]
        column = pa.array([wall.date() for wall in told]) if as_dates else pa.array(told, pa.timestamp("us"))
        starts, ends = [min(readings(w, zone)) for w in told], [max(readings(w, zone)) + 1 for w in last]
        return column, np.array(starts), np.array(ends)

    return tell


EXACT = cut(pa.timestamp("us"), 1)
INSTANTS = cut(pa.timestamp("us", "UTC"), 1)
DATES = cut(pa.date32(), DAY)
KINDS = {  # how versions are told, a way per file; how impressions and behaviors are; data.time_zone
    "microseconds": ([EXACT], EXACT, "UTC"),
    "nanoseconds beside milliseconds": ([cut(pa.timestamp("ns"), 1)], cut(pa.timestamp("ms"), 1_000), "UTC"),
    "seconds": ([cut(pa.timestamp("s"), SECOND)], EXACT, "UTC"),
    "dates": ([DATES], EXACT, "UTC"),
    "dates on both sides": ([DATES], DATES, "UTC"),
    "impressions by date": ([EXACT], DATES, "UTC"),
    "local times": ([walls("Europe/Berlin", False)], walls("Europe/Berlin", False), "Europe/Berlin"),
    "local dates": ([walls("America/New_York", True)], INSTANTS, "America/New_York"),
    "with a zone": ([cut(pa.timestamp("us", "Asia/Tokyo"), 1)], INSTANTS, "Europe/Berlin"),
    "dates and microseconds in files": ([DATES, EXACT], EXACT, "UTC"),
    "a file without times": ([EXACT, None], EXACT, "UTC"),
}
FEATURES = FeatureSet(
    (
        *DEFAULT_FEATURES,
        Feature("row", "context", "number"),
        Feature("price", "item", "number"),
        Feature("tags", "item", "ids", max_values=2),
        Feature("income", "user", "number"),
    ),
    (Sequence("acts", features=("item_id", "category", "price")),),
).resolved(6, 1)


class Versions:
    """A table with several rows per id, each of which has its number as value, and what is told of its times."""

    def __init__(self, rng, num_ids, tellings):
        self.ids, self.starts, self.ends, self.times, self.files = [], [], [], [], []
        for tell in tellings:
            ids = rng.integers(1, num_ids + 1, 3 * num_ids // len(tellings))
            near, far = rng.integers(-DAY // 8, DAY // 8, len(ids)), rng.integers(-3 * DAY, DAY, len(ids))
            instants = CHANGE + np.where(rng.random(len(ids)) < 0.3, near, far)
            if tell is None:  # known from the beginning: one such row per id
                ids = np.unique(ids)[::2]
                column, instants = None, np.full(len(ids), BEGINNING)
                starts = ends = instants
            else:
                column, starts, ends = tell(instants)
                told = list(zip(ids.tolist(), starts.tolist(), ends.tolist()))
                once = [n for n, row in enumerate(told) if row not in told[:n]]  # two of one instant are refused
                ids, instants, starts, ends = (values[once] for values in (ids, instants, starts, ends))
                column = column.take(pa.array(once))
            self.files.append((len(self.ids), ids, column))
            for own, more in ((self.ids, ids), (self.starts, starts), (self.ends, ends), (self.times, instants)):
                own.extend(np.asarray(more).tolist())

    def known(self, wanted, start):
        """Returns the number of the row of an id that is known at an impression of this first instant, or None."""
        rows = [n for n, own in enumerate(self.ids) if own == wanted and self.ends[n] <= start]
        return max(rows, key=lambda n: (self.ends[n], self.starts[n])) if rows else None

    def write(self, folder, key, columns):
        folder.mkdir(parents=True)
        for number, (first, ids, column) in enumerate(self.files):
            values = np.arange(first, first + len(ids))
            table = pa.table({key: ids} | {name: make(values) for name, make in columns.items()})
            table = table if column is None else table.append_column("updated_at", column)
            pq.write_table(table, folder / f"{number}.parquet", row_group_size=17)


def shop(folder, kind, seed=0):
    """Writes a shop; returns the versions of items and users, and of the impressions first and true instants."""
    tellings, tell, _ = KINDS[kind]
    rng = np.random.default_rng(seed)
    items, users = (Versions(rng, count, tellings) for count in (ITEMS, USERS))
    items.write(folder / "items", "item_id", {
        "title": lambda rows: [f"version {row}" for row in rows],
        "category": lambda rows: rows + 1,
        "price": lambda rows: rows.astype(float),
        "tags": lambda rows: [[row + 1, row + 2] for row in rows.tolist()],
    })  # fmt: skip
    users.write(folder / "users", "user_id", {"income": lambda rows: rows.astype(float)})
    shown = CHANGE + rng.integers(-2 * DAY, 2 * DAY, SHOWN)
    shown[:40] = np.array(items.times)[np.array(items.times) != BEGINNING][:40] + rng.integers(0, 2, 40)
    acted = CHANGE + rng.integers(-3 * DAY, 2 * DAY, ACTS)
    catalog = np.unique(items.ids)
    columns = {
        "user_id": rng.integers(1, USERS + 1, SHOWN), "item_id": rng.choice(catalog, SHOWN),
        "label": np.arange(SHOWN) % 2, "row": np.arange(SHOWN, dtype=float),
    }  # fmt: skip
    column, starts, _ = tell(shown)
    pq.write_table(pa.table(columns | {"timestamp": column}), folder / "impressions.parquet", row_group_size=100)
    acts = {"user_id": rng.integers(1, USERS + 1, ACTS), "item_id": rng.integers(1, ITEMS + 5, ACTS),
            "timestamp": tell(acted)[0], "action": ["click"] * ACTS}  # fmt: skip
    pq.write_table(pa.table(acts), folder / "behaviors.parquet")
    return items, users, starts, shown


def by_job(folder, output_dir, **config):
    """Examples as the Beam job writes them, both splits."""
    with apache_beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner"])) as root:
        beam.write(root, folder, DataConfig(**config), FEATURES, output_dir, prefix="{split}")
    spec = preprocessing.raw_spec(FEATURES)
    parts = [examples.read_columns(str(output_dir / f"{split}-*.gz"), spec) for split in ("train", "eval")]
    return {name: np.concatenate([part[name] for part in parts]) for name in spec}


def by_join(folder, output_dir, **config):
    """Examples as they are written without TFX, both splits."""
    join.write_examples(folder, DataConfig(**config), FEATURES, output_dir)
    parts = [shards.read_columns(str(output_dir / f"{split}-*")) for split in ("train", "eval")]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def dead_letters(output_dir):
    return pa.concat_tables([pq.read_table(path) for path in output_dir.glob("dead_letter-*")]).to_pylist()


BUILDS = pytest.mark.parametrize("build", [by_join, by_job])


@BUILDS
@pytest.mark.parametrize("kind", KINDS)
def test_an_impression_sees_the_newest_version_that_was_known_before_it(tmp_path, kind, build):
    items, users, starts, shown = shop(tmp_path / "data", kind)
    found = build(tmp_path / "data", tmp_path / "out", time_zone=KINDS[kind][2])
    assert not dead_letters(tmp_path / "out") and len(found["row"]) == SHOWN
    num_known = num_riding = 0
    for place, row in enumerate(found["row"].astype(int).tolist()):
        version = items.known(found["item_id"][place], starts[row])
        price, category, tags = (found[name][place] for name in ("price", "category", "tags"))
        if version is None:  # neither zero nor what came later
            assert np.isnan(price) and category == 0 and tags.tolist() == [0, 0]
        else:
            assert (price, category, tags.tolist()) == (version, version + 1, [version + 1, version + 2])
            assert items.times[version] < shown[row]
        income = users.known(found["user_id"][place], starts[row])
        assert np.isnan(found["income"][place]) if income is None else found["income"][place] == income
        riding = zip(*(found[f"acts_{name}"][place].tolist() for name in ("item_id", "category", "price")))
        for item, category, price in riding:
            known = items.known(item, starts[row]) if item else None
            assert (np.isnan(price) and category == 0) if known is None else (price, category) == (known, known + 1)
            num_riding += known is not None
        num_known += version is not None
    assert num_known > 0.2 * SHOWN and num_riding > SHOWN


@pytest.mark.parametrize("kind", ["dates", "local times", "dates and microseconds in files", "a file without times"])
def test_the_newest_version_is_what_an_impression_after_all_sees(tmp_path, kind):
    items, _, _, _ = shop(tmp_path, kind)
    table = as_known.read_table(tmp_path, "items", KINDS[kind][2], ["item_id", "category"])
    newest = dict(zip(*(column.to_pylist() for column in table.columns)))
    assert len(newest) == table.num_rows
    assert newest == {item: items.known(item, 2**62) + 1 for item in set(items.ids)}


def test_without_times_all_rows_are_known_always(tmp_path):
    """The column may be there and say nothing."""
    found = []
    for name in ("without", "with"):
        shop(tmp_path / name, "microseconds")
        for table in ("items", "users"):
            for file in (tmp_path / name / table).iterdir():
                rows = pq.read_table(file).drop(["updated_at"])
                once = np.unique(rows[0].to_numpy(), return_index=True)[1]
                rows = rows.take(pa.array(once))
                rows = rows.append_column("updated_at", pa.nulls(len(once))) if name == "with" else rows
                pq.write_table(rows, file)
        columns = by_join(tmp_path / name, tmp_path / f"{name}_out")
        found.append({key: values[np.argsort(columns["row"])] for key, values in columns.items()})
    for name in found[0]:
        np.testing.assert_array_equal(found[0][name], found[1][name])
    assert shards.Shards([str(path) for path in (tmp_path / "without_out").glob("train-*")]).items.dtype == (
        shards.item_dtype(FEATURES)
    )


def test_vocabularies_and_inputs_are_of_what_was_known(tmp_path):
    """Counted over the columns of the rows, and preprocessed from them; slots stay those of the item."""
    shop(tmp_path / "data", "microseconds")
    by_join(tmp_path / "data", tmp_path / "out")
    transform.fit(tmp_path / "out", tmp_path / "vocabulary")
    columns = shards.read_columns(str(tmp_path / "out" / "train-*"))
    for name, own in {"category": ["category", "acts_category"], "item_id": ["item_id", "acts_item_id"],
                      "tags": ["tags"]}.items():  # fmt: skip
        ids, counts = np.unique(np.concatenate([columns[one].ravel() for one in own]), return_counts=True)
        expected = ids[np.lexsort((ids, -counts))]
        found = [int(line) for line in (tmp_path / "vocabulary" / name).read_text().split()]
        assert found == expected[expected != 0].tolist()
    preprocessor = preprocessing.load(FEATURES, tmp_path / "vocabulary")
    prices = np.concatenate([columns["price"], columns["acts_price"].ravel()]).astype(np.float64)
    mean, deviation = np.nanmean(prices), np.nanstd(prices)
    tensors = {name: tf.constant(values) for name, values in columns.items()}
    expected = {column: values.numpy() for column, values in preprocessor(tensors).items()}
    ids = np.arange(1, ITEMS, 2)
    tables = {"own": ItemVectors(ids, np.ones((len(ids), 4), np.int8), np.ones(len(ids), np.float32))}
    files = [str(path) for path in (tmp_path / "out").glob("train-*")]
    source = sources.open_source(files, FEATURES, tables, preprocessor)
    found = source.gather(np.arange(source.num_rows))
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    for column in FEATURES.columns:
        if column.feature.name == "price":
            scaled = (columns[column.name] - mean) / deviation
            np.testing.assert_allclose(found[column.input], scaled, rtol=1e-4, atol=1e-4)  # float32
    for side, own in (("target", columns["item_id"]), ("acts", columns["acts_item_id"])):
        np.testing.assert_array_equal(found[slots_name("own", side)] != 0, np.isin(own, ids))


def test_pairs_are_of_contents_that_were_known_before_the_eval_split(tmp_path):
    items, _, starts, _ = shop(tmp_path / "data", "microseconds")
    cut_at = np.sort(starts)[int(SHOWN * 0.4)]
    pairs.build_pairs(tmp_path / "data", PairsConfig(heldout_fraction=0.4), tmp_path / "pairs",
                      DataConfig(eval_fraction=0.6))  # fmt: skip
    known = {f"version {items.known(item, cut_at)}" for item in set(items.ids)}
    used = set()
    for split in ("train", "heldout"):
        found = pq.read_table(tmp_path / "pairs" / "text" / f"{split}.parquet")
        used |= {title for column in ("query", "positive") for title in found[column].to_pylist()}
    assert used and used <= known


@BUILDS
@pytest.mark.parametrize("table, key", [("items", "item_id"), ("users", "user_id")])
def test_two_versions_of_one_instant_are_refused_before_any_work(tmp_path, table, key, build):
    shop(tmp_path / "data", "dates")
    file = tmp_path / "data" / table / "0.parquet"
    rows = pq.read_table(file)
    pq.write_table(pa.concat_tables([rows, rows.slice(3, 2)]), file)
    text = rf"`{table}.{key}` must have one row per instant of `updated_at`.*: 2 rows .* first rows {rows.num_rows}"
    with pytest.raises(ValueError, match=text):
        build(tmp_path / "data", tmp_path / "out")


@BUILDS
@pytest.mark.parametrize("table", ["items", "users"])
def test_version_of_a_time_that_is_none_is_a_dead_letter(tmp_path, table, build):
    """An older version stands in for it; where there is none, a user is missing."""
    shop(tmp_path / "data", "microseconds")
    file = tmp_path / "data" / table / "0.parquet"
    rows = pq.read_table(file)
    times = rows["updated_at"].cast(pa.int64()).to_numpy().copy()
    times[5] *= 1_000
    pq.write_table(rows.set_column(rows.num_columns - 1, "updated_at", pa.array(times, pa.timestamp("us"))), file)
    found = build(tmp_path / "data", tmp_path / "out", max_bad_fraction=0.1)
    (letter,) = [letter for letter in dead_letters(tmp_path / "out") if letter["table"] == table]
    assert letter["row"] == 5 and letter["reason"].startswith("`updated_at` must lie in the years 1 to 9999")
    assert not (found["price" if table == "items" else "income"] == 5).any()


def test_no_version_at_all_is_no_value():
    empty = {"item_id": np.zeros(0, np.int64), as_known.EARLIEST: np.zeros(0, np.int64)}
    empty[as_known.LATEST] = empty[as_known.EARLIEST]
    rows, known = as_known.look_up(np.array([7]), empty, "item_id", np.array([5]), np.zeros((1, 3), np.int64))
    assert rows.shape == (1, 3) and not known.any()
