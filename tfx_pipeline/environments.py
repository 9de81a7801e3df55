"""Where a run of the DAG finds its data, index and model folders.

The stock `tfx` command passes nothing to a pipeline file, so a run is described by three variables:

- `TFMM_WORKDIR`: everything that the run writes; default `tfmm_workdir` in the current folder.
- `TFMM_DATA`: a folder of Parquet tables (`tfmm data schema`); without it the DAG makes the synthetic marketplace.
- `TFMM_RUN`: what `tfmm.runs.load` takes: a preset, module:function, or a file; default the preset `small`.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import importlib.util
import json
import os
import pathlib
import typing

import tfmm
from tfmm import config as config_lib
from tfmm import plain_paths, runs
from tfmm.data import layout, schema, unread

PIPELINE_NAME = "tfmm"
MODEL_NAME = "tfmm"
_ROOT = pathlib.Path(tfmm.__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Environment:
    """The folders and the settings of one run.

    Raises:
        ValueError: TFX would take the workdir for a pattern.
    """

    workdir: pathlib.Path
    data_dir: pathlib.Path | None
    config: config_lib.RunConfig

    def __post_init__(self) -> None:
        if plain_paths.is_pattern(self.workdir):
            raise ValueError(
                f"The workdir must have none of {' '.join(plain_paths.PATTERN)} in its path: TFX takes such names for "
                f"patterns. Received: {self.workdir}. Name another folder; stages by hand (`tfmm pretrain`, `tfmm "
                "embed`, `tfmm train`) take any."
            )

    @classmethod
    def from_variables(cls, variables: typing.Mapping[str, str] = os.environ) -> Environment:
        """Reads TFMM_WORKDIR, TFMM_DATA and TFMM_RUN."""
        data = variables.get("TFMM_DATA")
        return cls(
            workdir=pathlib.Path(variables.get("TFMM_WORKDIR", "tfmm_workdir")).resolve(),
            data_dir=pathlib.Path(data).resolve() if data else None,
            config=runs.load(variables.get("TFMM_RUN") or "small"),
        )

    def to_variables(self) -> dict[str, str]:
        """Writes the settings to `run.json` in the workdir; returns the variables that describe this run."""
        self.workdir.mkdir(parents=True, exist_ok=True)
        run = self.workdir / "run.json"
        run.write_text(json.dumps(config_lib.to_dict(self.config), indent=2) + "\n")
        data = "" if self.data_dir is None else str(self.data_dir)  # "" hides one that the shell has
        return {"TFMM_WORKDIR": str(self.workdir), "TFMM_RUN": str(run), "TFMM_DATA": data}

    @property
    def pipeline_root(self) -> pathlib.Path:
        return self.workdir / "pipeline"

    @property
    def metadata_path(self) -> pathlib.Path:
        return self.workdir / "metadata.sqlite"

    @property
    def index_path(self) -> pathlib.Path:
        return self.workdir / "index" / "items.sqlite"

    @property
    def serving_dir(self) -> pathlib.Path:
        return self.workdir / "serving" / MODEL_NAME

    @property
    def checkpoint_dir(self) -> pathlib.Path:
        return self.workdir / "checkpoints"

    @property
    def progress_path(self) -> pathlib.Path:
        return self.workdir / "progress.jsonl"


def data_fingerprint(data_dir: pathlib.Path, tables: schema.Tables = schema.TABLES) -> str:
    """Returns a hash of the names, sizes and times of the tables' files, and of the names of what is not read.

    When it changes, the DAG runs anew. Files behind links count as those in the folder.
    """
    facts: list[tuple[typing.Any, ...]] = [(found.what, found.count) for found in unread.of_folder(data_dir, tables)]
    for name in tables:
        facts += [(found.what, found.count) for found in layout.unread_files(data_dir, name)]
        for part in schema.table_parts(data_dir, name, tables):
            status = os.stat(part.path)
            facts.append((os.path.relpath(part.path, data_dir), status.st_size, status.st_mtime_ns))
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def code_fingerprint(*packages: str) -> str:
    """Returns a hash of the source of packages, so that TFX's cache never answers for code that has changed.

    Args:
        *packages: dotted names of modules or packages, such as `"tfmm.data"`.
    """
    digest = hashlib.sha256()
    for package in packages:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise ValueError(f"`packages` must name importable modules. Received: {package!r}.")
        origin = pathlib.Path(spec.origin)
        is_package = origin.name == "__init__.py" and not package.endswith(".__init__")
        files = sorted(origin.parent.rglob("*.py")) if is_package else [origin]
        for path in files:
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def imported_modules(*packages: str) -> list[str]:
    """Returns the modules of packages and all of tfmm's that they import, in functions too, sorted.

    Args:
        *packages: their dotted names, such as `"tfmm.make"`.
    """
    waiting = [path for package in packages for path in (_ROOT / package.replace(".", "/")).rglob("*.py")]
    found: set[pathlib.Path] = set()
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += _imports(path)
    return sorted(".".join(path.relative_to(_ROOT).with_suffix("").parts) for path in found)


@functools.cache
def _imports(path: pathlib.Path) -> tuple[pathlib.Path, ...]:
    """Returns the files of tfmm that a file imports when it runs."""
    names: list[str] = []
    waiting: list[ast.AST] = [ast.parse(path.read_text("utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif not (isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")):
            waiting += ast.iter_child_nodes(node)
    parts = [name.split(".") for name in names if name.partition(".")[0] == "tfmm"]
    places = [_ROOT.joinpath(*name[:depth]) for name in parts for depth in range(1, len(name) + 1)]
    files = [file for place in places for file in (place.with_suffix(".py"), place / "__init__.py")]
    return tuple(file for file in files if file.is_file())


def newest_version(serving_dir: str | pathlib.Path) -> pathlib.Path | None:
    """Returns the newest complete model version (its saved_model.pb is copied last), or None."""
    versions = [
        path.parent for path in pathlib.Path(serving_dir).glob("*/saved_model.pb") if path.parent.name.isdigit()
    ]
    return max(versions, key=lambda path: int(path.name), default=None)


def latest_outputs(metadata_path: pathlib.Path) -> dict[str, str]:
    """Returns what each node gave the last time that it ran or was answered by the cache, as {"Node.output": uri}."""
    from ml_metadata import metadata_store
    from ml_metadata.proto import metadata_store_pb2

    protos: typing.Any = metadata_store_pb2
    connection = protos.ConnectionConfig()
    connection.sqlite.filename_uri = str(metadata_path)
    connection.sqlite.connection_mode = protos.SqliteMetadataSourceConfig.READONLY
    store = metadata_store.MetadataStore(connection)
    finished = (protos.Execution.COMPLETE, protos.Execution.CACHED)
    executions = [e.id for e in store.get_executions() if e.last_known_state in finished]
    uris = {artifact.id: artifact.uri for artifact in store.get_artifacts()}
    events = [e for e in store.get_events_by_execution_ids(executions) if e.type == protos.Event.OUTPUT]
    outputs = {}
    for event in sorted(events, key=lambda e: e.execution_id):
        parts = pathlib.PurePath(uris[event.artifact_id]).parts  # .../<node>/<output>/<execution>
        outputs[".".join(parts[-3:-1])] = uris[event.artifact_id]
    return outputs
