"""Ranking where the catalog is larger than a server's memory: the client looks items up in the index.

    index = store.open_store("redis://127.0.0.1:6379/0?prefix=items")
    with StoredRankingClient("127.0.0.1:8500", index=index) as client:
        scores = client.rank({"user_id": 7, "behavior_item_ids": [3, 5]}, {"item_id": [11, 12]})

`AsyncStoredRankingClient` is the same for callers with asyncio.
"""

from __future__ import annotations

import functools
import threading
import time
import typing

import numpy as np

from tfmm import fingerprints, vectors
from tfmm.export import signatures
from tfmm.features import STORED, FeatureSet
from tfmm.index import item_features, store
from tfmm_client import AsyncRankingClient, NotFound, RankingClient
from tfmm_client.caller import Caller, Candidates, User
from tfmm_client.inputs import RANK, Inputs, Value, rank_request
from tfmm_client.replicas import Addresses, Deadline, Replica
from tfmm_client.steps import Flow, Wait, Work
from tfmm_client.versions import Version
from tfmm_client.ways import Arrays, Way

DEFAULT_FEATURES = FeatureSet()
_WAIT_S = 0.005  # until it is looked again whether another call is done


class _Model(typing.NamedTuple):
    """A version in service, and what it needs of the index."""

    number: int
    inputs: Inputs  # of `rank`
    encoders: dict[str, str]  # version by modality
    layout: item_features.Layout | None  # of the features that the index has
    known_at: float  # monotonic seconds


class _Stored(Caller):
    """What both clients of a store do; see `StoredRankingClient`."""

    def __init__(
        self,
        target: Addresses,
        rest_url: Addresses = None,
        model_name: str = "tfmm",
        *,
        index: store.IndexStore,
        feature_set: FeatureSet = DEFAULT_FEATURES,
        refresh_s: float = 2.0,
        **options: typing.Any,
    ):
        super().__init__(target, rest_url, model_name, **options)
        self._index, self._feature_set, self._refresh_s = index, feature_set, refresh_s
        self._models: dict[tuple[Replica, Version], _Model] = {}
        self._learning = {replica: threading.Lock() for replica in self._turns.replicas}
        self._sides = {vectors.TARGET: "item_id"} | {s.name: s.item_ids for s in feature_set.sequences}

    def _rank_at(
        self,
        user: User,
        candidates: Candidates,
        version: Version,
        way: Way,
        asked: str,
        refusals: list[typing.Any],
        replica: Replica,
        deadline: Deadline,
    ) -> Flow[Arrays]:
        if asked != RANK:
            raise ValueError(
                f"`{asked}` reads vectors in the model's own tables, and this client's models have none. Received: a "
                "client of a store. Ask a model that holds its items, by RankingClient."
            )
        try:
            model = yield from self._model(replica, version, self._refresh_s, deadline)
            return (yield from self._score(user, candidates, model, way, replica, deadline))
        except NotFound:  # a version that is no longer in service, or went while it was asked about
            model = yield from self._model(replica, version, 0.0, deadline)
        return (yield from self._score(user, candidates, model, way, replica, deadline))

    def _score(
        self, user: User, candidates: Candidates, model: _Model, way: Way, replica: Replica, deadline: Deadline
    ) -> Flow[Arrays]:
        inputs = yield Work(functools.partial(self._complete, user, candidates, model), deadline.left_s())
        answer = yield from way.predict(replica, signatures.VECTORS, inputs, model.number, deadline, ("score",))
        return answer.outputs

    def _model(self, replica: Replica, version: Version, refresh_s: float, deadline: Deadline) -> Flow[_Model]:
        lock, known = self._learning[replica], self._models.get((replica, version))
        is_usable = known is not None and refresh_s > 0  # while another call asks for it anew
        began = time.monotonic()
        while not lock.acquire(blocking=False):
            if known is not None and is_usable:
                return known
            yield Wait(min(_WAIT_S, deadline.left_s()))
        try:
            known = self._models.get((replica, version))
            if known is None or (known.known_at < began and time.monotonic() - known.known_at >= refresh_s):
                known = self._models[replica, version] = yield from self._learn(replica, version, deadline)
            return known
        finally:
            lock.release()

    def _learn(self, replica: Replica, version: Version, deadline: Deadline) -> Flow[_Model]:
        found_at = time.monotonic()
        number, inputs = yield from self._grpc.known(replica, version, deadline)
        status = (yield from self._grpc.predict(replica, signatures.STATUS, {}, number, deadline)).outputs
        pairs = zip(status["modality"].tolist(), status["encoder_version"].tolist())
        encoders = {modality.decode(): encoder.decode() for modality, encoder in pairs}
        encoders.pop(STORED, None)
        entry = yield Work(self._index.active_features, deadline.left_s())
        layout = None if entry is None else item_features.from_text(entry.layout)
        return _Model(number, inputs, encoders, layout, found_at)

    def _complete(
        self, user: typing.Mapping[str, Value], candidates: typing.Mapping[str, typing.Any], model: _Model
    ) -> dict[str, np.ndarray]:
        """Returns the inputs of `score_vectors`: those given, and what the index has of the items.

        Raises:
            ValueError: as `rank_request`; or the model's encoder is not in the index.
        """
        columns = self._left_out({*user, *candidates}, model)
        optional = {column.name for named in columns.values() for column in named}
        wanted = {name: one._replace(is_optional=name in optional) for name, one in model.inputs.items()}
        inputs = rank_request(user, candidates, wanted)[1]
        inputs = {name: values for name, values in inputs.items() if name not in optional}
        ids = {name: fingerprints.fingerprint(inputs[name]) for name in self._sides.values()}
        flat = np.concatenate([values.ravel() for values in ids.values()])
        unique, places = np.unique(flat, return_inverse=True)
        asked = model.encoders | ({STORED: model.layout.version} if columns and model.layout else {})
        found = self._index.look_up(asked, unique)
        ends = np.cumsum([values.size for values in ids.values()])[:-1]
        of_ids = {name: own.reshape(ids[name].shape) for name, own in zip(ids, np.split(places, ends))}
        for modality in model.encoders:
            for side, name in self._sides.items():
                own = vectors.Vectors(*(part[of_ids[name]] for part in found[modality]))
                inputs |= vectors.named(modality, side, own)
        if columns and model.layout:
            values = model.layout.unpack(found[STORED].rows)
            has_row = found[STORED].mask
            for name, named in columns.items():
                for column in named:
                    inputs[column.name] = _gathered(values[column.feature.name], has_row, of_ids[name])
        return inputs

    def _left_out(self, given: typing.Collection[str], model: _Model) -> dict[str, list[typing.Any]]:
        """Returns the columns that the index can bring, by that of the items' ids, as far as they are not given.

        Ids of text are fingerprints in the index, so that the caller brings them.
        """
        if model.layout is None:
            return {}
        names = [f.name for f in model.layout.features if model.layout.id_types.get(f.name) != "string"]
        found = signatures.stored_columns(self._feature_set, names)
        left = {ids: [c for c in named if c.name not in given] for ids, named in found.items()}
        return {ids: named for ids, named in left.items() if named}


class StoredRankingClient(_Stored, RankingClient):
    """As `RankingClient`, for models without rows inside (`ExportConfig.with_items`): it brings them from the index.

    A call looks the vectors of candidates and behaviors up, by the encoders that the model was made with, and those of
    the items' features that the request leaves out, in one round trip to Redis; then it calls `score_vectors` of the
    very version that it looked up for, so that no score mixes encoders. New items are scored as soon as the index has
    them, and there is no replicator. Calls from several threads are safe.

    Args:
        target, rest_url, model_name, options: as `RankingClient` takes them.
        index: the item index; in Redis, so that clients on several machines share it.
        feature_set: as the model's run declares it.
        refresh_s: how long a label, or the newest version, is taken to be the same.
    """


class AsyncStoredRankingClient(_Stored, AsyncRankingClient):
    """As `StoredRankingClient`, its calls awaited; the index is asked in threads, so that the event loop goes on."""


def _gathered(values: np.ndarray, has_row: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Returns the values of items by their places among all that were looked up; missing where there is no row."""
    missing = np.nan if values.dtype.kind == "f" else 0
    known = np.where(has_row.reshape(-1, *[1] * (values.ndim - 1)), values, missing).astype(values.dtype)
    return known[places]
