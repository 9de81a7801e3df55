"""Which replica is asked next, after what, and when."""

import pytest

from tfmm_client import errors, replicas
from tfmm_client.replicas import Deadline, Retry, Tries

AWAY = errors.of("UNAVAILABLE", "away")
FINAL = [errors.of(code, "said") for code in ("INVALID_ARGUMENT", "UNAUTHENTICATED", "PERMISSION_DENIED", "INTERNAL",
                                             "DEADLINE_EXCEEDED", "401", "403", "500", "504")]  # fmt: skip
ELSEWHERE = [errors.of(code, "said") for code in ("RESOURCE_EXHAUSTED", "NOT_FOUND", "429", "404")]


def servers(*names):
    return replicas.listed(list(names), None)


TWICE = Retry(rounds=2, base_s=0.5)


def tries(count, retry=TWICE, **settings):
    return Tries(servers(*"abcdef"[:count]), Deadline(100), retry, **settings)


def asked(tries, *failures):
    """The replicas that are asked while calls fail so, and the waits."""
    found = []
    for failure in failures:
        target = tries.next().target
        found.append((target, tries.wait_s(failure)))
    return found


def test_next_replica_is_asked_at_once_and_all_again_after_a_wait():
    found = asked(tries(2), AWAY, AWAY, AWAY)
    assert [target for target, _ in found] == ["a", "b", "a"]
    assert found[0][1] == found[2][1] == 0.0 and 0.0 <= found[1][1] <= 0.5


def test_tries_end_with_the_last_round():
    with pytest.raises(errors.Unavailable, match=r"^UNAVAILABLE: away \(4 tries, 2 replicas\)$"):
        asked(tries(2), AWAY, AWAY, AWAY, AWAY)
    with pytest.raises(errors.Unavailable, match=r"^UNAVAILABLE: away$"):
        asked(tries(1, Retry(rounds=1)), AWAY)


@pytest.mark.parametrize("error", FINAL, ids=lambda one: one.code)
def test_what_is_as_wrong_elsewhere_ends_the_call(error):
    with pytest.raises(type(error), match=r"said$"):
        asked(tries(3), error)


@pytest.mark.parametrize("error", ELSEWHERE, ids=lambda one: one.code)
def test_what_another_may_have_is_asked_of_each_once(error):
    assert asked(tries(3), error, error) == [("a", 0.0), ("b", 0.0)]
    with pytest.raises(type(error), match=r"said \(3 tries, 3 replicas\)"):
        asked(tries(3), error, error, error)


@pytest.mark.parametrize("error", [*ELSEWHERE, errors.of("INVALID_ARGUMENT", "said"), ValueError("said")], ids=repr)
@pytest.mark.parametrize("away", [AWAY, errors.of("DEADLINE_EXCEEDED", "hangs")], ids=["away", "hangs"])
def test_refusal_counts_where_the_others_are_away(error, away):
    """No further round: each that can be reached has refused."""
    with pytest.raises(type(error), match=r"said( \(2 tries, 2 replicas\))?$"):
        asked(tries(2, may_differ=True), error, away)
    if away is AWAY:
        with pytest.raises(type(error), match=r"said( \(3 tries, 3 replicas\))?$"):
            asked(tries(3, may_differ=True), away, error, away)


def test_first_refusal_is_the_call_s():
    with pytest.raises(errors.NotFound, match=r"^NOT_FOUND: said \(3 tries, 3 replicas\)$"):
        asked(tries(3), ELSEWHERE[1], ELSEWHERE[0], AWAY)


def test_no_wait_is_longer_than_the_deadline():
    short = Tries(servers("a"), Deadline(0.001), Retry(rounds=9, base_s=100.0, max_s=100.0))
    with pytest.raises((errors.Unavailable, errors.DeadlineExceeded)):
        asked(short, *[AWAY] * 9)


def test_waits_are_drawn_and_grow_to_their_limit():
    retry = Retry(base_s=0.1, max_s=0.3)
    drawn = {rounds: [retry.wait_s(rounds) for _ in range(300)] for rounds in (1, 2, 3, 9)}
    for rounds, limit in ((1, 0.1), (2, 0.2), (3, 0.3), (9, 0.3)):
        assert 0.0 <= min(drawn[rounds]) < 0.3 * limit and 0.7 * limit < max(drawn[rounds]) <= limit
    with pytest.raises(ValueError, match="`rounds` must be 1 at least"):
        Retry(rounds=0)


def test_another_replica_is_first_each_time_and_one_that_failed_is_last():
    turns = replicas.Turns(servers("a", "b", "c"))
    assert {turns.next()[0].target for _ in range(3)} == {"a", "b", "c"}
    first = turns.next()
    Tries(first, Deadline(100), Retry(rounds=2)).wait_s(AWAY)
    for _ in range(3):
        assert turns.next()[-1] is first[0]


@pytest.mark.parametrize("code, http", [
    ("INVALID_ARGUMENT", "400"), ("UNAUTHENTICATED", "401"), ("PERMISSION_DENIED", "403"), ("NOT_FOUND", "404"),
    ("RESOURCE_EXHAUSTED", "429"), ("DEADLINE_EXCEEDED", "504"), ("UNAVAILABLE", "503"), ("INTERNAL", "500"),
    ("UNIMPLEMENTED", "501"), ("CANCELLED", "499"),
])  # fmt: skip
def test_code_and_status_are_one_kind(code, http):
    assert type(errors.of(code, "")) is type(errors.of(http, ""))
    assert issubclass(type(errors.of(code, "")), errors.PredictError)
