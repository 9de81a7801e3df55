"""Requests and labels joined within a window: what comes late, twice, before, never, in any order."""

import json
import time

import pytest

from serving.nearline import joining, records
from serving.streaming.event_log import Event

T = 1_709_596_800
WINDOW = 10


def request(name, at=0.0, items=(1, 2, 3), **more):
    return {"request_id": name, "time": T + at, "model": "tfmm", "version": 1, "encoders": {}, "index": {},
            "features": {"user_id": 1}, "items": list(items), "scores": [0.5] * len(items), **more}  # fmt: skip


def said(name, item, at=0.0, **what):
    return {"request_id": name, "item_id": item, "time": T + at, **(what or {"shown": True})}


def joined(*found, advance_to=1e6, rules=None, **settings):
    """Returns the join after records, and what has left: by request, the labels of its items."""
    join = joining.Join(rules or joining.Rules("click", WINDOW * 1_000_000, 0, **settings))
    for place, one in enumerate(found):
        payload = one if isinstance(one, bytes) else json.dumps(one).encode()
        join.add("log", Event(place + 1, payload))
    return join, {w.request.request_id: w.labels for w in join.advance(int((T + advance_to) * 1e6))}


def test_what_was_shown_and_not_clicked_within_the_window_is_a_negative():
    join, left = joined(request("a"), said("a", 1), said("a", 2), said("a", 2, 3.0, click=True))
    assert left == {"a": {1: 0, 2: 1}} and not join.letters


def test_a_click_says_that_the_item_was_shown_and_what_nobody_saw_is_no_row():
    _, left = joined(request("a"), said("a", 3, 1.0, click=True), request("b"))
    assert left == {"a": {3: 1}, "b": {}}


def test_nothing_leaves_before_its_window_is_over():
    assert joined(request("a"), advance_to=WINDOW - 0.001)[1] == {}
    assert joined(request("a"), advance_to=WINDOW)[1] == {"a": {}}


def test_a_label_before_its_request_waits_for_it():
    _, left = joined(said("a", 1, 0.5, click=True), said("a", 2), request("a"))
    assert left == {"a": {1: 1, 2: 0}}


def test_a_label_whose_request_never_comes_is_a_dead_letter_after_the_window():
    join, left = joined(said("a", 1, 0.5, click=True), advance_to=WINDOW + 0.4)
    assert not left and not join.letters
    join.advance(int((T + WINDOW + 0.6) * 1e6))
    ((part, position, reason, payload),) = join.letters
    assert (part, position) == ("log", 1) and json.loads(payload)["item_id"] == 1
    assert reason == "request_id: no request 'a' came within the window"


def test_what_comes_twice_counts_once():
    join, left = joined(request("a"), said("a", 1, click=True), said("a", 1, click=True), said("a", 1), request("a"))
    assert left == {"a": {1: 1}} and join.counts["twice"] == 1
    join.add("log", Event(9, json.dumps(request("a")).encode()))  # once more, when it has left
    assert join.num_waiting == 0 and join.counts["twice"] == 2


@pytest.mark.parametrize("late", [said("a", 1, WINDOW + 0.1, click=True), said("a", 1, 1.0, click=True)])
def test_a_click_after_the_window_is_counted_and_changes_nothing(late):
    join, left = joined(request("a"), said("a", 1), *([late] if late["time"] > T + WINDOW else []))
    assert left == {"a": {1: 0}}
    if late["time"] < T + WINDOW:  # within it by its own time, but it came when the request had left
        join.add("log", Event(9, json.dumps(late).encode()))
    assert join.counts["late_labels"] == 1 and not join.letters


def test_requests_leave_in_order_of_time_however_they_come():
    join = joining.Join(joining.Rules("click", WINDOW * 1_000_000, 0))
    for place, (name, at) in enumerate([("c", 3), ("a", 1), ("b", 2), ("a2", 1)]):
        join.add(f"part-{place % 2}", Event(place, json.dumps(request(name, at)).encode()))
    assert [w.request.request_id for w in join.advance(int((T + 100) * 1e6))] == ["a", "a2", "b", "c"]


def test_a_clock_that_jumps_back_loses_nothing_and_the_watermark_stays():
    join, _ = joined(request("a", 1000), advance_to=1000 + WINDOW)
    join.add("log", Event(2, json.dumps(request("b", 400)).encode()))
    join.add("log", Event(3, json.dumps(said("b", 1, 401, click=True)).encode()))
    assert join.counts["late_requests"] == 1 and join.advance(int((T + 400) * 1e6)) == []
    assert join.advance(int((T + 1000 + 2 * WINDOW - 0.1) * 1e6)) == []  # it waits a window of its own
    (left,) = join.advance(int((T + 1000 + 2 * WINDOW) * 1e6))
    assert left.labels == {1: 1} and left.request.time == T + 400


def test_what_a_model_was_trained_through_is_not_trained_on_again():
    rules = joining.Rules("click", WINDOW * 1_000_000, 0, after_us=(T + 5) * 1_000_000)
    join, left = joined(request("a", 5), request("b", 5.1), said("a", 1, 6), said("b", 1, 6), rules=rules)
    assert left == {"b": {1: 0}} and join.counts["trained_before"] == 1 and not join.letters


def test_what_waits_is_bounded_and_what_is_refused_is_said():
    join, left = joined(request("a"), request("b"), request("c"), said("x", 1), said("y", 1), said("z", 1),
                        max_waiting=2, advance_to=0)  # fmt: skip
    assert join.num_waiting == 2 and not left
    assert [letter.reason.split(";")[0] for letter in join.letters] == [
        "request_id: 2 requests wait for labels, and no more may",
        "request_id: 2 labels wait for their requests, and no more may",
    ]


@pytest.mark.parametrize("record, reason", [
    (b"?", "not JSON: Expecting value"),
    (b"\xff\xfe", "not JSON: 'utf-8' codec"),
    (b"[" * 100_000, "not JSON"),
    ([1], "must be an object of JSON, not list"),
    (request(7), "`request_id` must be a text of 1 to 200 characters, not '7'"),
    (request("a", time=None), "`time` must be seconds since 1970, not None"),
    (request("a", 1e9), "at most 300 s ahead"),
    (said("a", 1, 1e9), "at most 300 s ahead"),
    (request("a", time=float("nan")), "`time` must be seconds since 1970, not nan"),
    (request("a", items=[True]), "`items` must be a list of ids"),
    (request("a", features=[1]), "`features` must be an object"),
    (request("a", features="{"), "`features` must be an object"),
    (request("a", version="7"), "`version` must be a positive integer, not '7'"),
    (request("a", scores=[]), "`scores` must be one per item, 3, not 0"),
    (request("a", item_features={"price": [1.0]}), "`item_features` must have one value per item, 3, which price"),
    (request("a", sample_rate=0.1), "`sample_rate` must be 1: a sample is for inspection"),
    ({"request_id": "a", "time": T, "item_id": 1}, "`shown` or `click` must be there"),
    (said("a", 1, click="yes"), "`click` must be true or false, not 'yes'"),
    (said("a", True), "`item_id` must be an integer or a text"),
    (said("a", 0), "`item_id` must be an integer or a text, neither 0 nor empty, not 0"),
])  # fmt: skip
def test_a_record_that_cannot_be_used_becomes_a_letter_with_the_reason_that_training_gives(record, reason):
    join, left = joined(record)
    ((_, position, found, payload),) = join.letters
    assert reason in found and position == 1 and not left and payload
    assert join.counts["dead_letters"] == 1


def test_a_label_of_an_item_that_was_not_among_the_candidates_is_a_letter():
    join, left = joined(request("a"), said("a", 9))
    assert left == {"a": {}} and "`item_id` must be among the items of its request" in join.letters[0].reason


def test_a_time_ahead_of_ours_is_refused_before_it_ends_every_window():
    join, left = joined(request("a"), request("b", time.time() - T + 400), advance_to=1)
    assert not left and len(join.letters) == 1 and join.newest_us("log") == T * 1_000_000


def test_rows_of_parquet_may_hold_json_in_texts():
    row = request("a", items=[1, 2]) | {"items": "[1, 2]", "features": '{"user_id": 3}', "item_features": None}
    row |= {"encoders": [["image", "v1"]], "index": [["image", 4]]}  # maps
    found = records.parse(json.dumps(row).encode(), "click")
    assert found.items == [1, 2] and found.features == {"user_id": 3} and found.item_features is None
    assert found.encoders == {"image": "v1"} and found.index == {"image": 4}


def test_of_a_request_that_came_twice_the_last_one_counts_while_it_waits():
    join, left = joined(request("a", 1, items=[1, 2]), said("a", 1, 2), request("a", 3, items=[1, 7]),
                        said("a", 7, 4, click=True), request("a", 2, items=[9]))  # fmt: skip
    assert left == {"a": {1: 0, 7: 1}} and join.counts["twice"] == 2 and not join.letters


def test_what_events_tell_of_an_item_is_the_last_of_each_column_and_stays_in_the_state():
    rules = joining.Rules("click", WINDOW * 1_000_000, 0, columns=("position", "page"))
    found = [request("a"), said("a", 1, 2, shown=True, position=4), said("a", 1, 1, shown=True, position=3, page=2),
             said("a", 1, 2, click=True, position=5, other=1)]  # fmt: skip
    join, _ = joined(*found, advance_to=5, rules=rules)
    other = joining.Join(rules)
    other.restore(json.loads(json.dumps(join.state())))
    for one in (join, other):
        (waiting,) = one.advance(int((T + 100) * 1e6))
        assert waiting.values(1) == {"position": 5, "page": 2} and waiting.values(2) == {}


def test_its_state_is_all_that_it_is():
    found = [request("a"), said("a", 1, 1, click=True), request("b", 2, items=["x"]), said("b", "x", 3)]
    found += [said("z", 1, 4), b"?"]
    later = [said("b", "x", 5, click=True), request("z", 6, items=[1]), request("a")]
    whole, _ = joined(*found, advance_to=5)
    other = joining.Join(whole.rules)
    other.restore(json.loads(json.dumps(whole.state())))
    whole.letters = []
    for join in (whole, other):
        for place, one in enumerate(later):
            join.add("log", Event(10 + place, json.dumps(one).encode()))
    left = [[(w.request, w.at_us, w.labels) for w in j.advance(int((T + 100) * 1e6))] for j in (whole, other)]
    assert left[0] == left[1] and len(left[0]) == 3
    assert whole.state() == other.state() and whole.letters == other.letters


def test_what_waits_is_taken_again_though_the_clock_was_set_back(monkeypatch):
    """A trainer that starts again takes what it has taken before."""
    join, _ = joined(request("a"), said("b", 1, 1.0, click=True), advance_to=0)
    state = json.loads(json.dumps(join.state()))
    monkeypatch.setattr(time, "time", lambda: T - records.MAX_AHEAD_S - 10)
    again = joining.Join(join.rules)
    again.add("log", Event(3, json.dumps(request("c")).encode()))
    assert "at most 300 s ahead" in again.letters[0].reason  # which is for what comes
    again.letters = []
    again.restore(state)
    assert again.num_waiting == 1 and again.state() == join.state()
