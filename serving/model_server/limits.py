"""What one request, and all that wait together, may take: settings whose defaults no sound caller meets."""

from __future__ import annotations

import dataclasses
import math
import typing

MIB = 1 << 20


def _setting(default: float, meaning: str) -> typing.Any:
    return dataclasses.field(default=default, metadata={"meaning": meaning})


@dataclasses.dataclass(frozen=True)
class Limits:
    """Each is a flag of this name. A shop that ranks 5,000 candidates with vectors sends 6 MB of JSON at most.

    Raises:
        ValueError: a limit that nothing could pass.

    >>> Limits(max_candidates=0)
    Traceback (most recent call last):
    ...
    ValueError: `max_candidates` must be at least 1. Received: 0.
    """

    max_waiting: int = _setting(1024, "requests that may wait; more are answered RESOURCE_EXHAUSTED")
    max_waiting_bytes: int = _setting(256 * MIB, "bytes of requests that may wait or run; as max_waiting")
    deadline_margin: float = _setting(
        1.3, "a request with a deadline is refused where less time is left than so many times the usual"
    )
    max_request_bytes: int = _setting(32 * MIB, "of a request's body, and of each tensor that it makes")
    max_candidates: int = _setting(20_000, "candidates, or rows, of a request")
    send_timeout_seconds: float = _setting(30.0, "in which a REST client must have sent its headers, and its body")

    def __post_init__(self) -> None:
        faults = []
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), 0 if field.name == "max_waiting" else 1
            if not least <= value < math.inf:
                faults.append(f"`{field.name}` must be at least {least}. Received: {value}.")
        if faults:
            raise ValueError(" ".join(faults))


def add_flags(flag: typing.Callable[[str, type, typing.Any, str], None]) -> None:
    """Declares every limit by `flag(name, kind, default, meaning)`."""
    for field in dataclasses.fields(Limits):
        flag(field.name, type(field.default), field.default, field.metadata["meaning"])


def from_flags(flags: typing.Any) -> Limits:
    """Returns the limits that parsed flags say.

    Raises:
        ValueError: as `Limits`.
    """
    return Limits(**{field.name: getattr(flags, field.name) for field in dataclasses.fields(Limits)})
