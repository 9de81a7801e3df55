"""Mutated data folders through `data check`: it ends, and says what is wrong."""

import datetime
import gc
import random
import shutil

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from tfmm.data import checks, layout

PNG = tf.io.encode_png(np.zeros((4, 4, 3), np.uint8)).numpy()
START = datetime.datetime(2024, 3, 4)


def originals():
    times = [START + datetime.timedelta(seconds=7.5 * n) for n in range(12)]
    users, items = [n % 3 + 1 for n in range(12)], [n % 4 + 1 for n in range(12)]
    return {
        "items": pa.table({
            "item_id": [1, 2, 3, 4], "title": ["a", "b", None, "d"], "image": [PNG, None, PNG, PNG],
            "vector": [[1.0, 0.5]] * 4, "category": ["x", "y", "x", None], "created_at": times[:4],
        }),
        "impressions": pa.table({"user_id": users, "item_id": items, "timestamp": times, "label": [0, 1] * 6}),
        "behaviors": pa.table({
            "user_id": users, "item_id": items, "timestamp": times, "action": ["click"] * 12,
            "order_id": [1] * 12, "order_line": list(range(12)),
        }),
        "searches": pa.table({
            "search_id": list(range(1, 13)), "user_id": users, "timestamp": times, "query_text": ["q"] * 12,
            "query_image": [PNG] * 12,
        }),
    }  # fmt: skip


TYPES = [
    pa.string(), pa.large_string(), pa.binary(), pa.int8(), pa.uint64(), pa.float64(), pa.bool_(), pa.date32(),
    pa.date64(), pa.null(), pa.timestamp("s"), pa.timestamp("ns"), pa.timestamp("us", "Europe/Berlin"),
    pa.timestamp("ms", "No/Where"), pa.time64("us"), pa.duration("us"), pa.decimal128(30, 3), pa.list_(pa.int64()),
    pa.list_(pa.float64()), pa.list_(pa.string()), pa.list_(pa.float32(), 2), pa.list_(pa.list_(pa.float32())),
    pa.struct([("a", pa.int64())]), pa.map_(pa.string(), pa.int64()), pa.dictionary(pa.int32(), pa.string()),
    pa.dictionary(pa.int8(), pa.int64()),
]  # fmt: skip
VALUES = [
    None, 0, 1, -1, 2, 255, -(1 << 63), (1 << 63) - 1, (1 << 64) - 1, 0.5, float("nan"), float("inf"), True, "", "a",
    "\0", "1", "click", "train", b"", b"\xff", PNG, PNG[:30], [], [1.0], [None, 1.0], [float("nan"), 1.0], [1.0, 2.0],
    [["a"]],
    {"a": 1}, [("k", 1)], datetime.date(1, 1, 1), datetime.date(9999, 12, 31), START, datetime.datetime.max,
    datetime.time(3), datetime.timedelta(days=5), 1_709_510_400_000_000,
]  # fmt: skip


def any_column(rng, count):
    kind = rng.choice(TYPES)
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    kept = []
    for value in rng.sample(VALUES, len(VALUES)):
        try:
            pa.array([value], inner)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            continue
        kept.append(value)
    try:
        values = pa.array([rng.choice(kept) for _ in range(count)], inner)
    except (pa.ArrowException, TypeError):  # such as dicts and pairs, which are maps each, not together
        values = pa.array([kept[0]] * count, inner)
    return values.dictionary_encode().cast(kind) if inner is not kind else values


def change_table(table, rng):
    """Gives a column another type and other values, a row other ones, or takes or adds a column."""
    place = rng.randrange(table.num_columns)
    name = table.column_names[place]
    act = rng.randrange(7)
    if act <= 1:
        return table.set_column(place, name, any_column(rng, table.num_rows))
    if act == 2:
        return table.remove_column(place)
    if act == 3:
        other = rng.choice([name, "split", "query_text", "image", "x\0y", ""])
        return table.append_column(other, [any_column(rng, table.num_rows)])
    if act == 4:
        return table.slice(0, rng.choice([0, 1, 3]))
    if act == 5:
        rows = [rng.randrange(table.num_rows) for _ in range(rng.randrange(30))] if table.num_rows else []
        return table.take(pa.array(rows, pa.int64()))
    values = table.column(place).to_pylist()
    if values:
        values[rng.randrange(len(values))] = rng.choice(VALUES)
    try:
        return table.set_column(place, name, pa.array(values, table.schema.field(place).type))
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return table


def change_files(folder, rng):
    """Cuts, changes, moves or doubles a file, as a broken copy or another tool leaves it."""
    files = sorted(path for path in folder.rglob("*.parquet") if path.is_file())
    if not files:
        return
    file, act = rng.choice(files), rng.randrange(8)
    data = bytearray(file.read_bytes())
    if act <= 1 and data:
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        file.write_bytes(data)
    elif act == 2:
        file.write_bytes(data[: rng.randrange(len(data) + 1)])
    elif act == 3:
        other = folder / file.stem / rng.choice(["part-0.parquet", "dt=2024-01-01/part.parquet", "label=1/part.parquet",
                                                 "._p.parquet", "user_id=x/p.parquet"])  # fmt: skip
        other.parent.mkdir(parents=True, exist_ok=True)
        (shutil.move if rng.random() < 0.7 else shutil.copy)(file, other)
    elif act == 4:
        names = ["_SUCCESS", ".items.parquet.crc", "._items.parquet", "notes.txt", "users.parquet", "items", "a/b"]
        name = rng.choice(names)
        (folder / name).parent.mkdir(exist_ok=True)
        if not (folder / name).exists():
            (folder / name).write_bytes(data[:100])
    elif act == 5:
        file.unlink()
    elif act == 6 and not (folder / "loop").exists():
        (folder / "loop").symlink_to(folder, target_is_directory=True)
    elif not (file.parent / "link.parquet").is_symlink():
        (file.parent / "link.parquet").symlink_to(rng.choice([file, folder / "nowhere"]))


def check_one(folder, seed):
    """Writes a mutated folder and checks it; returns whether it was found sound."""
    rng, tables = random.Random(seed), originals()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for _ in range(rng.randint(0, 3)):
        name = rng.choice(list(tables))
        if tables[name].num_columns:
            tables[name] = change_table(tables[name], rng)
    for name, table in tables.items():
        try:
            pq.write_table(table, folder / f"{name}.parquet", row_group_size=rng.choice([1, 5, 100]))
        except (pa.ArrowException, NotImplementedError):  # Parquet has no such type
            (folder / f"{name}.parquet").unlink(missing_ok=True)
    for _ in range(rng.randint(0, 2)):
        change_files(folder, rng)
    report = checks.check(folder)
    for fault in report.faults:
        assert fault.table and fault.rule and fault.count > 0, fault
        assert "Traceback" not in str(fault)
    return report.ok


@pytest.mark.parametrize("first", range(0, 60, 20))
def test_mutated_folders_are_checked_to_the_end(tmp_path, first):
    sound = [check_one(tmp_path / "data", seed) for seed in range(first, first + 20)]
    assert not all(sound)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_thousand_mutated_folders_leave_no_memory_behind(tmp_path):
    process, levels, sound = psutil.Process(), [], 0
    for seed in range(1000, 2000):
        sound += check_one(tmp_path / "data", seed)
        if seed % 25 == 0:
            gc.collect()
            levels.append(process.memory_info().rss)
    assert 50 < sound < 950
    assert np.median(levels[-6:]) <= 1.05 * np.median(levels[6:12])


def test_a_folder_with_nothing_in_it_is_told(tmp_path):
    assert {fault.table for fault in checks.check(tmp_path).faults} >= {"items", "impressions"}
    assert layout.unknown_files(tmp_path, ()) == []
