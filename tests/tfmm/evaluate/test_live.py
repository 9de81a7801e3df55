"""Metrics of versions in service, from their log and from what became of it."""

import json

import click.testing
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tfmm import cli, metrics
from tfmm.data import as_known, served
from tfmm.evaluate import live

START, ITEMS = 1_700_000_000.0, list(range(100, 110))


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """Version 1 orders well and is calibrated, version 2 draws its scores; a third of the requests goes to it."""
    folder, draw = tmp_path_factory.mktemp("live"), np.random.default_rng(0)
    records, events, truth = [], [], {1: [], 2: []}
    for number in range(600):
        version = 2 if number % 3 == 0 else 1
        chance = draw.uniform(0.05, 0.6, len(ITEMS))
        scores = chance if version == 1 else draw.uniform(0.5, 0.9, len(ITEMS))
        record = served.Served(f"r{number}", START + number, "tfmm", version, {}, {}, {"user_id": number % 40}, ITEMS,
                               scores.tolist(), None, 0.5)  # fmt: skip
        records.append(served.to_json(record))
        for item, score, p in zip(ITEMS, scores, chance):
            clicked = bool(draw.random() < p)
            truth[version].append((number % 40, score, clicked))
            at = {"request_id": f"r{number}", "item_id": item, "time": START + number + 1}
            events.append(at | {"shown": True})
            events += [at | {"bought": True}] if clicked else []
    (folder / "log").mkdir()
    (folder / "events").mkdir()
    (folder / "log" / "a.jsonl").write_bytes(b"\n".join(records) + b"\n")
    (folder / "events" / "a.jsonl").write_text("".join(json.dumps(event) + "\n" for event in [{"time": 1}, *events]))
    return folder, truth


def test_each_version_has_the_metrics_of_its_own_rows(log):
    folder, truth = log
    found, said = live.slices(folder / "log", folder / "events", label="bought")
    assert sorted(found) == [("tfmm", 1), ("tfmm", 2)] and len(said) == 1 and "request_id" in said[0]
    for version, rows in truth.items():
        users, scores, labels = (np.array(values) for values in zip(*rows))
        one = found["tfmm", version]
        assert (one.rows, one.clicks, one.users) == (len(rows), labels.sum(), len(set(users)))
        assert one.metrics["auc"].value == pytest.approx(metrics.auc(labels.astype(int), scores), abs=1e-9)
        assert one.metrics["auc"].low < one.metrics["auc"].value < one.metrics["auc"].high
    worse = live.difference(found["tfmm", 2], found["tfmm", 1], "gauc")
    assert worse.high < 0 and worse.low < worse.value < worse.high
    far, near = (found["tfmm", version].metrics["calibration_error"].value for version in (2, 1))
    assert far > 0.5 > near


def test_the_command_tells_them_and_what_is_not_known(log):
    folder, _ = log
    flags = ["live", "--served", str(folder / "log"), "--events", str(folder / "events"), "--label", "bought"]
    told = click.testing.CliRunner().invoke(cli.main, flags)
    assert told.exit_code == 0, told.output
    assert "tfmm version 2: 200 requests, 2,000 items shown to 40 users" in told.output
    assert "over the version before" in told.output and "left out: 1 of events" in told.output
    none = click.testing.CliRunner().invoke(cli.main, [*flags, "--label-window", "1e9"])
    assert "No item that was shown is known yet." in none.output and "6,000 items" in none.output


def test_items_in_their_first_day_are_told_apart(log, tmp_path):
    folder, truth = log
    days_old = [30] * 7 + [0] * 3  # the last three of the catalog are new
    pq.write_table(pa.table({
        "item_id": ITEMS, "title": ["a"] * len(ITEMS), "category": [1] * len(ITEMS), "brand": [1] * len(ITEMS),
        "created_at": pa.array([round((START - 86_400 * days - 60) * 1e6) for days in days_old], pa.timestamp("us")),
    }), tmp_path / "items.parquet")  # fmt: skip
    found, _ = live.slices(folder / "log", folder / "events", label="bought", data_dir=tmp_path)
    for version, rows in truth.items():
        young = [row for number, row in enumerate(rows) if number % len(ITEMS) >= 7]
        one = found["tfmm", version].first_day
        assert (one.requests, one.rows) == (len(rows) // len(ITEMS), len(young))
        assert one.clicks == sum(clicked for _, _, clicked in young)
        assert one.mean_score == pytest.approx(np.mean([score for _, score, _ in young]))
    flags = ["live", "--served", str(folder / "log"), "--events", str(folder / "events"), "--label", "bought"]
    told = click.testing.CliRunner().invoke(cli.main, [*flags, "--data", str(tmp_path)])
    assert told.exit_code == 0, told.output
    assert told.output.startswith("not used: items.brand (not a column of the schema)\n")
    assert told.output.count("  items in their first day: ") == 2
    assert "  items in their first day: 600 items shown to 40 users" in told.output
    assert "first day" not in click.testing.CliRunner().invoke(cli.main, flags).output
    assert all(one.unknown_age == 0 for one in found.values()) and "lack" not in told.output
    (tmp_path / "searches.parquet").write_bytes(b"damaged")  # which is not read
    damaged = click.testing.CliRunner().invoke(cli.main, [*flags, "--data", str(tmp_path)])
    assert damaged.exit_code == 0 and damaged.output.startswith("not used: ") and "searches" in damaged.output
    assert "  items in their first day: 600 items shown to 40 users" in damaged.output


def test_impressions_of_items_that_the_tables_lack_are_counted(log, tmp_path):
    folder, _ = log
    place = tmp_path / "items.parquet"
    old, new = (pa.scalar(round((START - 86_400 * days - 60) * 1e6), pa.timestamp("us")) for days in (30, 0))
    flags = ["live", "--served", str(folder / "log"), "--events", str(folder / "events"), "--label", "bought"]

    def told(created):  # of the first items; the others came by event
        pq.write_table(pa.table({
            "item_id": pa.array(ITEMS[: len(created)], pa.int64()),
            "title": pa.array(["a"] * len(created), pa.string()),
            "category": pa.array([1] * len(created), pa.int64()),
            "created_at": pa.array([at and at.as_py() for at in created], pa.timestamp("us")),
        }), place)  # fmt: skip
        found, _ = live.slices(folder / "log", folder / "events", label="bought", data_dir=tmp_path)
        result = click.testing.CliRunner().invoke(cli.main, [*flags, "--data", str(tmp_path)])
        assert result.exit_code == 0, result.output
        return [found["tfmm", version].unknown_age for version in (1, 2)], result.output

    left_out = "  left out of these: {} impressions show items that the tables lack, or tell no `created_at` of"
    counts, output = told([old] * 5 + [new, None])
    assert counts == [400 * 4, 200 * 4] and "items in their first day: 400 items shown" in output
    assert left_out.format("1,600") in output and left_out.format("800") in output
    counts, output = told([old] * 7)
    assert counts == [400 * 3, 200 * 3] and output.count("items in their first day: none is known") == 2
    assert left_out.format("1,200") in output and output.count("export the tables anew") == 2
    assert told([])[0] == [4000, 2000]


def test_a_catalog_that_does_not_tell_when_items_were_new_is_refused(log, tmp_path):
    folder, _ = log
    pq.write_table(pa.table({"item_id": ITEMS, "title": ["a"] * len(ITEMS)}), tmp_path / "items.parquet")
    with pytest.raises(ValueError, match="must tell in `created_at` of items when they were new"):
        live.slices(tmp_path / "no log", folder / "events", data_dir=tmp_path)  # before it looks at the log


def test_the_catalog_is_read_once_for_all_versions(log, tmp_path, monkeypatch):
    folder, _ = log
    created = pa.array([round(START * 1e6)] * len(ITEMS), pa.timestamp("us"))
    pq.write_table(pa.table({"item_id": ITEMS, "title": ["a"] * len(ITEMS), "created_at": created}),
                   tmp_path / "items.parquet")  # fmt: skip
    read, read_table = [], as_known.read_table
    monkeypatch.setattr(as_known, "read_table", lambda *given: read.append(given[1]) or read_table(*given))
    found, _ = live.slices(folder / "log", folder / "events", label="bought", data_dir=tmp_path)
    assert len(found) == 2 and read == ["items"]
