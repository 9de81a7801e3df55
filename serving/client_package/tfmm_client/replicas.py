"""The servers of a model: which one is asked, which one next where it fails, and until when."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import time
import typing

from tfmm_client import errors
from tfmm_client.inputs import Inputs
from tfmm_client.versions import Version

RESTS_S = 5.0  # for which a replica that failed is asked last


@dataclasses.dataclass(frozen=True)
class Retry:
    """How a call that no replica could answer is tried again, within its deadline.

    Args:
        rounds: how often each replica is asked at most; 1: once.
        base_s: the longest wait after the first round; it doubles with each. What is waited is drawn between 0 and
            that, so that clients do not come back all at once.
        max_s: it grows to that at most.
    """

    rounds: int = 3
    base_s: float = 0.1
    max_s: float = 1.0

    def __post_init__(self) -> None:
        if self.rounds < 1 or not 0 <= self.base_s <= self.max_s:
            raise ValueError(f"`rounds` must be 1 at least, and 0 <= `base_s` <= `max_s`. Received: {self}.")

    def wait_s(self, rounds: int) -> float:
        """Returns the seconds to wait after so many rounds."""
        return random.uniform(0.0, min(self.max_s, self.base_s * 2 ** (rounds - 1)))


@dataclasses.dataclass(eq=False)
class Replica:
    """One server: host:port of its gRPC, the URL of its REST, what its `rank` takes, and when it failed last."""

    target: str | None
    url: str | None
    inputs: dict[tuple[Version, str], Inputs] = dataclasses.field(default_factory=dict)
    failed_at: float = -math.inf


Addresses = str | typing.Sequence[str] | None


def listed(target: Addresses, rest_url: Addresses) -> list[Replica]:
    """Returns the replicas of addresses, one or several.

    Raises:
        ValueError: there is none, or gRPC and REST are not of the same servers.
    """
    targets, urls = ([one] if isinstance(one, str) else list(one or ()) for one in (target, rest_url))
    if not targets and not urls:
        raise ValueError("`target` or `rest_url` must be given. Received: neither.")
    if targets and urls and len(targets) != len(urls):
        raise ValueError(
            "`target` and `rest_url` must name the same servers in the same order. Received: "
            f"{len(targets)} and {len(urls)}."
        )
    if bad := [url for url in urls if not url.startswith(("http://", "https://"))]:
        raise ValueError(f"`rest_url` must start with http:// or https://. Received: {', '.join(bad)}.")
    return [Replica(*addresses) for addresses in itertools.zip_longest(targets, urls)]


class Turns:
    """Gives the replicas in the order in which calls ask them: each in its turn, those that failed lately last."""

    def __init__(self, replicas: typing.Sequence[Replica]):
        self.replicas = replicas
        self._turns = itertools.count(random.randrange(len(replicas)))

    def next(self) -> list[Replica]:
        first = next(self._turns) % len(self.replicas)
        rested = time.monotonic() - RESTS_S
        return sorted([*self.replicas[first:], *self.replicas[:first]], key=lambda one: one.failed_at > rested)


class Deadline:
    """When a call is over, all tries together."""

    def __init__(self, timeout_s: float):
        if not (isinstance(timeout_s, (int, float)) and 0 < timeout_s < math.inf):
            raise ValueError(f"`timeout_s` must be a positive number of seconds. Received: {timeout_s!r}.")
        self._timeout_s, self._end = timeout_s, time.monotonic() + timeout_s

    def left_s(self) -> float:
        """Returns the seconds that are left.

        Raises:
            DeadlineExceeded: none are.
        """
        if (left := self._end - time.monotonic()) <= 0:
            raise errors.of("DEADLINE_EXCEEDED", f"No answer within {self._timeout_s:g} s.")
        return left


class Tries:
    """The tries of one call.

    While all are away, all are asked again in the next round, after a wait. One that has too much to do, does not have
    what is asked for, or refuses it where another may take it, leaves the call to the others, at once; where none of
    them answers, its refusal, the first, is the call's: one that is away says nothing of the request. What else goes
    wrong ends the call.

    Args:
        replicas: in the order in which they are asked.
        deadline: of the call.
        retry: how rounds follow each other.
        may_differ: whether replicas of other versions may take what one refuses as invalid.
    """

    def __init__(
        self, replicas: typing.Sequence[Replica], deadline: Deadline, retry: Retry, *, may_differ: bool = False
    ):
        self._left, self._away = list(replicas), list[Replica]()
        self._deadline, self._retry = deadline, retry
        self._others = (errors.ResourceExhausted, errors.NotFound, *([ValueError] if may_differ else ()))
        self._rounds, self._count, self._asked = 1, 0, len(replicas)
        self._refusal: Exception | None = None  # the first

    def next(self) -> Replica:
        self._count += 1
        return self._left[0]

    def wait_s(self, error: Exception) -> float:
        """Returns the seconds until the next try, after one that failed.

        Raises:
            Exception: where no try is left: the first refusal, or else `error`.
        """
        asked = self._left.pop(0)
        if isinstance(error, (errors.Unavailable, errors.DeadlineExceeded)):
            asked.failed_at = time.monotonic()
        if isinstance(error, errors.Unavailable):
            self._away.append(asked)
        elif isinstance(error, self._others):
            self._refusal = self._refusal or error
        elif self._refusal is None or not isinstance(error, errors.DeadlineExceeded):
            raise error
        else:  # it hangs
            raise self._last(self._refusal)
        if self._left:
            return 0.0
        if self._refusal is not None:  # by each that can be reached
            raise self._last(self._refusal)
        wait_s = self._retry.wait_s(self._rounds)
        if self._rounds == self._retry.rounds or wait_s >= self._deadline.left_s():
            raise self._last(error)
        self._left, self._away = self._away, []
        self._rounds += 1
        return wait_s

    def _last(self, error: Exception) -> Exception:
        if not isinstance(error, errors.PredictError) or self._count == 1:
            return error
        said = f"{error.message} ({self._count} tries, {self._asked} replica{'s' * (self._asked > 1)})"
        return type(error)(error.code, said)
