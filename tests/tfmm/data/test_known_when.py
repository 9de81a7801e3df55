"""What was known when, by brute force: logs are generated with their true instants, then told coarsely.

The expected histories come from Python's datetime and zoneinfo, row by row, and from nothing of the library.
"""

import dataclasses
import datetime
import typing
import zoneinfo

import apache_beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from tfmm import preprocessing
from tfmm.config import DataConfig, PairsConfig
from tfmm.data import beam, checks, examples, join, pairs, schema, shards, times
from tfmm.features import FeatureSet

UTC = datetime.timezone.utc
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=UTC)
US = datetime.timedelta(microseconds=1)
SECOND, MINUTE, HOUR, DAY = 10**6, 60 * 10**6, 3_600 * 10**6, 86_400 * 10**6
BEHAVIOR = 1_000_000_000  # item ids of behaviors begin here, so that each names its row
# Clocks change: Lord Howe (by half an hour) on 2024-04-06 and 2024-10-05, Berlin on 2024-10-27, New York on 2024-11-03.
CHANGES = [
    int((datetime.datetime(*when, tzinfo=UTC) - EPOCH) / US)
    for when in ((2024, 3, 10, 7), (2024, 3, 31, 1), (2024, 4, 6, 15), (2024, 10, 5, 15, 30), (2024, 10, 27, 1))
    + ((2024, 11, 3, 6),)
]


@dataclasses.dataclass
class Told:
    """A column as it is stored, and the instants, [n] microseconds, between which each row may have happened."""

    column: pa.Array
    starts: np.ndarray
    ends: np.ndarray  # the first instant after


def utc(instant_us):
    return EPOCH + int(instant_us) * US


def us(aware):
    return (aware - EPOCH) // US


def shown_at(wall, zone):
    """All instants at which clocks of a zone show a naive time."""
    found = [us(wall.replace(tzinfo=zone, fold=fold).astimezone(UTC)) for fold in (0, 1)]
    return [instant for instant in found if utc(instant).astimezone(zone).replace(tzinfo=None) == wall]


def floor(wall, unit_us):
    since = wall - datetime.datetime(1970, 1, 1)
    return wall - since % datetime.timedelta(microseconds=unit_us)


def in_utc(kind, unit_us):
    def tell(instants):
        starts = instants // unit_us * unit_us
        return Told(pa.array(starts, pa.timestamp("us")).cast(kind), starts, starts + unit_us)

    return tell


def by_clock(name, unit_us, store):
    """Tells what clocks of a zone showed, down to a unit; `store`: from the naive times and the first instants."""
    zone = zoneinfo.ZoneInfo(name)

    def tell(instants):
        walls = [floor(utc(i).astimezone(zone).replace(tzinfo=None), unit_us) for i in instants]
        starts = [min(shown_at(wall, zone)) for wall in walls]
        ends = [max(shown_at(wall + (unit_us - 1) * US, zone)) + 1 for wall in walls]
        return Told(store(walls, starts), np.array(starts), np.array(ends))

    return tell


def naive(walls, _):
    return pa.array(walls, pa.timestamp("us"))


def dates(walls, _):
    return pa.array([wall.date() for wall in walls], pa.date32())


def aware(tz):
    return lambda _, starts: pa.array(starts, pa.timestamp("us", tz=tz))


def exact_in(tz):
    return lambda instants: Told(pa.array(instants, pa.timestamp("us", tz=tz)), instants, instants + 1)


def until_the_later_begin(tell, later):
    """Days of an untold zone: they may last until the later of the times of day at which its days begin."""

    def told(instants):
        found = tell(instants)
        return dataclasses.replace(found, ends=found.starts + DAY + (later - found.starts) % DAY)

    return told


def in_halves(first, second):
    """Tells half of the rows one way and half the other; a column of two types is stored in two parts."""

    def tell(instants):
        half = len(instants) // 2
        told = [first(instants[:half]), second(instants[half:])]
        starts, ends = (np.concatenate([getattr(t, side) for t in told]) for side in ("starts", "ends"))
        return Told([t.column for t in told], starts, ends)

    return tell


def in_weeks(instants):
    """Weeks that begin on Thursdays, as 1970 did."""
    starts = instants // (7 * DAY) * (7 * DAY)
    return Told(pa.array(starts, pa.timestamp("us")).cast(pa.date32()), starts, starts + 7 * DAY)


def in_months(instants):
    months = [(utc(i).year, utc(i).month) for i in instants]
    starts = np.array([us(datetime.datetime(year, month, 1, tzinfo=UTC)) for year, month in months])
    ends = [us(datetime.datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC)) for year, month in months]
    return Told(pa.array(starts, pa.timestamp("us")), starts, np.array(ends))


class Kind(typing.NamedTuple):
    behaviors: typing.Any  # None: histories are the clicked impressions
    impressions: typing.Any
    time_zone: str = "UTC"


MICROSECONDS = in_utc(pa.timestamp("us"), 1)
NEW_YORK_DAYS = by_clock("America/New_York", DAY, aware("UTC"))
KINDS = {
    "date32": Kind(in_utc(pa.date32(), DAY), MICROSECONDS),
    "date64": Kind(in_utc(pa.date64(), DAY), in_utc(pa.timestamp("ms"), 1_000)),
    "dates on both sides": Kind(in_utc(pa.date32(), DAY), in_utc(pa.date32(), DAY)),
    "impressions by date": Kind(MICROSECONDS, in_utc(pa.date32(), DAY)),
    "timestamp[s]": Kind(in_utc(pa.timestamp("s"), SECOND), MICROSECONDS),
    "timestamp[ms]": Kind(in_utc(pa.timestamp("ms"), 1_000), in_utc(pa.timestamp("ns"), 1)),
    "timestamp[us]": Kind(MICROSECONDS, MICROSECONDS),
    "timestamp[ns]": Kind(in_utc(pa.timestamp("ns"), 1), in_utc(pa.timestamp("s"), SECOND)),
    "whole hours": Kind(in_utc(pa.timestamp("us"), HOUR), MICROSECONDS),
    "whole minutes, clicked impressions": Kind(None, in_utc(pa.timestamp("us"), MINUTE)),
    "naive days": Kind(in_utc(pa.timestamp("us"), DAY), in_utc(pa.timestamp("us"), MINUTE)),
    "naive local": Kind(by_clock("Europe/Berlin", 1, naive), by_clock("Europe/Berlin", 1, naive), "Europe/Berlin"),
    "local hours": Kind(by_clock("Europe/Berlin", HOUR, naive), exact_in("UTC"), "Europe/Berlin"),
    "local dates": Kind(by_clock("Europe/Berlin", DAY, dates), exact_in("UTC"), "Europe/Berlin"),
    "local dates on both sides": Kind(
        by_clock("America/New_York", DAY, dates), by_clock("America/New_York", DAY, dates), "America/New_York"
    ),
    "zoned days": Kind(by_clock("America/New_York", DAY, aware("America/New_York")), exact_in("Asia/Tokyo")),
    "zoned hours": Kind(by_clock("Asia/Kolkata", HOUR, aware("Asia/Kolkata")), exact_in("America/New_York")),
    "zoned hours in UTC": Kind(by_clock("Asia/Kolkata", HOUR, aware("UTC")), MICROSECONDS),
    "zoned half-hour change": Kind(exact_in("Australia/Lord_Howe"), exact_in("+05:45")),
    "naive half-hour change": Kind(
        by_clock("Australia/Lord_Howe", MINUTE, naive), exact_in("UTC"), "Australia/Lord_Howe"
    ),
    "days of an untold zone": Kind(until_the_later_begin(NEW_YORK_DAYS, 5 * HOUR), MICROSECONDS),
    "days of an untold zone about midnight": Kind(
        until_the_later_begin(by_clock("Europe/London", DAY, aware("UTC")), 0), MICROSECONDS
    ),
    "days of a told zone, stored in UTC": Kind(NEW_YORK_DAYS, exact_in("UTC"), "America/New_York"),
    "dates and timestamps in parts": Kind(in_halves(in_utc(pa.date32(), DAY), MICROSECONDS), MICROSECONDS),
    "seconds and microseconds in parts": Kind(
        in_halves(in_utc(pa.timestamp("s"), SECOND), exact_in("UTC")), MICROSECONDS
    ),
    "quarters of an hour": Kind(by_clock("Asia/Kathmandu", 15 * MINUTE, naive), exact_in("UTC"), "Asia/Kathmandu"),
    "weeks": Kind(in_weeks, MICROSECONDS),
    "months": Kind(in_months, MICROSECONDS),
    "days among seconds": Kind(
        in_halves(in_utc(pa.timestamp("us"), DAY), in_utc(pa.timestamp("us"), SECOND)), MICROSECONDS
    ),
}


@dataclasses.dataclass
class Logs:
    """n impressions and m behaviors: users, and true instants in microseconds."""

    users: np.ndarray
    times: np.ndarray
    labels: np.ndarray
    behavior_users: np.ndarray
    behavior_times: np.ndarray


def generate(num_impressions, seed=0):
    """Draws logs of 20 impressions per user; every click follows its impression by some seconds, or microseconds."""
    rng = np.random.default_rng(seed)
    users = 1 + np.arange(num_impressions) % max(1, num_impressions // 20)
    about = rng.choice(CHANGES, num_impressions)
    near = rng.integers(-5 * HOUR, 5 * HOUR, num_impressions)
    far = rng.integers(-6 * DAY, 6 * DAY, num_impressions)
    shown = about + np.where(rng.random(num_impressions) < 0.3, near, far)
    labels = rng.integers(0, 2, num_impressions)
    clicked = np.flatnonzero(labels)
    delays = np.where(rng.random(len(clicked)) < 0.5, rng.integers(1, 30 * SECOND, len(clicked)), 1)
    shuffled = rng.permutation(len(clicked))
    return Logs(users, shown, labels, users[clicked][shuffled], (shown[clicked] + delays)[shuffled])


def write(folder, kind, logs):
    """Writes the tables; returns what is told of impressions and of behaviors, and whose the behaviors are."""
    told = kind.impressions(logs.times)
    ids = 1 + np.arange(len(logs.times))
    write_table(folder, "items", {"item_id": ids, "title": [f"title {i}" for i in ids]})
    write_table(folder, "impressions", {"user_id": logs.users, "item_id": ids, "label": logs.labels}, told.column)
    if kind.behaviors is None:
        rows = np.flatnonzero(logs.labels)
        acted = Told(told.column.take(pa.array(rows)), told.starts[rows], told.ends[rows])
        return told, acted, logs.users[rows], logs.times[rows], ids[rows]
    acted = kind.behaviors(logs.behavior_times)
    items = BEHAVIOR + np.arange(len(logs.behavior_times))
    columns = {"user_id": logs.behavior_users, "item_id": items, "action": ["click"] * len(items)}
    write_table(folder, "behaviors", columns, acted.column)
    return told, acted, logs.behavior_users, logs.behavior_times, items


def write_table(folder, name, columns, column=None):
    """Writes one file, or one part per Arrow array of times."""
    table, parts, first = pa.table(columns), column if isinstance(column, list) else [column], 0
    (folder / name).mkdir(parents=True)
    for number, part in enumerate(parts):
        rows = table.slice(first, None if part is None else len(part))
        rows = rows if part is None else rows.append_column("timestamp", part)
        pq.write_table(rows, folder / name / f"{number}.parquet", row_group_size=400)
        first += rows.num_rows


def features_of(config):
    return FeatureSet().resolved(config.max_behaviors, config.min_id_count)


def by_functions(folder, config, _):
    """Examples by the functions that the job wraps, without the job."""
    seen = times.resolutions(folder, config.time_zone)
    columns = {}
    for name in seen:
        table = schema.read_table(folder, name, ["user_id", "item_id"])
        earliest, latest = times.read_bounds(folder, name, seen[name])
        columns[name] = {
            "user_id": table["user_id"].to_numpy(),
            "item_id": table["item_id"].to_numpy(),
            "timestamp": earliest,
            examples.LATEST: latest,
        }
    shown = columns["impressions"]
    labels = schema.read_table(folder, "impressions", ["label"])["label"].to_numpy()
    behaviors = columns.get("behaviors") or {name: values[labels == 1] for name, values in shown.items()}
    catalog = {name: np.zeros(0, np.int64) for name in ("item_id", "category")}
    nobody = {"user_id": np.zeros(0, np.int64)}
    return examples.build({**shown, "label": labels}, behaviors, catalog, nobody, features_of(config))


def by_job(folder, config, output_dir):
    """Examples as the Beam job writes them, both splits."""
    with apache_beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner"])) as root:
        beam.write(root, folder, config, features_of(config), output_dir, prefix="{split}")
    spec = preprocessing.raw_spec(features_of(config))
    parts = [examples.read_columns(str(output_dir / f"{split}-*.gz"), spec) for split in ("train", "eval")]
    return {name: np.concatenate([part[name] for part in parts]) for name in spec}


def by_join(folder, config, output_dir):
    """Examples as they are written without TFX, both splits."""
    join.write_examples(folder, config, features_of(config), output_dir)
    parts = [shards.read_columns(str(output_dir / f"{split}-*")) for split in ("train", "eval")]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@pytest.mark.parametrize(
    "build, num_impressions",
    [
        pytest.param(by_functions, 1_000, id="functions"),
        pytest.param(by_join, 1_000, id="join"),
        pytest.param(by_job, 5_000, id="job", marks=pytest.mark.slow),  # 130,000 rows over all kinds
    ],
)
@pytest.mark.parametrize("kind", list(KINDS.values()), ids=list(KINDS))
def test_a_history_holds_all_that_was_known_and_nothing_that_was_not(tmp_path, kind, build, num_impressions):
    logs = generate(num_impressions)
    shown, acted, act_users, act_times, act_items = write(tmp_path / "data", kind, logs)
    assert (shown.starts <= logs.times).all() and (logs.times < shown.ends).all()
    assert (acted.starts <= act_times).all() and (act_times < acted.ends).all()
    config = DataConfig(max_behaviors=20, time_zone=kind.time_zone)
    built = build(tmp_path / "data", config, tmp_path / "out")
    assert sorted(built["item_id"].tolist()) == list(range(1, num_impressions + 1))
    true_time_of = dict(zip(act_items.tolist(), act_times.tolist()))
    own = {user: np.flatnonzero(act_users == user) for user in np.unique(act_users).tolist()}
    for item, user, history in zip(built["item_id"], built["user_id"].tolist(), built["behavior_item_ids"]):
        row = item - 1
        found = set(history[history != 0].tolist())
        assert all(true_time_of[act] < logs.times[row] for act in found)
        mine = own.get(user, np.zeros(0, int))
        assert found == set(act_items[mine[acted.ends[mine] <= shown.starts[row]]].tolist())


@pytest.mark.parametrize("kind", ["date32", "naive local", "days among seconds"])
def test_the_order_of_late_rows_is_irrelevant(tmp_path, kind):
    """Rows that reach the log late, in other files, change nothing but where they stand."""
    kind = KINDS[kind]
    logs = generate(1_000)
    write(tmp_path / "as_given", kind, logs)
    for name in ("items", "impressions", "behaviors"):
        table = pa.concat_tables([pq.read_table(path) for path in sorted((tmp_path / "as_given" / name).iterdir())])
        table = table.take(pa.array(np.random.default_rng(1).permutation(table.num_rows)))
        (tmp_path / "late" / name).mkdir(parents=True)
        for number, (first, last) in enumerate(((0, 1), (1, 300), (300, None))):
            pq.write_table(table.slice(first, last and last - first), tmp_path / "late" / name / f"{number}.parquet")
    config = DataConfig(max_behaviors=5, time_zone=kind.time_zone)
    given, late = (by_functions(tmp_path / folder, config, None) for folder in ("as_given", "late"))
    for name in given:
        np.testing.assert_array_equal(given[name], late[name])


@pytest.mark.parametrize(
    "kind", ["date32", "whole hours", "whole minutes, clicked impressions", "local dates", "naive local"]
)
@pytest.mark.parametrize("has_split", [False, True])
def test_pairs_hold_only_what_was_over_before_the_eval_split(tmp_path, kind, has_split):
    kind = KINDS[kind]
    logs = generate(2_000)
    shown, acted, act_users, act_times, act_items = write(tmp_path / "data", kind, logs)
    table = pa.concat_tables([pq.read_table(path) for path in (tmp_path / "data/impressions").iterdir()])
    in_eval = shown.starts >= np.sort(shown.starts)[1_600]
    if has_split:
        in_eval = logs.times >= np.sort(logs.times)[1_500]
        table = table.append_column("split", pa.array(np.where(in_eval, "eval", "train")))
        pq.write_table(table, tmp_path / "data/impressions/0.parquet")
    if kind.behaviors is not None:  # of items that have a title
        log = pq.read_table(tmp_path / "data/behaviors/0.parquet")
        act_items = 1 + np.arange(log.num_rows)
        log = log.set_column(log.column_names.index("item_id"), "item_id", pa.array(act_items))
        pq.write_table(log, tmp_path / "data/behaviors/0.parquet")
    config = DataConfig(time_zone=kind.time_zone)
    pairs.build_pairs(tmp_path / "data", PairsConfig(heldout_fraction=0.5), tmp_path / "pairs", config)
    true_time_of = dict(zip(act_items.tolist(), act_times.tolist()))
    first_eval, known = logs.times[in_eval].min(), acted.ends <= shown.starts[in_eval].min()
    used = set()
    for split in ("train", "heldout"):
        found = pq.read_table(tmp_path / "pairs" / "text" / f"{split}.parquet")
        used |= {int(title.split()[1]) for column in ("query", "positive") for title in found[column].to_pylist()}
    assert used and all(true_time_of[item] < first_eval for item in used)
    assert used <= set(act_items[known].tolist())
    of_many = np.isin(act_users, np.flatnonzero(np.bincount(act_users[known]) > 1))
    assert len(used) > 0.7 * (known & of_many).sum()  # a pair whose query alone is held out is dropped


def test_behaviors_by_date_keep_a_click_out_of_its_own_history(small_marketplace, tmp_path):
    for name in ("items", "impressions", "behaviors"):
        table = schema.read_table(small_marketplace, name)
        if name == "behaviors":
            place = table.column_names.index("timestamp")
            table = table.set_column(place, "timestamp", table["timestamp"].cast(pa.date32(), safe=False))
            days = table["timestamp"].cast(pa.int32()).to_numpy()
            acts = {"user": table["user_id"].to_numpy(), "item": table["item_id"].to_numpy(), "day": days}
        pq.write_table(table, tmp_path / f"{name}.parquet")
    built = by_job(tmp_path, DataConfig(max_behaviors=200), tmp_path / "out")
    (note,) = [note for note in checks.check(tmp_path).notes if note.startswith("behaviors")]
    assert note.startswith("behaviors.timestamp is known to the day: a behavior counts from the next midnight.")
    first_day = {}
    for user, item, day in sorted(zip(*(values.tolist() for values in acts.values())), key=lambda act: -act[2]):
        first_day[user, item] = day
    days = (built["timestamp"] // DAY).tolist()
    keys = zip(built["user_id"].tolist(), built["item_id"].tolist())
    known = np.array([first_day.get(key, 10**9) < day for key, day in zip(keys, days)])
    stands = (built["behavior_item_ids"] == built["item_id"][:, None]).any(axis=1)
    assert (stands & ~known).sum() == 0
    clicked = built["label"] == 1
    assert stands[clicked].mean() < 0.5 and (built["behavior_item_ids"] != 0).any(axis=1).mean() > 0.5
