"""Where a run of the DAG finds its data, index and model folders.

The stock `tfx` command passes nothing to a pipeline file, so a run is described by variables:

- `TFMM_WORKDIR`: everything that the run writes; default `tfmm_workdir` in the current folder.
- `TFMM_DATA`: a folder of Parquet tables (`tfmm data schema`); without it the DAG makes the synthetic marketplace.
- `TFMM_INDEX`: the item index, a path or a URL; default `index/items.sqlite` in the workdir.
- `TFMM_RUN`: what `tfmm.runs.load` takes: a preset, module:function, or a file; default the preset `small`.
- `TFMM_BEAM`: options of Beam, which name the engine of its nodes (`tfmm.beam`); default this process.
- `TFMM_MOUNT`: a folder that workers on other machines see under the same path; default none.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import shlex
import typing
import urllib.parse

from tfmm import beam as beam_lib
from tfmm import buckets, registered, runs
from tfmm import config as config_lib
from tfmm.data import layout, schema, unread
from tfmm.index import store
from tfmm.stages import run_file
from tfx_pipeline import engines, metadata
from tfx_pipeline import workdir as workdir_lib

INDEX = "TFMM_INDEX"
PIPELINE_NAME = "tfmm"
MODEL_NAME = "tfmm"
ENCODERS, STATISTICS, ANOMALIES = "encoders", "statistics", "anomalies"  # links, see `tfx_pipeline.published`


@dataclasses.dataclass(frozen=True)
class Environment:
    """The folders and the settings of one run.

    Raises:
        ValueError: TFX would take the workdir for a pattern; the index's URL is of no kind that is known, or holds a
            password.
    """

    workdir: pathlib.Path
    data_dir: pathlib.Path | str | None  # a str where it is the URL of one in a bucket
    config: config_lib.RunConfig
    beam: tuple[str, ...] = beam_lib.LOCAL
    mount: str = ""  # a folder that workers on other machines see under the same path; "": none
    index: str = ""  # the item index, a path or a URL; "": a file in the workdir

    def __post_init__(self) -> None:
        workdir_lib.verify(self.workdir)
        _verify_index(self.index)

    @classmethod
    def from_variables(cls, variables: typing.Mapping[str, str] = os.environ) -> Environment:
        """Reads TFMM_WORKDIR, TFMM_DATA, TFMM_INDEX, TFMM_RUN, TFMM_BEAM and TFMM_MOUNT."""
        data, index = variables.get("TFMM_DATA", ""), variables.get(INDEX, "")
        return cls(
            workdir=workdir_lib.named(variables),
            data_dir=data if buckets.is_url(data) else pathlib.Path(data).resolve() if data else None,
            config=runs.load(variables.get("TFMM_RUN") or "small"),
            beam=beam_lib.named(variables),
            mount=variables.get(engines.MOUNT, ""),
            index=registered.absolute(index) if index else "",
        )

    def to_variables(self) -> dict[str, str]:
        """Writes the settings to `run.json` in the workdir; returns the variables that describe this run."""
        self.write_run()
        data = "" if self.data_dir is None else str(self.data_dir)  # "" hides one that the shell has
        return {
            workdir_lib.VARIABLE: str(self.workdir),
            "TFMM_RUN": str(self.run_path),
            "TFMM_DATA": data,
            beam_lib.VARIABLE: shlex.join(self.beam),
            engines.MOUNT: self.mount,
            INDEX: self.index,
        }

    def write_run(self) -> None:
        """Writes the whole run to `run.json` in the workdir; nodes copy it beside what they make."""
        run_file.write(self.config, self.workdir)

    @property
    def run_path(self) -> pathlib.Path:
        return self.workdir / run_file.FILE

    @property
    def pipeline_root(self) -> pathlib.Path:
        return self.workdir / "pipeline"

    @property
    def metadata_path(self) -> pathlib.Path:
        return workdir_lib.metadata_path(self.workdir)

    @property
    def index_url(self) -> str:
        """The item index, a path or a URL."""
        return self.index or str(self.workdir / "index" / "items.sqlite")

    @property
    def encoders_dir(self) -> pathlib.Path:
        """Leads to the encoders of the version in service, one folder per modality."""
        return self.workdir / ENCODERS

    @property
    def statistics_dir(self) -> pathlib.Path:
        """Leads to the statistics of the last run that came to its end."""
        return self.workdir / STATISTICS

    @property
    def serving_dir(self) -> pathlib.Path:
        return self.workdir / "serving" / MODEL_NAME

    @property
    def checkpoint_dir(self) -> pathlib.Path:
        return self.workdir / "checkpoints"

    @property
    def progress_path(self) -> pathlib.Path:
        return workdir_lib.progress_path(self.workdir)


def _verify_index(url: str) -> None:
    """Raises ValueError where a run cannot be given an index: what nodes are given stands in metadata and logs."""
    if "://" not in url:
        return
    shown, known = registered.without_password(url), registered.schemes(store.GROUP, store.STORES)
    if url.partition("://")[0] not in known:
        raise ValueError(f"The scheme of the item index's URL ({INDEX}) must be one of {known}. Received: {shown}.")
    parts = urllib.parse.urlsplit(url)
    if parts.password is not None or any("password" in option for option in urllib.parse.parse_qs(parts.query)):
        raise ValueError(
            f"The item index's URL ({INDEX}) must hold no password, as what nodes are given stands in metadata and "
            f"logs. Received: {shown}. Put it into REDISCLI_AUTH."
        )


def data_fingerprint(data_dir: str | pathlib.Path, tables: schema.Tables = schema.TABLES) -> str:
    """Returns a hash of the names, sizes and times of the tables' files, and of the names of what is not read.

    When it changes, the DAG runs anew. Files behind links count as those in the folder, and where they lie counts too:
    a link that leads to another file of the same size and time is another table.
    """
    real_dir = os.path.realpath(data_dir)
    facts: list[tuple[typing.Any, ...]] = [(found.what, found.count) for found in unread.of_folder(data_dir, tables)]
    for name in tables:
        facts += [(found.what, found.count) for found in layout.unread_files(data_dir, name)]
        for part in schema.table_parts(data_dir, name, tables):
            name = real = buckets.relative(part.path, data_dir)
            if not buckets.is_url(part.path):
                real = os.path.relpath(os.path.realpath(part.path), real_dir)
            facts.append((name, *buckets.stat(part.path), *([real] if real != name else [])))
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def newest_version(serving_dir: str | pathlib.Path) -> pathlib.Path | None:
    """Returns the newest complete model version (its saved_model.pb is copied last), or None."""
    versions = [
        path.parent for path in pathlib.Path(serving_dir).glob("*/saved_model.pb") if path.parent.name.isdigit()
    ]
    return max(versions, key=lambda path: int(path.name), default=None)


def latest_outputs(metadata_path: pathlib.Path) -> dict[str, str]:
    """Returns what each node gave the last time that it ran or was answered by the cache, as {"Node.output": uri}."""
    outputs = {}
    for execution in metadata.executions(metadata_path):
        if execution.state in metadata.FINISHED:
            for artifact in execution.outputs:
                parts = pathlib.PurePath(artifact.uri).parts  # .../<node>/<output>/<execution>
                outputs[".".join(parts[-3:-1])] = artifact.uri
    return outputs
