"""A store of somebody's own: one pickle file, rewritten as a whole by every batch; slow, and all that is asked."""

import contextlib
import fcntl
import pathlib
import pickle
import time

import numpy as np

from tfmm.index import rows as rows_lib
from tfmm.index import store


class PickledStore(store.IndexStore):
    def __init__(self, url, *, create=True):
        self._path = pathlib.Path(url.removeprefix("pickled://"))
        if not create and not self._path.exists():
            raise FileNotFoundError(f"{self._path} does not exist.")
        self._path.parent.mkdir(parents=True, exist_ok=True)

    @property
    def url(self):
        return f"pickled://{self._path}"

    def close(self):
        pass

    def is_failing(self, error):
        return isinstance(error, OSError)

    def _read(self):
        if self._path.exists():
            return pickle.loads(self._path.read_bytes())
        return {"encoders": [], "rows": {}, "withdrawn": {}, "positions": {}, "letters": {}, "catalog": {},
                "id_types": {}, "sequence": int(time.time()) * 1_000_000}  # fmt: skip

    @contextlib.contextmanager
    def _writing(self):
        with open(f"{self._path}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            state = self._read()
            yield state
            new = self._path.with_suffix(".new")
            new.write_bytes(pickle.dumps(state))
            new.replace(self._path)

    def apply(self, batch):
        older = set()
        with self._writing() as state:
            changed = tuple(_write(state, table, older) for table in batch.rows)
            withdrawn = 0
            for item_id, event_time_us in batch.withdrawn:
                one = np.array([item_id]), np.zeros(1, np.float32), np.zeros(1, np.int64), np.array([event_time_us])
                for entry in state["encoders"]:
                    rows = rows_lib.IndexRows(one[0], np.zeros([1, entry.dim], np.int8), *one[1:])
                    withdrawn += _write(state, store.TableRows(entry.modality, entry.encoder_version, rows), older)
                state["withdrawn"][item_id] = max(event_time_us, state["withdrawn"].get(item_id, 0))
            for letter in map(store.storable, batch.dead_letters):
                state["letters"][letter[:3]] = letter.payload
            for source, position in batch.positions.items():
                state["positions"][source] = max(position, state["positions"].get(source, 0))
        return store.Applied(changed, withdrawn, tuple(sorted(older)))

    def newest_sequence(self):
        return self._read()["sequence"]

    def register_encoder(self, modality, encoder_version, dim, layout=""):
        with self._writing() as state:
            _register(state, modality, encoder_version, dim, layout)

    def activate(self, modality, encoder_version):
        with self._writing() as state:
            _entry(state, modality, encoder_version)
            state["encoders"] = [
                entry._replace(active=entry.encoder_version == encoder_version) if entry.modality == modality else entry
                for entry in state["encoders"]
            ]

    def forget(self, modality, encoder_version):
        with self._writing() as state:
            state["encoders"].remove(_entry(state, modality, encoder_version))
            state["catalog"].pop((modality, encoder_version), None)
            return len(state["rows"].pop((modality, encoder_version)))

    def encoders(self):
        return self._read()["encoders"]

    def changes(self, modality, encoder_version, after, limit=1024):
        found, dim = _records(self._read(), modality, encoder_version)
        later = sorted((record for record in found if record[3] > after), key=lambda record: record[3])
        return rows_lib.from_records(later[:limit], dim)

    def lag(self, modality, encoder_version, watermark):
        return len(self.changes(modality, encoder_version, watermark, limit=None))

    def snapshot(self, encoder_versions):
        state, result = self._read(), {}
        for modality, version in encoder_versions.items():
            found, dim = _records(state, modality, version)
            kept = sorted(record for record in found if record[2] != 0)
            watermark = max((record[3] for record in found), default=0)
            result[modality] = store.TableState(rows_lib.from_records(kept, dim), watermark)
        return result

    def position(self, source):
        return self._read()["positions"].get(source, 0)

    def id_types(self):
        return self._read()["id_types"]

    def keep_id_types(self, types):
        with self._writing() as state:
            for field, kind in types.items():
                if state["id_types"].setdefault(field, kind) != kind:
                    raise ValueError(
                        f"`{field}` of the catalog must be {state['id_types'][field]}, as in {self._path}. Received: "
                        f"{kind}. Write it in that type, or name another index."
                    )

    def dead_letters(self, source=None):
        letters = [store.DeadLetter(*key, payload) for key, payload in self._read()["letters"].items()]
        return sorted(letter for letter in letters if source in (None, letter.source))


def _register(state, modality, encoder_version, dim, layout=""):
    for entry in state["encoders"]:
        if (entry.modality, entry.encoder_version) == (modality, encoder_version):
            if entry.dim != dim:
                raise ValueError(f"`dim` must be {entry.dim}, as its rows. Received: {dim}.")
            return
    store.verify_dim(dim, layout)
    is_first = all(entry.modality != modality for entry in state["encoders"])
    state["encoders"].append(store.EncoderEntry(modality, encoder_version, dim, is_first, layout))
    state["rows"][modality, encoder_version] = {}


def _entry(state, modality, encoder_version):
    for entry in state["encoders"]:
        if (entry.modality, entry.encoder_version) == (modality, encoder_version):
            return entry
    known = [(entry.modality, entry.encoder_version) for entry in state["encoders"]]
    raise ValueError(f"`encoder_version` must be one of {known}. Received: {(modality, encoder_version)}.")


def _records(state, modality, encoder_version):
    dim = _entry(state, modality, encoder_version).dim
    return [(item_id, *record) for item_id, record in state["rows"][modality, encoder_version].items()], dim


def _write(state, table, older):
    own, changed = table.rows, 0
    _register(state, table.modality, table.encoder_version, own.rows.shape[1])
    rows = state["rows"][table.modality, table.encoder_version]
    given = np.ones(own.rows.shape, bool) if table.given is None else table.given
    catalog_times_us = [0] * len(own) if table.catalog_times_us is None else table.catalog_times_us.tolist()
    said = state["catalog"].setdefault((table.modality, table.encoder_version), {})
    for item_id, row, scale, event_time_us, is_given, catalog_time_us in zip(
        own.ids.tolist(), own.rows, own.scales.tolist(), own.event_times_us.tolist(), given, catalog_times_us
    ):
        old = rows.get(item_id)
        if catalog_time_us:
            last, said[item_id] = said.get(item_id), row.tobytes()
            if last not in (None, said[item_id]) and (old[1] if old else item_id not in state["withdrawn"]):
                event_time_us = max(event_time_us, catalog_time_us)
        if old and old[1]:
            row = np.where(is_given, row, np.frombuffer(old[0], np.int8))
        known_us = max(state["withdrawn"].get(item_id, -1), old[3] if old else -1)
        older |= {item_id} if event_time_us < known_us else set()
        if event_time_us <= state["withdrawn"].get(item_id, -1) or (old and old[3] > event_time_us):
            continue
        if old and old[:2] == (row.tobytes(), scale):
            rows[item_id] = (*old[:3], event_time_us)
            continue
        state["sequence"] += 1
        changed += 1
        rows[item_id] = (row.tobytes(), scale, state["sequence"], event_time_us)
    return changed
