import datetime
import zoneinfo

import hypothesis
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import strategies

from tfmm.data import instants

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
US = datetime.timedelta(microseconds=1)
DAY = 86_400_000_000


def read(values, kind):
    return instants.to_timestamps(pa.chunked_array([pa.array(values, kind)])).cast(pa.int64()).to_pylist()


@pytest.mark.parametrize(
    "kind, values, expected",
    [
        (pa.date32(), [1, None, -1], [DAY, None, -DAY]),
        (pa.date64(), [86_400_000, None], [DAY, None]),
        (pa.timestamp("s"), [2, None], [2_000_000, None]),
        (pa.timestamp("ms", tz="Asia/Tokyo"), [2, -2], [2_000, -2_000]),
        (pa.timestamp("us", tz="UTC"), [2, None], [2, None]),
        (pa.timestamp("ns"), [2_999, -1, None], [2, -1, None]),
        (pa.null(), [None], [None]),
    ],
    ids=str,
)
def test_every_type_of_time_is_read_as_microseconds(kind, values, expected):
    assert read(values, kind) == expected


@pytest.mark.parametrize("kind", [pa.timestamp("s"), pa.timestamp("ms"), pa.date32()], ids=str)
def test_what_microseconds_cannot_hold_does_not_wrap(kind):
    huge = 2**31 - 1 if pa.types.is_date(kind) else 1_700_000_000_000_000_000
    past, future = read([-huge, huge], kind)
    assert past < instants.FIRST_US and future > instants.LAST_US


@pytest.mark.parametrize("kind", [pa.int64(), pa.string(), pa.float64(), pa.time64("us")], ids=str)
def test_what_is_no_time_is_refused_with_the_way_out(kind):
    with pytest.raises(pa.ArrowInvalid, match=r"is no timestamp type. Write it as a date or a timestamp"):
        instants.to_timestamps(pa.chunked_array([], kind))


ZONES = ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Sao_Paulo", "Asia/Kolkata", "UTC"]
within = strategies.integers(int(1e15), int(1.8e15)) | strategies.integers(  # and close to Berlin's changes of 2024
    1_711_846_800_000_000 - 4 * 3_600_000_000, 1_711_846_800_000_000 + 4 * 3_600_000_000
)


@hypothesis.given(strategies.lists(within, min_size=1, max_size=20), strategies.sampled_from(ZONES))
def test_offsets_are_those_of_zoneinfo(times, zone):
    expected = [(EPOCH + time * US).astimezone(zoneinfo.ZoneInfo(zone)).utcoffset() // US for time in times]
    assert instants.offsets(zone, np.array(times)).tolist() == expected


@hypothesis.given(strategies.lists(within, min_size=1, max_size=20), strategies.sampled_from(ZONES))
def test_every_time_that_a_clock_shows_is_read_back(times, zone):
    walls = np.array(times) + instants.offsets(zone, np.array(times))
    earliest, latest = instants.readings(zone, walls)
    assert ((earliest == times) | (latest == times)).all() and (earliest <= latest).all()
    for reading in (earliest, latest):
        np.testing.assert_array_equal(reading + instants.offsets(zone, reading), walls)


def wall(*fields):
    return np.array([(datetime.datetime(*fields, tzinfo=datetime.timezone.utc) - EPOCH) // US])


def at(instant):
    return str(np.datetime64(int(instant[0]), "us"))[:16]


def test_an_hour_that_comes_twice_is_read_both_ways():
    earliest, latest = instants.readings("Europe/Berlin", wall(2024, 10, 27, 2, 30))
    assert (at(earliest), at(latest)) == ("2024-10-27T00:30", "2024-10-27T01:30")


def test_a_time_that_no_clock_shows_is_read_both_ways():
    earliest, latest = instants.readings("Europe/Berlin", wall(2024, 3, 31, 2, 30))
    assert (at(earliest), at(latest)) == ("2024-03-31T00:30", "2024-03-31T01:30")


def test_zones_of_types_are_known_by_name_or_offset():
    assert instants.zone_of(pa.timestamp("us", tz="Europe/Berlin")) == "Europe/Berlin"
    assert instants.zone_of(pa.timestamp("us", tz="+05:30")) == "+05:30"
    assert instants.offsets("+05:30", np.array([0])).tolist() == [19_800_000_000]
    assert instants.offsets("-03:00", np.array([0])).tolist() == [-10_800_000_000]
    for name in ("Mars/Olympus", "+25:00", "-99:99", "/etc/passwd", "America"):  # no clock is a day ahead
        assert instants.zone_of(pa.timestamp("us", tz=name)) is None
    for kind in (pa.timestamp("us"), pa.date32()):
        assert instants.zone_of(kind) is None


def test_offsets_at_the_ends_of_the_calendar_are_found():
    ends = np.array([instants.FIRST_US, instants.LAST_US])
    assert instants.offsets("Asia/Kolkata", ends)[1] == 19_800_000_000
    assert instants.offsets("Europe/Berlin", np.zeros(0, np.int64)).shape == (0,)
