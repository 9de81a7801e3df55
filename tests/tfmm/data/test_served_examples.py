"""Examples of a served log: those of the tables at the time, row by row, whatever the tables say later."""

import dataclasses
import json

import click.testing
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tfmm import cli, preprocessing
from tfmm import config as config_lib
from tfmm.ctr import train as train_lib
from tfmm.data import join, served, served_examples, shards, spans
from tfmm.features import DEFAULT_FEATURES, Feature, FeatureSet, Sequence
from tfmm.fingerprints import fingerprint
from tfmm.stages import examples as stage
from tfmm.training.examples import split_pattern

FEATURES = FeatureSet().resolved(max_behaviors=6, min_count=1)
DAY_S = 86_400.0
UNTIL = 2e9


def columns_of(folder):
    """All rows in time order."""
    parts = [shards.read_columns(split_pattern(folder, split)) for split in ("train", "eval")]
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.lexsort((rows["item_id"], rows["user_id"], rows["timestamp"]))
    return {name: values[order] for name, values in rows.items()}


def write_lines(folder, name, objects):
    folder.mkdir(exist_ok=True)
    lines = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in objects]
    (folder / f"{name}.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))


def a_record(number, time, items, **features):
    given = {"user_id": 7, "behavior_item_ids": [3, 5], "behavior_categories": [1, 2]} | features
    return served.Served(f"r{number}", time, "tfmm", 1, {"image": "v1"}, {"image": 12}, given, items,
                         [0.5] * len(items), {"category": [9] * len(items)})  # fmt: skip


def shown(number, item, time, **more):
    return {"request_id": f"r{number}", "item_id": item, "time": time, "shown": True} | more


def clicked(number, item, time):
    return {"request_id": f"r{number}", "item_id": item, "time": time, "label": True}


@pytest.fixture
def write_log(tmp_path):
    """Writes records and events, of which some may be bytes, and joins them."""

    def write(records, events, feature_set=FEATURES, before=spans.FROM_SCRATCH, **settings):
        write_lines(tmp_path / "log", "a", [r if isinstance(r, bytes) else served.to_json(r) for r in records])
        write_lines(tmp_path / "events", "a", events)
        log = served_examples.Log(tmp_path / "log", tmp_path / "events", **{"until": UNTIL} | settings)
        said = []
        config = config_lib.DataConfig(max_bad_fraction=1.0)
        served_examples.write_examples(log, config, feature_set, tmp_path / "examples", said.append, before)
        return columns_of(tmp_path / "examples"), said

    return write


def some_rows(count=10, first=1_700_000_000.0):
    """Requests that make a training and an evaluation split, each with one shown item."""
    records = [a_record(n, first + n, [100 + n, 200]) for n in range(count)]
    return records, [shown(n, 100 + n, first + n + 0.5) for n in range(count)]


@pytest.fixture(scope="module")
def joined(small_marketplace, tmp_path_factory):
    folder = tmp_path_factory.mktemp("joined")
    join.write_examples(small_marketplace, config_lib.DataConfig(), FEATURES, folder)
    return columns_of(folder)


@pytest.fixture(scope="module")
def log(joined, tmp_path_factory):
    """The same impressions as a server logs them: a request per user and instant, of the items and one not shown."""
    folder, requests, events = tmp_path_factory.mktemp("served"), {}, []
    for row in range(len(joined["label"])):
        at = int(joined["timestamp"][row])
        requests.setdefault((int(joined["user_id"][row]), at), []).append(row)
    records = []
    for number, ((user, at), rows) in enumerate(requests.items()):
        items = [*joined["item_id"][rows].tolist(), 987_654_321]
        history = {name: joined[name][rows[0]].tolist() for name in ("behavior_item_ids", "behavior_categories")}
        records.append(served.Served(
            f"r{number}", at / 1e6, "tfmm", 1, {}, {}, {"user_id": user, **history}, items, [0.1] * len(items),
            {"category": [*joined["category"][rows].tolist(), 0]},
        ))  # fmt: skip
        for row in rows:
            item = int(joined["item_id"][row])
            events.append(shown(number, item, at / 1e6 + 1))
            events += [clicked(number, item, at / 1e6 + 60)] if joined["label"][row] else []
    write_lines(folder / "log", "part", [served.to_json(record) for record in records])
    write_lines(folder / "events", "part", events[::-1])  # in whatever order
    return served_examples.Log(folder / "log", folder / "events", DAY_S, UNTIL)


def test_rows_are_those_of_the_batch_join(log, joined, tmp_path):
    said = []
    served_examples.write_examples(log, config_lib.DataConfig(), FEATURES, tmp_path, said.append)
    found = columns_of(tmp_path)
    assert set(found) == set(preprocessing.raw_spec(FEATURES))
    for name, values in joined.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    assert said[0].startswith("examples as served: ") and "0 left out" in said[0]


def test_a_run_trains_on_it_and_goes_on(log, small_marketplace, tmp_path):
    """Vocabularies and a click model of what was served; partitions change nothing."""
    run = config_lib.RunConfig(data=config_lib.DataConfig(max_behaviors=6, min_id_count=1))
    assert run.feature_set == FEATURES
    stage.make_examples(run, small_marketplace, tmp_path, lambda line: None, log=log)
    digests = shards.Shards(sorted(map(str, (tmp_path / "examples").glob("train-*")))).digest
    config = config_lib.CTRConfig(units=(8,), attention_units=(4,), batch_size=256)
    manifest = train_lib.train(config, *stage.patterns(tmp_path), tmp_path / "vocabulary", tmp_path / "model", FEATURES)
    assert manifest["training"]["newest"] > 0 and digests
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tfmm.data.served_rows.PARTITION_BYTES", 1 << 16)
        stage.make_examples(run, small_marketplace, tmp_path / "parts", lambda line: None, log=log)
    one, other = columns_of(tmp_path / "examples"), columns_of(tmp_path / "parts" / "examples")
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name])


def test_an_item_is_trained_in_each_state_in_which_it_was_served(write_log):
    """Item 5 was served with category 1, then with 2; its histories have what was looked up then."""
    records, events = some_rows()
    changed = [
        dataclasses.replace(a_record(20 + n, 1.6e9 + n, [5], behavior_item_ids=[5], behavior_categories=[n]),
                            item_features={"category": [n]})
        for n in (1, 2)
    ]  # fmt: skip
    found, _ = write_log(records + changed, [*events, shown(21, 5, 1.6e9 + 5), shown(22, 5, 1.6e9 + 5)])
    assert found["category"][:3].tolist() == [1, 2, 9] and found["item_id"][:2].tolist() == [5, 5]
    assert found["behavior_categories"][:2, 0].tolist() == [1, 2]


def test_clicks_count_within_the_window_and_open_rows_wait(write_log):
    records, events = some_rows(12)
    start = 1_700_000_000.0
    events += [clicked(0, 100, start + 99), clicked(1, 101, start + 2 + 200), clicked(2, 200, start + 3)]
    found, said = write_log(records, events, window_s=100.0, until=start + 11 + 100)
    labels = dict(zip(found["item_id"].tolist(), found["label"].tolist()))
    assert labels[100] == 1 and labels[101] == 0 and labels[102] == 0
    assert labels[200] == 1  # nobody said that it was shown: a click does
    assert 111 not in labels and "1 items that were shown are not known yet" in " ".join(said)
    assert "1 clicks came after their window" in " ".join(said)


def test_what_cannot_be_used_is_a_dead_letter_and_takes_nothing_along(write_log):
    records, events = some_rows()
    bad = [
        b"not json", b"[1]", b'{"request_id": "x"}',
        served.to_json(dataclasses.replace(a_record(30, 1.7e9, [1]), sample_rate=0.5)),
        a_record(31, 1.7e9, [1], behavior_categories=[1]), a_record(32, 1.7e9, [1], user_id=2.5),
    ]  # fmt: skip
    bad.append(a_record(40, 1.7e9, [1], user_id=[7]))  # a list for a value, here and below
    bad.append(dataclasses.replace(a_record(41, 1.7e9, [1]), item_features={"category": [[9]]}))
    bad.append(dataclasses.replace(a_record(33, 1.7e9, [1]), features={"user_id": 7}))
    wrong = [shown(99, 1, 1.7e9), shown(0, 777, 1.7e9), b"{", *(shown(n, 1, 1.7e9) for n in (31, 32, 33, 40, 41)),
             {"request_id": "r0", "item_id": 100, "time": 1.7e9}, shown(0, 100, -1),
             {"request_id": "r0", "item_id": 100, "time": 1.7e9, "shown": False}]  # fmt: skip
    found, said = write_log(records + bad, events + wrong)
    assert len(found["label"]) == 10
    text = "\n".join(said)
    for part in (
        "not JSON", "must be an object of JSON, not list", "`model` must be a name", "a sample is for inspection",
        "as long as the ids beside them, not behavior", "3 of served: `features` must be of the kinds that",
        "lacks behavior_item_ids, behavior_categories", "of a request that was logged",
        "among the items of its request", "`shown` or `label` must be there", "seconds since 1970",
    ):  # fmt: skip
        assert part in text, (part, text)


def test_a_row_of_parquet_that_cannot_be_used_takes_nothing_along(write_log, tmp_path):
    """Records as JSON and as rows of Parquet are one; a text that is no JSON is a dead letter of its row alone."""
    records, events = some_rows()
    table = served.table([json.loads(served.to_json(one)) for one in records[5:]])
    texts = table["features"].to_pylist()
    broken = [*table.set_column(6, "features", pa.array(["{", *texts[1:]])).slice(0, 1).to_pylist()]
    (tmp_path / "log").mkdir()
    pq.write_table(pa.concat_tables([table, pa.Table.from_pylist(broken, served.SCHEMA)]), tmp_path / "log/b.parquet")
    found, said = write_log(records[:5], [event | {"label": None} for event in events])
    assert found["item_id"].tolist() == [100 + n for n in range(10)] and found["label"].sum() == 0
    assert "`features` must be an object" in "\n".join(said)


def test_a_last_line_without_an_end_is_read_where_it_is_whole_and_else_said(write_log, tmp_path):
    """As other tools write them; what a killed writer left is no object."""
    records, events = some_rows()
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "b.jsonl").write_bytes(served.to_json(a_record(99, 1_700_000_100.0, [7])))
    (tmp_path / "log" / "c.jsonl").write_bytes(b"x" * 200_000 + b"\n" + served.to_json(records[0])[:-1])
    (tmp_path / "log" / "notes.txt").write_text("mine")
    (tmp_path / "log" / "d.jsonl").write_bytes(b"")
    columns, said = write_log(records, [*events, shown(99, 7, 1_700_000_101.0)])
    assert 7 in columns["item_id"] and len(columns["label"]) == 11
    assert said[:2] == [
        f"not used: {tmp_path / 'log' / 'notes.txt'} (the name ends in none of .parquet, .jsonl)",
        f"not used: {tmp_path / 'log' / 'c.jsonl'} (a last line without an end that is no whole object)",
    ]


def test_damaged_parquet_of_a_log_is_named(write_log, tmp_path):
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "b.parquet").write_bytes(b"PAR1 and no more PAR1")
    with pytest.raises(ValueError, match=r"log/b\.parquet must be readable Parquet\. Received: \S"):
        write_log(*some_rows())


def test_what_is_no_item_is_not_shown(write_log):
    records, events = some_rows()
    events += [shown(20, 0, 1.6e9), shown(20, 7, 1.6e9)]
    found, said = write_log([*records, a_record(20, 1.6e9, [0, 7])], events)
    assert found["item_id"][0] == 7 and len(found["label"]) == 11
    assert "neither 0 nor empty, not 0" in "\n".join(said)


def test_too_many_dead_letters_stop_the_run(log, tmp_path):
    write_lines(tmp_path / "log", "a", [b"{"] * 3)
    write_lines(tmp_path / "events", "a", [])
    broken = served_examples.Log(tmp_path / "log", tmp_path / "events", DAY_S, UNTIL)
    with pytest.raises(ValueError, match=r"must have rows|No reason may leave out more"):
        served_examples.write_examples(broken, config_lib.DataConfig(), FEATURES, tmp_path / "examples")


def test_a_model_that_goes_on_has_what_came_after_its_watermark(write_log):
    records, events = some_rows()
    before = spans.Before(watermark=1_700_000_004_000_000, newest=1_700_000_004_000_000)
    found, said = write_log(records, events, before=before)
    assert found["item_id"].tolist() == [105, 106, 107, 108, 109]
    assert any(line.startswith("span: 5 impressions after") for line in said)


KINDS = FeatureSet(
    (
        *DEFAULT_FEATURES,
        Feature("brand", "item"), Feature("price", "item", "number"), Feature("tags", "item", "ids", max_values=2),
        Feature("device", "context"), Feature("bid", "item", "number", source="impressions.bid"),
        Feature("position", "context", "number", serving_value=1.0),
        Feature("age", "behavior", "number", source="behaviors.age"),
    ),
    (Sequence("clicks", features=("item_id", "price", "age")),),
).resolved(max_behaviors=3, min_count=1)  # fmt: skip


def test_every_kind_of_feature_is_as_served(write_log):
    """Strings and fingerprints are one id; the newest behaviors count; positions come with the event."""
    red = int(fingerprint(["red"])[0])
    features = {
        "user_id": "ann", "device": None, "bid": [0.5, None], "clicks_item_id": [1, 2, 3, 4, 0],
        "clicks_price": [1.0, 2.0, 3.0, None, None], "clicks_age": [9.0, 8.0, 7.0, None, None],
    }  # fmt: skip
    looked_up = {"category": [1, 2], "brand": [red, 0], "price": [None, 2.5], "tags": [[0, red], [red, 5, 6]]}
    one = served.Served("r0", 1_700_000_000.25, "m", 1, {}, {}, features, [10, 11], [0.1, 0.2], looked_up)
    given = dataclasses.replace(one, request_id="r1", time=1_700_000_001.0,
                                features=features | {"brand": ["red", ""]},
                                item_features={n: v for n, v in looked_up.items() if n != "brand"})  # fmt: skip
    events = [shown(0, 10, 1.7e9 + 1, position=3), shown(0, 11, 1.7e9 + 1), shown(1, 10, 1.7e9 + 2)]
    found, _ = write_log([one, given], events, KINDS)
    assert found["timestamp"][0] == 1_700_000_000_250_000
    assert found["user_id"].tolist() == [int(fingerprint(["ann"])[0])] * 3 and found["device"].tolist() == [0] * 3
    assert found["brand"].tolist() == [red, 0, red]
    np.testing.assert_array_equal(found["price"], np.float32([np.nan, 2.5, np.nan]))
    np.testing.assert_array_equal(found["bid"], np.float32([0.5, np.nan, 0.5]))
    np.testing.assert_array_equal(found["position"], np.float32([3, np.nan, np.nan]))
    assert found["tags"].tolist() == [[red, 0], [red, 5], [red, 0]]
    assert found["clicks_item_id"][0].tolist() == [2, 3, 4]
    np.testing.assert_array_equal(found["clicks_price"][0], np.float32([2, 3, np.nan]))
    np.testing.assert_array_equal(found["clicks_age"][0], np.float32([8, 7, np.nan]))


def test_the_command_wants_a_log_and_its_events_together(log, small_marketplace, tmp_path):
    folders = {"--data": small_marketplace, "--snapshot": tmp_path, "--output": tmp_path / "models"}
    flags = ["train", *(str(one) for pair in folders.items() for one in pair)]
    told = click.testing.CliRunner().invoke(cli.main, [*flags, "--served", str(log.requests)])
    assert told.exit_code == 1 and "--served and --events must be given together" in told.output
