"""A bounded pool for model calls: one runs per core, a limited number wait, the rest are refused."""

from __future__ import annotations

import asyncio
import concurrent.futures
import typing

from serving.model_server import errors

T = typing.TypeVar("T")


class Executor:
    """Runs blocking calls beside the event loop, which alone may call `submit`."""

    def __init__(self, num_threads: int, max_waiting: int):
        self._pool = concurrent.futures.ThreadPoolExecutor(num_threads, thread_name_prefix="predict")
        self._num_threads = num_threads
        self._limit = num_threads + max_waiting
        self._held = 0

    @property
    def running(self) -> int:
        """Calls that run."""
        return min(self._held, self._num_threads)

    @property
    def waiting(self) -> int:
        """Calls that wait for a thread."""
        return self._held - self.running

    async def submit(self, call: typing.Callable[..., T], *arguments: typing.Any) -> T:
        """Awaits `call(*arguments)`; a caller that goes away while waiting takes its call with it.

        Raises:
            ServingError: RESOURCE_EXHAUSTED where too many calls wait already.
        """
        if self._held >= self._limit:
            raise errors.ServingError(
                errors.RESOURCE_EXHAUSTED,
                f"{self._held} requests wait already; try again later or add a replica.",
            )
        loop = asyncio.get_running_loop()
        future = self._pool.submit(call, *arguments)
        self._held += 1
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._release))
        return await asyncio.wrap_future(future)

    def _release(self) -> None:
        self._held -= 1

    def close(self) -> None:
        self._pool.shutdown(wait=True)
