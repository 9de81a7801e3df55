"""The click model with its vocabularies and index tables, as the functions behind the signatures."""

from __future__ import annotations

import typing

import tensorflow as tf

from tfmm import config as config_lib
from tfmm import features
from tfmm.ctr import model as model_lib
from tfmm.export import signatures
from tfmm.index import graph_table

Tensors = dict[str, tf.Tensor]
_USER_INPUTS = ("user_index", "behavior_item_index", "behavior_category_index")
_CANDIDATE_INPUTS = ("item_index", "category_index")


class ServingModule(tf.Module):
    """Raw ids in, scores out: lookups outside XLA, then the scoring core in one compiled function.

    Args:
        model: the trained click model.
        lookups: per vocabulary of `features.VOCABULARIES`, what `features.vocabulary_lookup` gives.
        tables: the index table per modality of the model.
        id_types: "int64" or "string" per vocabulary: what callers send.
        config: buckets, and whether the core is compiled with XLA.
    """

    def __init__(
        self,
        model: model_lib.CTRModel,
        lookups: typing.Mapping[str, typing.Callable[[tf.Tensor], tf.Tensor]],
        tables: typing.Mapping[str, graph_table.GraphTable],
        id_types: typing.Mapping[str, str],
        config: config_lib.ExportConfig,
    ) -> None:
        super().__init__(name="serving")
        self.model = model
        self.tables = dict(tables)
        self.vocabularies = [lookup.__self__ for lookup in lookups.values()]  # type: ignore[attr-defined]
        self._lookups = dict(lookups)
        self._id_types = dict(id_types)
        self._config = config
        self._length = model.max_behaviors
        self._core_pointwise = self._core(None)
        self._core_rank = self._core(1)

    def _core(self, num_users: int | None) -> tf.types.experimental.ConcreteFunction:
        """Returns the scoring core; `num_users` 1 is one history for all candidates.

        One concrete function for all signatures: XLA then compiles each bucket once, whoever calls first.
        """
        specs = {name: tf.TensorSpec([None], tf.int64) for name in _CANDIDATE_INPUTS}
        specs["user_index"] = tf.TensorSpec([num_users], tf.int64)
        for name in _USER_INPUTS[1:]:
            specs[name] = tf.TensorSpec([num_users, self._length], tf.int64)
        for modality, table in self.tables.items():
            specs |= signatures.vector_specs(modality, table.dim, "target", None, None)
            specs |= signatures.vector_specs(modality, table.dim, "behavior", num_users, self._length)

        def core(inputs: Tensors) -> Tensors:
            outputs = self.model(inputs, training=False)
            return {name: tf.cast(outputs[name], tf.float32) for name in signatures.OUTPUTS}

        unnamed = {name: tf.TensorSpec(spec.shape, spec.dtype) for name, spec in specs.items()}
        jit_compile = self._config.jit_compile or None
        return tf.function(core, jit_compile=jit_compile, autograph=False).get_concrete_function(unnamed)

    def signatures(self) -> dict[str, typing.Any]:
        """Returns a concrete function per signature; without modalities, those of ids alone."""
        pointwise = signatures.raw_specs(self._id_types, None)
        result = {
            signatures.POINTWISE: _concrete(self.score_pointwise, pointwise),
            signatures.EXAMPLES: _concrete(
                self.score_examples, {"examples": tf.TensorSpec([None], tf.string, name="examples")}
            ),
            signatures.RANK: _concrete(self.score_rank, signatures.raw_specs(self._id_types, 1)),
        }
        if self.tables:
            vectors = dict(pointwise)
            for modality, table in self.tables.items():
                for side in ("target", "behavior"):
                    vectors |= signatures.vector_specs(modality, table.dim, side, None, None)
            upsert = {
                "modality": tf.TensorSpec([], tf.string),
                "item_ids": tf.TensorSpec([None], tf.int64),
                "rows": tf.TensorSpec([None, None], tf.int8),
                "scales": tf.TensorSpec([None], tf.float32),
                "sequences": tf.TensorSpec([None], tf.int64),
                "encoder_version": tf.TensorSpec([], tf.string),
            }
            hidden = {"examples": tf.TensorSpec([None], tf.string), "hidden": tf.TensorSpec([None], tf.string)}
            result[signatures.HIDDEN] = _concrete(self.score_examples_hidden, hidden)
            result[signatures.VECTORS] = _concrete(self.score_vectors, vectors)
            result[signatures.UPSERT] = _concrete(self.upsert, upsert)
            result[signatures.STATUS] = _concrete(self.status, {})
        return result

    def score_pointwise(self, **raw: tf.Tensor) -> Tensors:
        """Scores candidate b for user b; any number of behaviors, of which the newest L count."""
        raw = self._prepare(raw, per_candidate=True)
        return signatures.in_buckets(self._score_raw, raw, self._config.batch_buckets)

    def score_examples(self, examples: tf.Tensor) -> Tensors:
        """Scores serialized raw tf.Examples, whose ids are fingerprints already."""
        return self.score_pointwise(**_parse(examples))

    def score_examples_hidden(self, examples: tf.Tensor, hidden: tf.Tensor) -> Tensors:
        """Scores as if no target had a vector in the modalities named by `hidden`: what evaluation asks of a model."""
        raw = self._prepare(_parse(examples), per_candidate=True)
        return signatures.in_buckets(lambda chunk: self._score_raw(chunk, hidden), raw, self._config.batch_buckets)

    def score_rank(self, **raw: tf.Tensor) -> Tensors:
        """Scores C candidates for one user; the user's side is looked up once."""
        raw = self._prepare(raw, per_candidate=False)
        user = self._user_inputs(raw)
        return self._rank({name: raw[name] for name in signatures.CANDIDATE_FEATURES}, user, looks_up=True)

    def score_vectors(self, **inputs: tf.Tensor) -> Tensors:
        """Scores with the vectors of the caller; a user side of one row serves all candidates.

        The index tables are neither read nor needed.
        """
        behavior_vectors = [n for n in inputs if n.endswith(("behavior_rows", "_scales", "behavior_mask"))]
        behavior_vectors = [n for n in behavior_vectors if "_behavior_" in n]
        target_vectors = [n for n in inputs if "_target_" in n]
        raw = {name: inputs[name] for name in (*signatures.USER_FEATURES, *signatures.CANDIDATE_FEATURES)}
        checks = signatures.require_rows({n: inputs[n] for n in ("item_id", *target_vectors)}, "item_id")
        with tf.control_dependencies(checks):
            raw = self._prepare(raw, None, {name: inputs[name] for name in behavior_vectors})
        candidates = {n: raw[n] for n in signatures.CANDIDATE_FEATURES} | {n: inputs[n] for n in target_vectors}
        user = {name: raw[name] for name in (*signatures.USER_FEATURES, *behavior_vectors)}

        def shared() -> Tensors:
            one = {name: _with_static_rows(tensor, 1) for name, tensor in user.items()}
            indices = self._indices(one)
            known = {name: indices[name] for name in (*_USER_INPUTS, *behavior_vectors)}
            return self._rank(candidates, known, looks_up=False)

        def pointwise() -> Tensors:
            with tf.control_dependencies(signatures.require_rows(user | candidates, "item_id")):
                rows = {name: tf.identity(tensor) for name, tensor in (user | candidates).items()}
            return signatures.in_buckets(
                lambda chunk: self._core_pointwise(self._model_inputs(self._indices(chunk))),
                rows, self._config.batch_buckets)  # fmt: skip

        return tf.cond(tf.equal(tf.shape(user["user_id"])[0], 1), shared, pointwise)

    def upsert(self, modality: tf.Tensor, item_ids: tf.Tensor, rows: tf.Tensor, scales: tf.Tensor,
               sequences: tf.Tensor, encoder_version: tf.Tensor) -> Tensors:  # fmt: skip
        """Writes embeddings into the table of `modality`, see GraphTable.upsert for the statuses."""
        names = sorted(self.tables)
        matches = tf.equal(tf.constant(names), modality)
        known = tf.debugging.Assert(
            tf.reduce_any(matches), [f"`modality` must be one of {names}. Received:", modality]
        )

        def write(name: str) -> typing.Callable[[], tf.Tensor]:
            def branch() -> tf.Tensor:
                table = self.tables[name]
                fits = tf.debugging.assert_equal(
                    tf.shape(rows)[1], table.dim, f"`rows` of {name} must have {table.dim} values."
                )
                with tf.control_dependencies([fits] if fits is not None else []):
                    own = tf.reshape(rows, [-1, table.dim])
                return table.upsert(item_ids, own, scales, sequences, encoder_version)

            return branch

        with tf.control_dependencies([known] if known is not None else []):
            chosen = tf.argmax(tf.cast(matches, tf.int32), output_type=tf.int32)
            return {"statuses": tf.switch_case(chosen, [write(name) for name in names])}

    def status(self) -> Tensors:
        """Returns per modality, in one order: watermark, size, capacity int64 [M], encoder_version [M]."""
        names = sorted(self.tables)
        parts = [self.tables[name].status() for name in names]
        return {"modality": tf.constant(names)} | {key: tf.stack([p[key] for p in parts]) for key in parts[0]}

    def _prepare(self, raw: typing.Mapping[str, tf.Tensor], per_candidate: bool | None,
                 sequences: typing.Mapping[str, tf.Tensor] | None = None) -> Tensors:  # fmt: skip
        """Checks lengths, and returns ids as fingerprints and sequences of L."""
        ids = signatures.as_fingerprints(raw)
        names = [f.name for f in signatures.RAW if f.is_sequence]
        behaviors = {name: ids[name] for name in names} | dict(sequences or {})
        users = {name: ids[name] for name in signatures.USER_FEATURES} | behaviors
        candidates = {name: ids[name] for name in signatures.CANDIDATE_FEATURES}
        checks = signatures.require_rows(behaviors, "behavior_item_ids", axis=1)
        if per_candidate:
            checks += signatures.require_rows(users | candidates, "item_id")
        else:
            checks += signatures.require_rows(users, "user_id")
            checks += signatures.require_rows(candidates, "item_id")
        with tf.control_dependencies(checks):
            fitted = signatures.newest_behaviors(behaviors, self._length)
            return {name: tf.identity(tensor) for name, tensor in (ids | fitted).items()}

    def _indices(self, raw: Tensors) -> Tensors:
        return features.preprocess(raw, self._lookups)

    def _user_inputs(self, raw: Tensors) -> Tensors:
        """Returns the user's inputs of the core, with the vectors of the behaviors from the tables."""
        user = self._indices({name: raw[name] for name in signatures.USER_FEATURES})
        result = {name: user[name] for name in _USER_INPUTS}
        return result | self._vectors("behavior", raw["behavior_item_ids"])

    def _vectors(self, side: str, ids: tf.Tensor) -> Tensors:
        result = {}
        for modality, table in self.tables.items():
            for part, tensor in zip(("rows", "scales", "mask"), table.lookup(ids)):
                result[f"{modality}_{side}_{part}"] = tensor
        return result

    def _score_raw(self, raw: Tensors, hidden: tf.Tensor | None = None) -> Tensors:
        candidates = self._indices({name: raw[name] for name in signatures.CANDIDATE_FEATURES})
        inputs = self._user_inputs(raw) | {name: candidates[name] for name in _CANDIDATE_INPUTS}
        vectors = self._vectors("target", raw["item_id"])
        if hidden is not None:
            for modality in self.tables:
                vectors[f"{modality}_target_mask"] &= ~tf.reduce_any(hidden == modality)
        return self._core_pointwise(inputs | vectors)

    def _rank(self, candidates: Tensors, user: Tensors, *, looks_up: bool) -> Tensors:
        """Scores candidates, with their ids and perhaps their vectors, for the user's inputs of one row."""

        def score(chunk: Tensors) -> Tensors:
            found = self._vectors("target", chunk["item_id"]) if looks_up else {}
            return self._core_rank(self._model_inputs(self._indices(chunk) | found | user))

        return signatures.in_buckets(score, candidates, self._config.candidate_buckets)

    def _model_inputs(self, tensors: Tensors) -> Tensors:
        return {name: tensors[name] for name in model_lib.input_names(self.tables)}


def _parse(examples: tf.Tensor) -> Tensors:
    spec: dict[str, typing.Any] = {
        f.name: tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True)
        if f.is_sequence
        else tf.io.FixedLenFeature([], tf.int64)
        for f in signatures.RAW
    }
    return tf.io.parse_example(examples, spec)


def _with_static_rows(tensor: tf.Tensor, rows: int) -> tf.Tensor:
    """Returns a tensor of `rows` rows with that static shape.

    Not `tf.ensure_shape`: inside a branch it makes the graph optimizer believe the shape everywhere else, too.
    """
    return tf.reshape(tensor[:rows], [rows, *tensor.shape[1:]])


def _concrete(function: typing.Callable[..., Tensors], specs: signatures.Specs) -> typing.Any:
    named = {name: tf.TensorSpec(spec.shape, spec.dtype, name=name) for name, spec in specs.items()}
    return tf.function(function, autograph=False).get_concrete_function(**named)
