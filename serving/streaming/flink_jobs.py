"""Jobs of a Flink cluster, by its REST interface. Beam's job server can start them, but not end them."""

from __future__ import annotations

import json
import time
import typing
import urllib.request

GOES_ON = ("INITIALIZING", "CREATED", "RUNNING", "FAILING", "CANCELLING", "RESTARTING", "RECONCILING")
TIMEOUT_S = 10.0
_LOOK_S = 0.2


class FlinkJobs:
    """The jobs of one name.

    Args:
        master: host:port of the REST interface, as Beam's `--flink_master`; `http://` or `https://` may stand before.
        name: of the jobs.
    """

    def __init__(self, master: str, name: str):
        self._url, self._name = master if "://" in master else f"http://{master}", name

    def running(self) -> list[str]:
        """Returns the ids of the jobs that go on.

        Raises:
            OSError: nothing answers, or not as Flink does.
        """
        jobs = self._ask("GET", "/jobs/overview")["jobs"]
        return [job["jid"] for job in jobs if job["name"] == self._name and job["state"] in GOES_ON]

    def cancel(self, within_s: float) -> int:
        """Cancels the jobs and waits until they have ended; returns their number.

        Raises:
            OSError: nothing answers, or not as Flink does.
            RuntimeError: they did not end in time.
        """
        found = self.running()
        for job in found:
            self._ask("PATCH", f"/jobs/{job}?mode=cancel")
        end = time.monotonic() + within_s
        while still := self.running():
            if time.monotonic() > end:
                raise RuntimeError(f"Flink at {self._url} did not end jobs within {within_s:g} s: {', '.join(still)}")
            time.sleep(_LOOK_S)
        return len(found)

    def _ask(self, method: str, path: str) -> dict[str, typing.Any]:
        request = urllib.request.Request(f"{self._url}{path}", method=method)
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            return json.loads(answer.read() or b"{}")
