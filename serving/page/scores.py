"""An item's score with and without its vectors, asked of a server in service."""

from __future__ import annotations

import functools
import pathlib
import time
import typing

import numpy as np

from serving.stored_client import StoredRankingClient
from tfmm import vectors
from tfmm.data import served
from tfmm.export import signatures
from tfmm.features import FeatureSet
from tfmm.quickstart import requests
from tfmm_client.replicas import Deadline, Replica
from tfmm_client.steps import Flow

User = dict[str, typing.Any]
_USER_S = 60.0  # after which another request of the log is taken


class Scores(typing.NamedTuple):
    """Click probabilities of one item for one user."""

    without: float  # with its vectors hidden: before they arrived
    with_: float  # with those of the index: after
    served: float  # with those that the server has


class ScoringClient(StoredRankingClient):
    """Scores in three ways; none of them is a ranking, so that no log of what is served has it."""

    def scores(self, user: User, item_id: int | str, others: typing.Mapping[str, list[typing.Any]]) -> Scores:
        """Returns an item's scores.

        Args:
            user: the user's side of a request.
            item_id: the item.
            others: of the item, what the index cannot bring; what is not there is missing.
        """
        ask = functools.partial(self._scores_at, user, item_id, others)
        return self._run(self._over_replicas(ask, None))

    def _scores_at(
        self,
        user: User,
        item_id: int | str,
        others: typing.Mapping[str, list[typing.Any]],
        replica: Replica,
        deadline: Deadline,
    ) -> Flow[Scores]:
        model = yield from self._model(replica, None, self._refresh_s, deadline)
        brought = {column.name for named in self._left_out((), model).values() for column in named}
        own = {name: value for name, value in user.items() if name in model.inputs}
        own = {name: value for name, value in own.items() if _is_given(value, model.inputs[name].dtype)}
        asked_of = [name for name, one in model.inputs.items() if not one.is_user and name not in {*brought, "item_id"}]
        candidate = {"item_id": [item_id], **{name: others.get(name, [None]) for name in asked_of}}
        inputs = self._complete(own, candidate, model)
        hidden = dict(inputs)
        for modality in model.encoders:
            for name in vectors.names(modality, vectors.TARGET):
                hidden[name] = np.zeros_like(inputs[name])
        plain = {name: values for name, values in inputs.items() if name in model.inputs}
        found = []
        for name, values in ((signatures.VECTORS, hidden), (signatures.VECTORS, inputs), (signatures.POINTWISE, plain)):
            answer = yield from self._grpc.predict(replica, name, values, model.number, deadline, ("score",))
            found.append(float(answer.outputs["score"].ravel()[0]))
        return Scores(*found)


class Scorer:
    """Asks for scores of items, for a user that a logged request or the tables give.

    Args:
        shown: what the server is called on the page.
        connect: opens a client of the server, with the index and the run's features.
        feature_set: of the run.
        served_dir: a log of what was served: its newest request is asked again; None: not read.
        data_dir: the tables: the user with most behaviors; None: not read.
        time_zone: of the tables' times that name none.

    Attributes:
        chosen_at: monotonic seconds, when the user was chosen.
        user_text: whom scores are for.
    """

    def __init__(
        self,
        shown: str,
        connect: typing.Callable[[], ScoringClient],
        feature_set: FeatureSet,
        served_dir: pathlib.Path | None,
        data_dir: pathlib.Path | None,
        time_zone: str = "UTC",
    ) -> None:
        self.shown, self._connect, self._feature_set = shown, connect, feature_set
        self._client: ScoringClient | None = None
        self._served_dir, self._data_dir, self._time_zone = served_dir, data_dir, time_zone
        self._user: User = {}
        self._others: dict[str, list[typing.Any]] = {}
        self.chosen_at = -_USER_S
        self.user_text = ""

    def scores(self, item_id: int | str) -> Scores:
        """Returns an item's scores.

        Raises:
            PredictError: the server refuses, or does not answer.
            ValueError, OSError: there is no user, no index, or the model wants what neither has.
        """
        if self._client is None:
            self._client = self._connect()
        return self._client.scores(self._user, item_id, self._others)

    def refresh(self) -> None:
        """Chooses the user, where it was not chosen yet, or some time ago."""
        if time.monotonic() - self.chosen_at < _USER_S:
            return
        record = None if self._served_dir is None else newest_record(self._served_dir)
        if record is not None:
            self._user, self._others = _as_request(record, self._feature_set)
            self.user_text = f"request {record.request_id} again"
        elif self._data_dir is not None and not self._user:
            self._user = requests.busiest_user(self._data_dir, self._feature_set, self._time_zone)
            self.user_text = f"user {self._user['user_id']}, who has most behaviors"
        elif not self._user:
            raise ValueError("no request is logged yet (--served), and no tables are named (--data)")
        self.chosen_at = time.monotonic()


def newest_record(folder: pathlib.Path) -> served.Served | None:
    """Returns a request of the newest file of a log; None where there is no file yet, or none can be read."""
    for path in reversed(served.files(folder)):
        for payload in served.payloads(path):
            try:
                return served.parse(payload)
            except ValueError:  # another kind of record stands among them
                continue
    return None


def _as_request(record: served.Served, feature_set: FeatureSet) -> tuple[User, dict[str, list[typing.Any]]]:
    """Returns the user's side of a logged request, and of the items' what no index has, as the first of them has it."""
    stored = {feature.name for feature in feature_set.stored}
    user, others = {}, {}
    for column in feature_set.served:
        value = record.features.get(column.name)
        if value is not None and column.side == "user":
            user[column.name] = value
        elif value is not None and column.feature.name not in stored and column.name != "item_id":
            others[column.name] = value[:1]
    return user, others


def _is_given(value: typing.Any, dtype: type) -> bool:
    """Returns whether a logged value is what a request gave; a text that a model looked up stands as a fingerprint."""
    values = value if isinstance(value, list) else [value]
    return dtype is not object or not any(isinstance(one, int) for one in values)
