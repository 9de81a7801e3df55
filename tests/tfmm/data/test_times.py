import datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tfmm.data import instants, times

SECOND, MINUTE, HOUR, DAY = 10**6, 60 * 10**6, 3_600 * 10**6, 86_400 * 10**6
RNG = np.random.default_rng(0)
FINE = RNG.integers(0, 400 * DAY, 1_000)  # microseconds


def see(tmp_path, *parts, name="behaviors", time_zone="UTC"):
    """Writes one part per Arrow array of times; returns what is seen of the table."""
    (tmp_path / name).mkdir(exist_ok=True)
    for number, part in enumerate(parts):
        table = pa.table({times.COLUMNS[name]: part})
        pq.write_table(table, tmp_path / name / f"{number}.parquet", row_group_size=100)
    return times.resolutions(tmp_path, time_zone, [name])[name]


def stamps(values, unit="us", tz=None):
    return pa.array(values, pa.timestamp("us", tz=tz)).cast(pa.timestamp(unit, tz=tz))


@pytest.mark.parametrize(
    "unit, size", list(zip(times.UNITS, (1, 1_000, SECOND, MINUTE, HOUR, DAY), strict=True)), ids=times.UNITS
)
def test_the_unit_is_seen_from_the_values_whatever_the_type(tmp_path, unit, size):
    seen = see(tmp_path, stamps(FINE // size * size))
    assert (times.UNITS[seen.unit], seen.begins_us, seen.coarser) == (unit, (0,), ())


def test_the_unit_is_that_of_the_whole_table_and_not_of_a_part(tmp_path):
    days = FINE // DAY * DAY
    assert see(tmp_path, stamps(days), stamps(FINE // HOUR * HOUR + MINUTE)).unit == times.UNITS.index("minute")


def test_dates_are_days_and_nulls_say_nothing(tmp_path):
    assert see(tmp_path, pa.array([1, 5, None], pa.date32())).unit == times.DAY
    assert see(tmp_path, pa.nulls(3)) == times.Resolution("UTC")
    assert see(tmp_path, pa.array([], pa.date32())) == times.Resolution("UTC")
    assert times.resolutions(tmp_path) == {"behaviors": times.Resolution("UTC")}  # there are no impressions


def test_a_column_that_stores_few_values_once_is_read(tmp_path):
    assert see(tmp_path, pa.array([0, DAY, DAY], pa.timestamp("us")).dictionary_encode()).unit == times.DAY


def test_units_are_whole_on_the_clocks_of_the_zone(tmp_path):
    days = FINE // DAY * DAY - 19_800 * SECOND  # midnights in India
    assert see(tmp_path, stamps(days, tz="Asia/Kolkata")) == times.Resolution("UTC", times.DAY)
    assert see(tmp_path, stamps(days, tz="UTC"), time_zone="Asia/Kolkata") == times.Resolution(
        "Asia/Kolkata", times.DAY
    )
    assert see(tmp_path, stamps(days)) == times.Resolution("UTC", times.DAY, (66_600 * SECOND,))  # untold: 18:30


def test_days_of_an_untold_zone_may_begin_at_two_times_an_hour_apart(tmp_path):
    days = FINE // DAY * DAY
    summer = 5 * HOUR - np.where(days < 200 * DAY, HOUR, 0)
    assert see(tmp_path, stamps(days + summer)).begins_us == (4 * HOUR, 5 * HOUR)
    assert see(tmp_path, stamps(days + summer - 5 * HOUR)).begins_us == (23 * HOUR, 0)
    assert see(tmp_path, stamps(days + 2 * summer)).unit == times.HOUR  # two hours apart
    assert see(tmp_path, stamps(days + summer + MINUTE)).unit == times.UNITS.index("minute")  # no zone's
    assert see(tmp_path, stamps([3 * HOUR, 3 * HOUR, DAY + 3 * HOUR])).unit == times.HOUR  # too few to tell


def test_days_among_seconds_are_seen_and_whole_minutes_by_chance_are_not(tmp_path):
    seconds = FINE // SECOND * SECOND
    seen = see(tmp_path, stamps(seconds), stamps(FINE[:50] // DAY * DAY))
    assert seen.unit == times.SECOND and times.DAY in seen.coarser
    (tmp_path / "seconds").mkdir()
    assert see(tmp_path / "seconds", stamps(seconds)).coarser == ()


MONTHS = np.arange("2023-01", "2025-01", dtype="datetime64[M]").astype("datetime64[us]").astype(np.int64)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (FINE // (10 * SECOND) * 10 * SECOND, "10 seconds"),
        (FINE // (15 * MINUTE) * 15 * MINUTE, "15 minutes"),
        (FINE // (12 * HOUR) * 12 * HOUR + 5 * HOUR, "12 hours"),  # of an untold zone
        (FINE // (7 * DAY) * 7 * DAY + 4 * DAY, "week"),  # from Monday on
        (MONTHS, "month"),
        (MONTHS[::3], "quarter"),
        (MONTHS[:3], "day"),  # so few may be chance
        (FINE[:5] // DAY * DAY, "day"),
        (np.append(FINE // (11 * SECOND) * 11 * SECOND, 7 * SECOND), "second"),
        (np.append(MONTHS, 31 * DAY * 365), "day"),
    ],
    ids=str,
)
def test_times_at_every_so_many_units_alone_are_told_to_these(tmp_path, values, told):
    seen = see(tmp_path, stamps(values[::2]), stamps(values[1::2]))
    assert (seen.told, seen.coarser) == (told, ())


def test_weeks_are_whole_on_the_clocks_of_the_zone(tmp_path):
    mondays = np.arange("2024-01-01", "2024-12-30", 7, dtype="datetime64[D]")
    seen = see(tmp_path, pa.array(mondays, pa.date32()), time_zone="Europe/Berlin")
    assert (seen.told, seen.unit, seen.begins_us) == ("week", times.DAY, (0,))


def test_a_value_outside_the_calendar_does_not_hide_the_unit(tmp_path):
    assert see(tmp_path, stamps(np.append(FINE // DAY * DAY, 2**62 + 1))).unit == times.DAY


def bounds(column, **seen):
    earliest, latest = times.bounds(pa.chunked_array([column]), times.Resolution(**{"time_zone": "UTC", **seen}))
    return earliest.tolist(), latest.tolist()


def test_a_time_stands_for_all_of_its_unit():
    assert bounds(pa.array([3, None], pa.date32())) == ([3 * DAY, instants.NULL], [4 * DAY - 1, instants.NULL])
    assert bounds(stamps([5 * SECOND], "s")) == ([5 * SECOND], [6 * SECOND - 1])
    assert bounds(stamps([5])) == ([5], [5])
    assert bounds(stamps([0, MINUTE]), unit=3) == ([0, MINUTE], [MINUTE - 1, 2 * MINUTE - 1])
    assert bounds(stamps([0, HOUR + 1]), coarser=(times.DAY,)) == ([0, HOUR + 1], [DAY - 1, HOUR + 1])


def test_a_step_ends_where_the_next_begins():
    quarter = {"unit": times.UNITS.index("minute"), "step_us": 15 * MINUTE}
    assert bounds(stamps([0, 15 * MINUTE]), **quarter) == ([0, 15 * MINUTE], [15 * MINUTE - 1, 30 * MINUTE - 1])
    assert bounds(stamps([0], tz="Asia/Kolkata"), **quarter) == ([0], [15 * MINUTE - 1])
    starts = [int(month) for month in MONTHS[:4]]
    assert bounds(stamps(starts[:3]), unit=times.DAY, months=1) == (starts[:3], [month - 1 for month in starts[1:]])
    assert bounds(stamps(starts[:1]), unit=times.DAY, months=3)[1] == [starts[3] - 1]
    (earliest,), (latest,) = bounds(  # with the hour that October has more
        pa.array([datetime.date(2024, 10, 1)], pa.date32()), unit=times.DAY, months=1, time_zone="Europe/Berlin"
    )
    assert latest + 1 - earliest == 31 * DAY + HOUR
    week = {"unit": times.DAY, "step_us": 7 * DAY, "coarser": ()}
    assert bounds(pa.array([None, 4], pa.date32()), **week) == ([instants.NULL, 4 * DAY], [instants.NULL, 11 * DAY - 1])


def test_times_from_when_on_rows_hold_are_those_of_the_day(tmp_path):
    prices = pa.table({"updated_at": stamps([int(month) for month in MONTHS[:8]])})
    pq.write_table(prices, tmp_path / "items.parquet")
    column = times.VERSIONS["items"]
    seen = times.resolutions(tmp_path, "UTC", [column])[column]
    assert (seen.unit, seen.months, seen.step_us) == (times.DAY, 0, 0)
    assert see(tmp_path, prices["updated_at"]).months == 1  # behaviors of a month are told at its end


@pytest.mark.parametrize(
    "date, begins, hours",
    [
        ("2024-10-27", "2024-10-26T22:00", 25),
        ("2024-03-31", "2024-03-30T23:00", 23),
        ("2024-06-01", "2024-05-31T22:00", 24),
    ],
)
def test_a_local_day_has_its_true_length(date, begins, hours):
    (earliest,), (latest,) = bounds(
        pa.array([datetime.date.fromisoformat(date)], pa.date32()), time_zone="Europe/Berlin"
    )
    assert str(np.datetime64(earliest, "us"))[:16] == begins and latest + 1 - earliest == hours * HOUR


def test_a_day_without_a_midnight_begins_where_the_one_before_ends():
    days = pa.array(np.arange("2018-11-01", "2018-11-08", dtype="datetime64[D]"), pa.date32())
    earliest, latest = (np.array(side) for side in bounds(days, time_zone="America/Sao_Paulo"))
    np.testing.assert_array_equal(earliest[1:], latest[:-1] + 1)
    assert ((latest + 1 - earliest) // HOUR).tolist() == [24, 24, 24, 23, 24, 24, 24]


def test_days_that_begin_at_two_times_end_at_the_later():
    seen = {"unit": times.DAY, "begins_us": (4 * HOUR, 5 * HOUR)}
    assert bounds(stamps([4 * HOUR, DAY + 5 * HOUR]), **seen)[1] == [DAY + 5 * HOUR - 1, 2 * DAY + 5 * HOUR - 1]
    seen["begins_us"] = (23 * HOUR, 0)
    assert bounds(stamps([23 * HOUR, 2 * DAY]), **seen)[1] == [2 * DAY - 1, 3 * DAY - 1]


def note(**seen):
    defaults = {"time_zone": "UTC"}
    return times.notes({name: times.Resolution(**{**defaults, **of}) for name, of in seen.items()})


def test_times_to_the_second_on_both_sides_need_no_word():
    assert note(impressions={"unit": 2}, behaviors={"unit": 2}, searches={"unit": 0}, items={}) == ()


def test_what_follows_from_a_coarse_unit_is_said():
    shown, acted, item = note(impressions={"unit": 0}, behaviors={"unit": 5}, items={"unit": 4})
    assert (
        shown == "impressions.timestamp is known to the microsecond: an impression sees what was known when its "
        "microsecond began."
    )
    assert acted == (
        "behaviors.timestamp is known to the day: a behavior counts from the next midnight. Days are those of UTC "
        "(`data.time_zone`), where the column's type names no zone."
    )
    assert item == "items.created_at is known to the hour."
    (clicked,) = note(impressions={"unit": 3})
    assert clicked.endswith("when its minute began, its click counts from the end of its minute.")


def test_what_follows_from_a_step_is_said():
    (acted,) = note(behaviors={"unit": times.DAY, "months": 1})
    assert acted.startswith("behaviors.timestamp is known to the month: a behavior counts from the end of its month.")
    (acted,) = note(behaviors={"unit": times.SECOND, "step_us": 10 * SECOND})
    assert acted.endswith("is known to the 10 seconds: a behavior counts from the end of its 10 seconds.")


def test_days_of_another_zone_and_days_among_seconds_are_said():
    (acted,) = note(behaviors={"unit": 5, "begins_us": (4 * HOUR, 5 * HOUR)})
    assert "Each day begins at 04:00:00 and 05:00:00, as in another zone than UTC: `data.time_zone` names it." in acted
    (acted,) = note(behaviors={"unit": 2, "coarser": (5,)})
    assert "stand at a whole day: these are known to the day: a behavior counts from the next midnight." in acted


def test_a_column_of_another_type_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"'timestamp' of table 'behaviors' must be timestamp\[us\].*is no timestamp"):
        see(tmp_path, pa.array([1], pa.int64()))
