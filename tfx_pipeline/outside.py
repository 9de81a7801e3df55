"""What nodes leave outside of artifacts, the item index and the folder of versions, as a part of their cache's keys.

TFX's cache answers for a node that once made the same of the same, also where something else was put in the place of it
since, or nothing is there any more. So nodes that write outside are given a stamp. It stays as it is while what the
node's last execution left still stands, and that execution was of the same recipe; otherwise it is a new one, and the
node works again.
"""

from __future__ import annotations

import functools
import json
import pathlib
import typing
import uuid

from tfmm import artifacts
from tfmm.index import snapshot, store
from tfx_pipeline import metadata
from tfx_pipeline.environments import Environment, newest_version

CATALOG, PUSHER = "CatalogEmbedder", "Pusher"  # the nodes that write outside
STAMP = "stamp"  # a parameter of theirs
_NONE = "none"  # the version in service where there is none


class AnyStamps(typing.Protocol):
    """What gives the nodes that write outside their stamps, by JSON values that say what they will be given."""

    def of_index(self, *recipe: object) -> str: ...

    def of_serving(self, *recipe: object) -> str: ...


class NewStamps:
    """Stamps of an engine whose metadata are not at hand: the nodes that write outside work in every run."""

    def __init__(self) -> None:
        self._stamp = uuid.uuid4().hex

    def of_index(self, *recipe: object) -> str:
        return f"{artifacts.fingerprint(*recipe)}:{self._stamp}"

    of_serving = of_index


class Stamps:
    """The stamps of one run, by what its environment and the runs before left.

    Args:
        environment: of the run that is built.
    """

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    @functools.cached_property
    def _executions(self) -> list[metadata.Execution]:
        return metadata.executions(self._environment.metadata_path)

    def of_index(self, *recipe: object) -> str:
        """Returns the stamp of the node that fills the index.

        Args:
            *recipe: JSON values that say what it will be given.
        """
        last = metadata.last_of(self._executions, CATALOG)
        fresh = 0 if last is None else last.id
        stands = last is not None and all(index_holds(self._environment.index_url, one.uri) for one in last.outputs)
        return self._stamp(last if stands else None, recipe, fresh)

    def of_serving(self, *recipe: object) -> str:
        """Returns the stamp of the nodes that judge a model against the one in service, and push it."""
        last = metadata.last_of(self._executions, PUSHER)
        newest = newest_version(self._environment.serving_dir)
        name = _NONE if newest is None else newest.name
        fresh = f"{name}.{0 if last is None else last.id}"
        stands = last is not None and _left(last) == name
        return self._stamp(last if stands else None, recipe, fresh)

    def _stamp(self, standing: metadata.Execution | None, recipe: tuple[object, ...], fresh: object) -> str:
        digest = artifacts.fingerprint(*recipe)
        before = "" if standing is None else stamp_of(standing)
        return before if before.partition(":")[0] == digest else f"{digest}:{fresh}"


def stamp_of(execution: metadata.Execution) -> str:
    """Returns the stamp that an execution was given; "": none, by an earlier version of tfmm."""
    given = execution.parameters
    return str((json.loads(given["custom_config"]) or {} if "custom_config" in given else given).get(STAMP, ""))


def index_holds(index_url: str, snapshot_uri: str) -> bool:
    """Returns whether the index still is the one that a snapshot was taken of, grown or not.

    Of one that was made anew every row is newer than the snapshot; one that was restored is behind it.
    """
    snapshot_dir = pathlib.Path(snapshot_uri)
    if not (snapshot_dir / artifacts.MANIFEST).exists():
        return False
    manifest = artifacts.read_manifest(snapshot_dir, snapshot.KIND)
    tables = dict(manifest["modalities"])
    if features := manifest.get("features"):
        tables[snapshot.STORED] = features
    try:
        opened = store.open_store(index_url, create=False)
    except FileNotFoundError:
        return False
    with opened as index:
        active = {(entry.modality, entry.encoder_version) for entry in index.encoders() if entry.active}
        return index.newest_sequence() >= max(facts["watermark"] for facts in tables.values()) and all(
            (name, facts["encoder_version"]) in active and _has_rows_of(index, name, facts)
            for name, facts in tables.items()
        )


def _has_rows_of(index: store.IndexStore, name: str, facts: typing.Mapping[str, typing.Any]) -> bool:
    oldest = index.changes(name, facts["encoder_version"], after=0, limit=1)
    return not facts["size"] or (len(oldest) > 0 and int(oldest.sequences[0]) <= facts["watermark"])


def _left(last: metadata.Execution) -> str:
    """Returns the version that was in service when a Pusher had ended."""
    pushed = [found for model in last.outputs if (found := model.properties.get("pushed_version"))]
    return str(pushed[0]) if pushed else stamp_of(last).partition(":")[2].partition(".")[0]
