"""What experiments share: each artifact is made once, under a key of all that it is made from."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import time
import typing

import keras
import numpy as np

from tfmm import artifacts, config, own_classes, preprocessing, source
from tfmm.config import RunConfig, SCLConfig
from tfmm.ctr import integrations
from tfmm.ctr import model as model_lib
from tfmm.ctr import train as ctr_train
from tfmm.data import declared
from tfmm.experiments import serving_time
from tfmm.export import saved_model
from tfmm.index import item_vectors, snapshot
from tfmm.index.encode import quantize
from tfmm.modalities import CHECKPOINTS
from tfmm.pretrain.encoders import make_encoder
from tfmm.stages import catalog, encoders, examples, inputs, make, pairs, run_file
from tfmm.stages.folders import SPLITS
from tfmm.training import progress as progress_lib
from tfmm.training import sources
from tfmm.training.examples import example_files

MADE = "made.json"  # in each artifact's folder, last: `seconds` that making it took
SCORES, FACTS = "scores.npy", "facts.json"  # of a click model: of the held-out rows in time order
SCL, UNTRAINED, RANDOM = ("scl", "untrained", "random")  # whose vectors an item has
_INDEX = "items.sqlite"
Say = typing.Callable[[str], object]


class Workspace:
    """A folder of artifacts of one data folder.

    What was made is not made again, whichever experiment asks; what was killed half-way goes on. A key is made of the
    settings that the stage reads, of the artifacts it reads, of the data's files (name, size, time of change) and of
    tfmm's sources.

    Args:
        folder: holds a folder per stage, and in it one per key.
        data_dir: the tables.
        say: is told what the stages say.
        progress: called with the steps done.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        data_dir: str | os.PathLike[str],
        say: Say = print,
        progress: progress_lib.Progress = progress_lib.silent,
    ):
        self.folder, self.data_dir = pathlib.Path(folder), pathlib.Path(data_dir)
        self.say, self.progress = say, progress
        self.used: set[pathlib.Path] = set()  # artifacts that were asked for
        self._basis = (_data_digest(self.data_dir, self.folder.resolve().parent), source.digest_of(__package__))
        self._modalities: dict[str, tuple[str, ...]] = {}

    def modalities(self, run: RunConfig) -> tuple[str, ...]:
        """Returns the modalities that the data has, of those that a run declares."""
        key = artifacts.fingerprint(config.to_dict(run)["modalities"])
        if key not in self._modalities:
            self._modalities[key] = inputs.modalities_of(run, self.data_dir)
        return self._modalities[key]

    def learned(self, run: RunConfig) -> dict[str, SCLConfig]:
        """Returns the settings of the encoders that are trained, by modality."""
        found = run.encoders(self.modalities(run))
        return {name: settings for name, settings in found.items() if not settings.frozen}

    def pairs(self, run: RunConfig) -> pathlib.Path:
        """Returns the folder of encoder pairs, one folder per modality."""
        settings = self._read_by("pairs", run)
        return self.made("pairs", settings, [], lambda folder: pairs.make_pairs(run, self.data_dir, folder, self.say))

    def encoder(self, run: RunConfig, modality: str, pairs_dir: pathlib.Path | None = None) -> pathlib.Path:
        """Returns the folder that holds one encoder, by its modality's name, of the run's pairs or of others."""
        found = pairs_dir or self.pairs(run)

        def write(folder: pathlib.Path) -> None:
            checkpoints = self._checkpoints(folder)
            encoders.train_encoders(run, [modality], found, folder, checkpoints, self.say, self.progress)

        return self.made("encoder", _settings(run, modality), [found], write)

    def untrained(self, run: RunConfig, modality: str) -> pathlib.Path:
        """Returns the folder that holds an encoder as it is before training, by its modality's name."""
        settings = run.encoders([modality])[modality]

        def write(folder: pathlib.Path) -> None:
            encoder = make_encoder(settings)
            encoder.export(folder / modality / "encoder")
            artifacts.write_manifest(
                folder / modality, "encoder", settings, modality=modality, dim=settings.dim,
                encoder_version=encoder.version(), content_form=vars(encoder.form),
            )  # fmt: skip

        return self.made("untrained", _settings(run, modality), [], write)

    def vectors(self, run: RunConfig, kind: str = SCL) -> pathlib.Path:
        """Returns a snapshot of the catalog's vectors: of trained encoders, of fresh ones, or drawn at random.

        Random vectors lie on the unit sphere, of the dims that the trained ones have, for the items that have these.
        Ready vectors of the catalog, and of frozen encoders, stay as they are in the first two.
        """
        if kind == RANDOM:
            of = self.vectors(run)
            return self.made("random", run.seed, [of], lambda folder: _draw(of, folder, run.seed))
        names = self.modalities(run)
        make_one = {SCL: self.encoder, UNTRAINED: self.untrained}[kind]
        learned = self.learned(run)
        parents = [(make_one if name in learned else self.encoder)(run, name) for name in run.encoders(names)]

        def write(folder: pathlib.Path) -> None:
            with_encoders = folder / "encoders"
            with_encoders.mkdir(parents=True)
            for name, parent in zip(run.encoders(names), parents, strict=True):
                (with_encoders / name).symlink_to((parent / name).resolve())
            index = folder / _INDEX
            catalog.embed_catalog(run, names, self.data_dir, with_encoders, str(index), folder, self.say)
            for path in folder.glob(f"{_INDEX}*"):
                path.unlink()

        return self.made("vectors", self._read_by("catalog", run), parents, write)

    def examples(self, run: RunConfig) -> pathlib.Path:
        """Returns the folder of examples and vocabularies."""

        def write(folder: pathlib.Path) -> None:
            examples.make_examples(run, self.data_dir, folder, self.say)

        return self.made("examples", self._read_by("examples", run), [], write)

    def make_block(self, run: RunConfig, vectors: pathlib.Path) -> pathlib.Path:
        """Returns the folder of the pre-trained MAKE."""
        rows = self.examples(run)
        sequences = integrations.make_sequences(run.methods, run.feature_set)

        def write(folder: pathlib.Path) -> None:
            patterns, checkpoints = examples.patterns(rows), self._checkpoints(folder)
            make.train_make(run, sequences, patterns, vectors, folder, checkpoints, self.progress)

        return self.made("make", (self._read_by("make", run), sequences), [rows, vectors], write)

    def click_model(self, run: RunConfig, vectors: pathlib.Path | None, **more: typing.Any) -> pathlib.Path:
        """Returns the folder of a click model, of ids alone where `vectors` is None, with its held-out scores.

        `scores.npy` is float32 [n] in time order; `facts.json` has its metrics, parameters (a frozen MAKE's among them)
        and training rows a second (the median of the segments).

        Args:
            run: the settings.
            vectors: a snapshot.
            more: arguments of `ctr.train.train`.
        """
        rows = self.examples(run)
        has_make = vectors is not None and bool(integrations.make_sequences(run.methods, run.feature_set))
        extractor = self.make_block(run, vectors) if vectors is not None and has_make else None
        parents = [folder for folder in (rows, vectors, extractor) if folder is not None]

        def write(folder: pathlib.Path) -> None:
            manifest = ctr_train.train(
                run.ctr, *examples.patterns(rows), rows / examples.VOCABULARY, folder / "model", run.feature_set,
                modalities=self.modalities(run) if vectors else (), methods=run.methods if vectors else (),
                snapshot_dir=vectors, make_dir=extractor, training=run.training,
                checkpoint_dir=self._checkpoints(folder), progress=self.progress, **more,
            )  # fmt: skip
            model = model_lib.load_model(folder / "model")
            tables = item_vectors.load_vectors(vectors, self.modalities(run)) if vectors else {}
            np.save(folder / SCORES, ctr_train.predict(model, tables, self.held_out(run, tables)))
            history = json.loads((folder / "model" / "history.json").read_text())
            facts = {
                "parameters": int(sum(np.prod(v.shape) for v in model.variables)),
                "rows_per_s": run.ctr.batch_size
                * float(np.median([line["steps"] / line["seconds"] for line in history])),
                "bytes_per_item": sum(table.dim + 4 for table in tables.values()),
                **manifest["metrics"],
            }
            (folder / FACTS).write_text(json.dumps(facts, indent=2) + "\n")

        settings = self._read_by("multimodal_model" if vectors else "id_model", run), more
        return self.made("click_model", settings, parents, write)

    def serving_ms(self, run: RunConfig, model: pathlib.Path, vectors: pathlib.Path | None) -> float:
        """Returns what `serving_time.rank_ms` finds of a click model that is exported with its vectors and loaded.

        Args:
            run: the settings.
            model: what `click_model` returned.
            vectors: its snapshot.
        """
        vocabulary = self.examples(run) / examples.VOCABULARY

        def write(folder: pathlib.Path) -> None:
            version = folder / "1"
            id_types = declared.id_types(self.data_dir, run.feature_set)
            saved_model.export(model / "model", vocabulary, vectors, id_types, run.export, version)
            (folder / FACTS).write_text(json.dumps({"serving_ms": serving_time.rank_ms(version)}) + "\n")
            shutil.rmtree(version)

        parents = [folder for folder in (model, vectors) if folder is not None]
        return read_facts(self.made("serving", config.to_dict(run.export), parents, write))["serving_ms"]

    def held_out(
        self, run: RunConfig, tables: typing.Mapping[str, item_vectors.ItemVectors] | None = None
    ) -> sources.ExampleSource:
        """Returns the held-out rows in time order."""
        return self._rows(run, "eval", tables)

    def training_rows(self, run: RunConfig) -> sources.ExampleSource:
        """Returns the training rows in time order."""
        return self._rows(run, "train")

    def _rows(self, run: RunConfig, split: str, tables: typing.Any = None) -> sources.ExampleSource:
        folder = self.examples(run)
        files = example_files(dict(zip(SPLITS, examples.patterns(folder), strict=True))[split])
        preprocessor = preprocessing.load(run.feature_set, folder / examples.VOCABULARY)
        return sources.open_source(files, run.feature_set, tables or {}, preprocessor)

    def made(
        self,
        stage: str,
        settings: typing.Any,
        parents: typing.Sequence[pathlib.Path],
        write: typing.Callable[[pathlib.Path], object],
    ) -> pathlib.Path:
        """Returns the folder of an artifact; makes it where nobody did.

        Args:
            stage: names the folder of folders.
            settings: JSON values that the artifact depends on.
            parents: the artifacts that it is made from, of this workspace.
            write: fills the folder.
        """
        key = artifacts.fingerprint(stage, settings, [parent.name for parent in parents], self._basis)
        folder = self.folder / stage / key
        self.used.add(folder)
        if (folder / MADE).exists():
            return folder
        shutil.rmtree(folder, ignore_errors=True)  # half of one; what a training has learned lies in `checkpoints`
        folder.mkdir(parents=True)
        started = time.monotonic()
        write(folder)
        keras.backend.clear_session()  # of hundreds of models, each is used once
        temporary = folder / f".{MADE}"
        temporary.write_text(json.dumps({"seconds": round(time.monotonic() - started, 2)}) + "\n")
        temporary.replace(folder / MADE)
        shutil.rmtree(self._checkpoints(folder), ignore_errors=True)
        return folder

    def seconds(self) -> float:
        """Returns how long it took to make the artifacts that were asked for, whenever that was."""
        return sum(json.loads((folder / MADE).read_text())["seconds"] for folder in self.used)

    def _read_by(self, stage: str, run: RunConfig) -> dict[str, typing.Any]:
        """Returns the settings that a stage reads, and a digest of the sources of own classes that they name."""
        own = run.ctr.model, *(one.name for one in run.methods), *(one.encoder for one in run.modalities)
        settings = {name: config.to_dict(run)[name] for name in run_file.STAGES[stage].reads}
        return {**settings, "own": own_classes.source_digest(own)}

    def _checkpoints(self, folder: pathlib.Path) -> pathlib.Path:
        return self.folder / CHECKPOINTS / folder.name


def _settings(run: RunConfig, modality: str) -> typing.Any:
    settings = run.encoders([modality])[modality]
    return config.to_dict(settings), config.to_dict(run.training), own_classes.source_digest([settings.encoder])


def read_facts(folder: pathlib.Path) -> dict[str, typing.Any]:
    """Returns what is known of a click model, see `Workspace.click_model`."""
    return json.loads((folder / FACTS).read_text())


def _draw(of: pathlib.Path, folder: pathlib.Path, seed: int) -> None:
    """Writes a snapshot whose vectors are drawn at random."""
    shutil.copytree(of, folder, dirs_exist_ok=True, symlinks=True, ignore=shutil.ignore_patterns(MADE, "encoders"))
    rng = np.random.default_rng(seed)
    for modality in snapshot.load_snapshot(of).modalities:
        path = folder / modality
        rows, scales = quantize(rng.normal(size=np.load(path / "rows.npy", mmap_mode="r").shape))
        np.save(path / "rows.npy", rows)
        np.save(path / "scales.npy", scales)


def _data_digest(data_dir: pathlib.Path, output_dir: pathlib.Path) -> str:
    """Returns a hash of names, sizes and times of change of the data's files, links followed; not of the output's."""
    files = []
    for folder, names, found in os.walk(data_dir, followlinks=True):
        here = pathlib.Path(folder)
        names[:] = sorted(name for name in names if (here / name).resolve() != output_dir and not name.startswith("."))
        for name in sorted(found):
            facts = (here / name).stat()
            files.append((str((here / name).relative_to(data_dir)), facts.st_size, facts.st_mtime_ns))
    return artifacts.fingerprint(files)
