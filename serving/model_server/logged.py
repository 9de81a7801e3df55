"""Versions whose rankings are logged: each is scored by the signature that also says by what, and written down."""

from __future__ import annotations

import base64
import contextlib
import functools
import re
import time
import typing
import uuid
from concurrent import futures

import numpy as np
import pyarrow as pa

from serving import served_log, served_record
from serving.model_server import errors
from serving.model_server.servable import Servable, check_outputs
from serving.served_record import REQUEST_ID
from tfmm.data import served
from tfmm.export.signatures import LOGGED, UPSERT

_ID = re.compile(f"[!-~]{{1,{served.MAX_REQUEST_ID}}}")


class Logs(typing.NamedTuple):
    """A server's logs.

    Attributes:
        requests: of rankings: the one that training reads, and the sample.
        changes: of the item index's changes, as this server took them; None: not logged.
    """

    requests: tuple[served_log.Log, ...] = ()
    changes: served_log.Log | None = None

    def all(self) -> list[served_log.Log]:
        return [*self.requests, *([self.changes] if self.changes else [])]

    def close(self) -> None:
        with futures.ThreadPoolExecutor() as pool:  # one that is away does not delay the others
            list(pool.map(served_log.Log.close, self.all()))


def from_flags(flags: typing.Any) -> Logs:
    """Opens the logs that the command line names.

    Raises:
        ValueError, OSError: one cannot be written to.
    """
    settings = {"max_waiting": flags.log_waiting, "rotate_s": flags.log_file_seconds}
    requests, changes = [], None
    if flags.served_log:
        requests.append(served_log.Log("served", flags.served_log, **settings))
    if flags.inspection_log:
        rate = flags.inspection_rate
        requests.append(served_log.Log("inspection", flags.inspection_log, sample_rate=rate, **settings))
    if flags.changes_log:
        changes = served_log.Log("changes", flags.changes_log, table=changes_table, **settings)
    return Logs(tuple(requests), changes)


def request_id(given: str | bytes | None) -> str:
    """Returns a request's id: the caller's, or a new one.

    Raises:
        ServingError: INVALID_ARGUMENT for one that is not printable or too long.
    """
    if given is None:
        return uuid.uuid4().hex
    text = given.decode("latin-1") if isinstance(given, bytes) else given
    if not _ID.fullmatch(text):
        raise errors.ServingError(
            errors.INVALID_ARGUMENT,
            f"{REQUEST_ID} must be 1 to {served.MAX_REQUEST_ID} printable characters of ASCII. Received: "
            f"{text[:80]!r}.",
        )
    return text


class Recording:
    """A version of a model whose rankings, and changes of the index, are logged; else as the servable itself.

    Args:
        servable: the version.
        logs: where to.
        request_id: of the request at hand.
    """

    def __init__(self, servable: Servable, logs: Logs, request_id: str):
        self._servable, self._logs, self._request_id = servable, logs, request_id

    def __getattr__(self, name: str) -> typing.Any:
        return getattr(self._servable, name)

    def run(
        self, signature: str, inputs: dict[str, np.ndarray], output_filter: typing.Sequence[str] = ()
    ) -> dict[str, np.ndarray]:
        """As `Servable.run`.

        Raises:
            ServingError: also RESOURCE_EXHAUSTED where a log that takes everything has no place, FAILED_PRECONDITION
                where the version was exported without what such a log needs.
        """
        if signature == UPSERT and self._logs.changes is not None:
            return self._upsert(self._logs.changes, inputs, output_filter)
        logs = [log for log in self._logs.requests if log.takes(self._request_id)] if signature in LOGGED else []
        if not logs:
            return self._servable.run(signature, inputs, output_filter)
        wanted = check_outputs(self._servable.signature(signature), output_filter)
        if not self._can_log(signature, logs):
            return self._servable.run(signature, inputs, output_filter)
        with _places(logs) as places:
            found = self._servable.run(LOGGED[signature], inputs)
            at, of_user = time.time(), self._of_user()
            for log, place in zip(logs, places):
                ranked = served_record.Ranked(
                    self._request_id, at, self._servable.name, self._servable.version, inputs, found, of_user,
                    log.sample_rate,
                )  # fmt: skip
                place.fill(functools.partial(served_record.fields, ranked))
        return {name: found[name] for name in wanted}

    def _can_log(self, signature: str, logs: typing.Sequence[served_log.Log]) -> bool:
        """Returns whether a ranking of the version can be logged; else samples drop it, and other logs refuse it."""
        if LOGGED[signature] in self._servable.signatures:
            return True
        if any(log.sample_rate >= 1.0 for log in logs):
            raise errors.ServingError(
                errors.FAILED_PRECONDITION,
                f"Version {self._servable.version} of {self._servable.name} has no signature {LOGGED[signature]}, "
                "which the log of what is served needs. Export it again, or serve it without that log.",
            )
        for log in logs:
            log.counts["dropped"] += 1
        return False

    def _of_user(self) -> set[str]:
        """Returns the inputs of `rank` that are of one row, the user's."""
        inputs = self._servable.signature(next(iter(LOGGED))).inputs
        return {name for name, info in inputs.items() if info.tensor_shape.dim[0].size == 1}

    def _upsert(
        self, log: served_log.Log, inputs: dict[str, np.ndarray], output_filter: typing.Sequence[str]
    ) -> dict[str, np.ndarray]:
        with _places([log]) as (place,):
            found = self._servable.run(UPSERT, inputs, output_filter)
            at = time.time()
            place.fill(functools.partial(self._change, at, inputs))
        return found

    def _change(self, at: float, inputs: dict[str, np.ndarray]) -> dict[str, typing.Any]:
        return {
            "time": at, "model": self._servable.name, "version": self._servable.version,
            "modality": inputs["modality"].item().decode(),
            "encoder_version": inputs["encoder_version"].item().decode(),
            "ids": inputs["item_ids"], "sequences": inputs["sequences"], "scales": inputs["scales"],
            "rows": base64.b64encode(np.ascontiguousarray(inputs["rows"]).tobytes()).decode(),
        }  # fmt: skip


CHANGES = pa.schema(
    [
        ("time", pa.float64()), ("model", pa.string()), ("version", pa.int64()), ("modality", pa.string()),
        ("encoder_version", pa.string()), ("ids", pa.list_(pa.int64())), ("sequences", pa.list_(pa.int64())),
        ("scales", pa.list_(pa.float32())), ("rows", pa.string()),
    ]
)  # fmt: skip


def changes_table(records: typing.Sequence[typing.Mapping[str, typing.Any]]) -> pa.Table:
    """Returns changes, as they are logged, as a table."""
    return pa.table({field.name: pa.array([r[field.name] for r in records], field.type) for field in CHANGES}, CHANGES)


@contextlib.contextmanager
def _places(logs: typing.Sequence[served_log.Log]) -> typing.Iterator[list[served_log.Place]]:
    with contextlib.ExitStack() as stack:
        try:
            places = [stack.enter_context(log.place()) for log in logs]
        except served_log.FullError as error:
            raise errors.ServingError(
                errors.RESOURCE_EXHAUSTED, f"{error} Try again later; its disk or broker may be away or too slow."
            ) from error
        yield places
