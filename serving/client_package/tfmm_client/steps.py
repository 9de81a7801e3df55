"""What a call does, as steps that whoever runs it takes: at once, or awaited.

A flow is a generator of steps that is sent what each brings, and thrown what it fails with. So how replicas are chosen,
asked and asked again is written once, for callers with threads and with asyncio.
"""

from __future__ import annotations

import typing

from tfmm_client import messages
from tfmm_client.replicas import Replica

T = typing.TypeVar("T")


class Call(typing.NamedTuple):
    """Calls a replica over gRPC, and brings the answer's message."""

    replica: Replica
    method: messages.Method
    request: typing.Any
    timeout_s: float
    metadata: typing.Sequence[tuple[str, str]] = ()


class Send(typing.NamedTuple):
    """Sends a request to a replica over REST, a body by POST, and brings the answer's JSON."""

    replica: Replica
    path: str
    body: bytes | None
    timeout_s: float


class Wait(typing.NamedTuple):
    """Waits."""

    seconds: float


class Work(typing.NamedTuple):
    """Calls a function that may block, such as a look-up in a database, and brings what it returns.

    With asyncio it is called in a thread, and waited for no longer than `timeout_s`; the thread ends when it does.
    """

    function: typing.Callable[[], typing.Any]
    timeout_s: float


Step = Call | Send | Wait | Work
Flow = typing.Generator[Step, typing.Any, T]
