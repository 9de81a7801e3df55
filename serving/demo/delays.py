"""How long items wait from their event until a server scores them by their content."""

from __future__ import annotations

import collections
import logging
import threading
import time
import typing

import numpy as np

from serving import client as client_lib
from tfmm.export.signatures import POINTWISE
from tfmm.features import FeatureSet

UNKNOWN_ID = -7  # of no item: an id that neither a vocabulary nor the index has
_AT_ONCE = 128  # items per look
_POLL_S = 0.01
_LATE_S = 60.0  # then an item counts as lost
_MIN_CHANGE = 1e-5  # of a logit: more than what another place in a batch does to it, however small the score
_log = logging.getLogger(__name__)

Values = typing.Mapping[str, typing.Any]


class ScoreWatch(threading.Thread):
    """Asks a server for the scores of new items again and again, each beside a twin that nobody knows.

    The twin has the same features and another id, so while the index does not have the item both score alike, whatever
    version answers; the first answer in which they differ ends the item's wait.

    Args:
        client: of the server.
        feature_set: of its model.
        user: the user side of the request, see `RankingClient.rank`.
    """

    def __init__(self, client: client_lib.RankingClient, feature_set: FeatureSet, user: Values):
        super().__init__(name="scores of new items", daemon=True)
        self._client, self._feature_set, self._user = client, feature_set, user
        self._waiting: collections.deque[tuple[Values, float]] = collections.deque()
        self._stop_requested = threading.Event()
        self.delays: list[tuple[float, float]] = []  # when a wait ended, monotonic, and its seconds
        self.lost, self.fault = 0, ""  # the fault that ended the watch, if one did

    @property
    def waiting(self) -> int:
        """How many items are not scored by their content yet."""
        return len(self._waiting)

    def add(self, candidate: Values, sent: float) -> None:
        """Takes an item.

        Args:
            candidate: one value by column of the candidate side.
            sent: when its event was on its way, by the monotonic clock.
        """
        self._waiting.append((candidate, sent))

    def since(self, moment: float) -> np.ndarray:
        """Returns the delays of the waits that ended after a moment of the monotonic clock, float [n], seconds."""
        return np.array([seconds for at, seconds in [*self.delays] if at >= moment])

    def stop(self) -> None:
        self._stop_requested.set()
        self.join()

    def run(self) -> None:
        while not self._stop_requested.wait(_POLL_S):
            if not self._waiting:
                continue
            try:
                self._look()
            except client_lib.PredictError as error:
                _log.warning("new items cannot be scored, and are tried again: %s", error)
            except Exception as error:  # whoever shows the delays ends on it
                self.fault = repr(error)
                _log.exception("scores of new items")
                return

    def _look(self) -> None:
        some = [self._waiting.popleft() for _ in range(min(len(self._waiting), _AT_ONCE))]
        try:  # by the signature whose requests no log takes
            logits = self._client.predict(self._rows([candidate for candidate, _ in some]), POINTWISE)["logit"]
        except BaseException:
            self._waiting.extend(some)
            raise
        now = time.monotonic()
        is_known = np.abs(logits[: len(some)] - logits[len(some) :]) > _MIN_CHANGE
        left = []
        for one, known in zip(some, is_known.tolist()):
            if known:
                self.delays.append((now, now - one[1]))
            elif now - one[1] > _LATE_S:
                self.lost += 1
            else:
                left.append(one)
        self._waiting.extend(left)  # behind those that were not looked at yet, whose turn it is

    def _rows(self, candidates: typing.Sequence[Values]) -> dict[str, np.ndarray]:
        """Returns the tensors of items and then of their twins, a row each."""
        rows = [*candidates, *({**candidate, "item_id": UNKNOWN_ID} for candidate in candidates)]
        result = {}
        for column in self._feature_set.served:
            values = [self._user[column.name] if column.side == "user" else row[column.name] for row in rows]
            wanted = client_lib.Input(np.float32 if column.is_float else np.int64, bool(column.shape), False)
            result[column.name] = client_lib.as_tensor(values, wanted, column.name)
        return result
