"""The click model with its vocabularies and index tables, as the functions behind the signatures."""

from __future__ import annotations

import functools
import typing

import tensorflow as tf

from tfmm import config as config_lib
from tfmm import preprocessing
from tfmm import vectors as vectors_lib
from tfmm.ctr import model as model_lib
from tfmm.ctr import pre_ranking as pre_ranking_lib
from tfmm.export import signatures
from tfmm.export.signatures import Core
from tfmm.features import STORED
from tfmm.index import graph_table, item_vectors

Tensors = dict[str, tf.Tensor]


class ServingModule(tf.Module):
    """Raw columns in, scores out: lookups outside XLA, then the scoring core in one compiled function.

    Args:
        model: the trained click model.
        preprocessor: the vocabularies and statistics that it was trained with.
        tables: the index table per modality of the model.
        id_types: "int64" or "string" per feature of ids: what callers send.
        config: buckets, and whether the core is compiled with XLA.
        features: the items' features by item id; None: requests bring them all.
        pre_ranking: the light head of the model; None: it has none, and no signature of one.
    """

    def __init__(
        self,
        model: model_lib.CTRModel,
        preprocessor: preprocessing.Preprocessor,
        tables: typing.Mapping[str, graph_table.GraphTable],
        id_types: typing.Mapping[str, str],
        config: config_lib.ExportConfig,
        features: graph_table.FeatureTable | None = None,
        pre_ranking: pre_ranking_lib.PreRankingModel | None = None,
    ) -> None:
        super().__init__(name="serving")
        self.model, self.pre_ranking = model, pre_ranking
        self.features = features
        self.tables = dict(tables)
        self.vocabularies = list(preprocessor.resources.values())
        self._preprocessor = preprocessor
        self._id_types = dict(id_types)
        self._config = config
        self._feature_set = model.feature_set
        self._sequences = {s.name: signatures.columns_of(self._feature_set, s) for s in self._feature_set.sequences}
        self._looked_up = {} if features is None else signatures.stored_columns(self._feature_set, features.names)
        self._core_pointwise = self._core(None, model)
        self._core_rank = Core(self._core(1, model), config.candidate_buckets)
        if pre_ranking is not None:
            self._core_pre_rank = Core(self._core(1, pre_ranking), pre_ranking.settings.candidate_buckets)

    def _core(self, num_users: int | None, model: typing.Any) -> tf.types.experimental.ConcreteFunction:
        """Returns the scoring core of a model; `num_users` 1 is one history for all candidates.

        One concrete function for all signatures: XLA then compiles each bucket once, whoever calls first.
        """
        specs = {}
        for column in self._feature_set.columns:
            rows = num_users if column.side == "user" else None
            dtype = tf.int64 if column.feature.is_embedded else tf.float32
            specs[column.input] = tf.TensorSpec([rows, *column.shape], dtype)
        for modality, table in self.tables.items():
            specs |= signatures.vector_specs(modality, table.dim, vectors_lib.TARGET, None, None)
            for sequence in self._feature_set.sequences:
                specs |= signatures.vector_specs(modality, table.dim, sequence.name, num_users, sequence.length)

        def core(inputs: Tensors) -> Tensors:
            outputs = model(inputs, training=False)
            return {name: tf.cast(outputs[name], tf.float32) for name in signatures.OUTPUTS}

        unnamed = {name: tf.TensorSpec(spec.shape, spec.dtype) for name, spec in specs.items()}
        jit_compile = self._config.jit_compile or None
        return tf.function(core, jit_compile=jit_compile, autograph=False).get_concrete_function(unnamed)

    def signatures(self) -> dict[str, typing.Any]:
        """Returns a concrete function per signature; without modalities, those of ids alone."""
        pointwise = signatures.raw_specs(self._feature_set, self._id_types, None)
        result = {
            signatures.POINTWISE: _concrete(self.score_pointwise, pointwise),
            signatures.EXAMPLES: _concrete(
                self.score_examples, {"examples": tf.TensorSpec([None], tf.string, name="examples")}
            ),
            signatures.RANK: _concrete(
                self.score_rank, signatures.raw_specs(self._feature_set, self._id_types, 1)
            ),
            signatures.LOGGED[signatures.RANK]: _concrete(
                self.score_rank_logged, signatures.raw_specs(self._feature_set, self._id_types, 1)
            ),
        }
        specs = signatures.raw_specs(self._feature_set, self._id_types, 1)
        left_out = {column.name for columns in self._looked_up.values() for column in columns}
        ids_alone = {name: spec for name, spec in specs.items() if name not in left_out}
        if self.features is not None:
            result[signatures.RANK_IDS] = _concrete(self.score_rank, ids_alone)
            result[signatures.LOGGED[signatures.RANK_IDS]] = _concrete(self.score_rank_logged, ids_alone)
        if self.pre_ranking is not None:
            result[signatures.PRE_RANK] = _concrete(self.score_pre_rank, ids_alone)
            compared = {name: tf.TensorSpec([None], tf.string) for name in ("user", "items")}
            result[signatures.COMPARE] = _concrete(self.compare_stages, compared)
        if self.tables:
            vectors = dict(pointwise)
            for modality, table in self.tables.items():
                for side in item_vectors.sides(self._feature_set):
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
        with tf.control_dependencies(self._require_users(raw, "item_id") + self._require_candidates(raw)):
            rows = self._fit({name: tf.identity(tensor) for name, tensor in raw.items()})
        return signatures.in_buckets(self._score_raw, rows, self._config.batch_buckets)

    def score_examples(self, examples: tf.Tensor) -> Tensors:
        """Scores serialized raw tf.Examples, whose ids are fingerprints already.

        A column that is known in training only counts as they have it, so that logged rows, which evaluation scores,
        are not judged as if all had stood in the first position.
        """
        return self.score_pointwise(**self._parse(examples))

    def score_examples_hidden(self, examples: tf.Tensor, hidden: tf.Tensor) -> Tensors:
        """Scores as if no target had a vector in the modalities named by `hidden`: what evaluation asks of a model."""
        rows = self._fit(self._parse(examples))
        return signatures.in_buckets(lambda chunk: self._score_raw(chunk, hidden), rows, self._config.batch_buckets)

    def _parse(self, examples: tf.Tensor) -> Tensors:
        spec: dict[str, typing.Any] = {}
        for column in self._feature_set.columns:
            dtype = tf.float32 if column.is_float else tf.int64
            spec[column.name] = (
                tf.io.FixedLenSequenceFeature([], dtype, allow_missing=True, default_value=column.missing)
                if column.shape
                else tf.io.FixedLenFeature([], dtype, signatures.served_value(column))
            )
        return tf.io.parse_example(examples, spec)

    def score_rank(self, **raw: tf.Tensor) -> Tensors:
        """Scores C candidates for one user; the user's side is looked up once, and what is left out of items' features.

        A feature is left out where it is not in the signature, or empty beside items.
        """
        return self._score_looked_up(raw, self._core_rank)

    def score_pre_rank(self, **raw: tf.Tensor) -> Tensors:
        """Scores C candidates, thousands, for one user by the light head, looking up as `score_rank` does."""
        return self._score_looked_up(raw, self._core_pre_rank)

    def _score_looked_up(self, raw: Tensors, core: Core) -> Tensors:
        if self.features is not None:
            known, features = signatures.as_fingerprints(raw), self.features
            raw = self._completed(known, lambda ids: features.lookup(known[ids]))
        rows = self._ranked_rows(raw)
        user = self._preprocessor(self._of_side(rows, "user")) | self._behavior_vectors(rows)
        return self._rank(self._of_side(rows, "item"), user, core, looks_up=True)

    def compare_stages(self, user: tf.Tensor, items: tf.Tensor) -> Tensors:
        """Scores items for a user by both heads, each as serialized raw tf.Examples, for evaluation.

        Args:
            user: string [1], of which the user's columns count, as served.
            items: string [C], of which the items' do.
        Returns:
            `pre_rank` and `rank`, float32 [C]: the logits of each head.
        """
        raw = self._of_side(self._parse(items), "item") | self._of_side(self._parse(user), "user")
        rows = self._fit({column.name: raw[column.name] for column in self._feature_set.served})
        rows |= {n: signatures.with_static_rows(t, 1) for n, t in self._of_side(rows, "user").items()}
        shared = self._preprocessor(self._of_side(rows, "user")) | self._behavior_vectors(rows)
        cores = {signatures.PRE_RANK: self._core_pre_rank, signatures.RANK: self._core_rank}
        candidates = self._of_side(rows, "item")
        return {name: self._rank(candidates, shared, core, looks_up=True)["logit"] for name, core in cores.items()}

    def score_rank_logged(self, **raw: tf.Tensor) -> Tensors:
        """Scores as `score_rank`, and says by what, so that what is logged is what was scored.

        Returns:
            The scores; per modality the `watermark` int64 [M] up to which they saw its table, and no change beyond, and
            its `encoder_version`, in the order of `modality`; and, named with `signatures.LOOKED_UP` before it, each
            column that the model can look up, as it was given or found.
        """
        seen: Tensors = {}
        known = signatures.as_fingerprints(raw)
        if self.features is not None:
            found, seen[STORED] = self.features.lookup_at_once([known[ids] for ids in self._looked_up])
            known = self._completed(known, dict(zip(self._looked_up, found)).__getitem__)
        looked_up = {c.name: known[c.name] for columns in self._looked_up.values() for c in columns}
        rows = self._ranked_rows(known)
        vectors: Tensors = {}
        for modality, table in self.tables.items():
            sides = item_vectors.sides(self._feature_set)
            of_sides, seen[modality] = table.lookup_at_once([rows[ids] for ids in sides.values()])
            for side, one in zip(sides, of_sides):
                vectors |= vectors_lib.named(modality, side, one)
        targets = {n for m in self.tables for n in vectors_lib.names(m, vectors_lib.TARGET)}
        candidates = self._of_side(rows, "item") | {name: vectors[name] for name in targets}
        of_user = {name: vector for name, vector in vectors.items() if name not in targets}
        of_user |= self._preprocessor(self._of_side(rows, "user"))
        result = self._rank(candidates, of_user, self._core_rank, looks_up=False)
        result |= {signatures.LOOKED_UP + name: tensor for name, tensor in looked_up.items()}
        return result | self._seen(seen)

    def _seen(self, watermarks: typing.Mapping[str, tf.Tensor]) -> Tensors:
        names, tables = sorted(watermarks), self._written()
        return {
            "modality": tf.constant(names, tf.string, [len(names)]),
            "watermark": tf.stack([watermarks[name] for name in names]) if names else tf.zeros([0], tf.int64),
            "encoder_version": tf.constant([tables[n].encoder_version for n in names], tf.string, [len(names)]),
        }

    def _completed(self, known: Tensors, look_up: typing.Callable[[str], Tensors]) -> Tensors:
        """Returns a request's columns, ids as fingerprints, with what it leaves out of items' features looked up.

        `look_up` gives the features of the items that a column of ids holds.
        """
        result = dict(known)
        for ids, columns in self._looked_up.items():
            result |= signatures.completed(columns, result, functools.partial(look_up, ids))
        return result

    def _ranked_rows(self, raw: Tensors) -> Tensors:
        """Returns what `_fit` does of a request of `rank`, once its lengths are right."""
        with tf.control_dependencies(self._require_users(raw, "user_id") + self._require_candidates(raw)):
            return self._fit({name: tf.identity(tensor) for name, tensor in raw.items()})

    def score_vectors(self, **inputs: tf.Tensor) -> Tensors:
        """Scores with the vectors of the caller; a user side of one row serves all candidates.

        The index tables are neither read nor needed.
        """
        target_vectors = [n for m in self.tables for n in vectors_lib.names(m, vectors_lib.TARGET)]
        behavior_vectors = {s: [n for m in self.tables for n in vectors_lib.names(m, s)] for s in self._sequences}
        of_user = [name for names in behavior_vectors.values() for name in names]
        raw = {name: tensor for name, tensor in inputs.items() if name not in (*target_vectors, *of_user)}
        checks = self._require_candidates(inputs, target_vectors)
        with tf.control_dependencies(checks):
            rows = self._fit({name: tf.identity(tensor) for name, tensor in raw.items()},
                             {s: {n: inputs[n] for n in names} for s, names in behavior_vectors.items()})  # fmt: skip
        candidates = self._of_side(rows, "item") | {name: inputs[name] for name in target_vectors}
        user = self._of_side(rows, "user") | {name: rows[name] for name in of_user}

        def shared() -> Tensors:
            one = {name: signatures.with_static_rows(tensor, 1) for name, tensor in user.items()}
            known = self._preprocessor(self._of_side(one, "user")) | {name: one[name] for name in of_user}
            return self._rank(candidates, known, self._core_rank, looks_up=False)

        def pointwise() -> Tensors:
            with tf.control_dependencies(signatures.require_rows(user | candidates, "item_id")):
                all_rows = {name: tf.identity(tensor) for name, tensor in (user | candidates).items()}
            return signatures.in_buckets(
                lambda chunk: self._core_pointwise(self._model_inputs(self._preprocessor(chunk) | chunk)),
                all_rows, self._config.batch_buckets)  # fmt: skip

        return tf.cond(tf.equal(tf.shape(user["user_id"])[0], 1), shared, pointwise)

    def upsert(self, modality: tf.Tensor, item_ids: tf.Tensor, rows: tf.Tensor, scales: tf.Tensor,
               sequences: tf.Tensor, encoder_version: tf.Tensor) -> Tensors:  # fmt: skip
        """Writes embeddings into the table of `modality`, see GraphTable.upsert for the statuses."""
        tables = self._written()
        names = sorted(tables)
        matches = tf.equal(tf.constant(names), modality)
        known = tf.debugging.Assert(
            tf.reduce_any(matches), [f"`modality` must be one of {names}. Received:", modality]
        )

        def write(name: str) -> typing.Callable[[], tf.Tensor]:
            def branch() -> tf.Tensor:
                table = tables[name]
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

    def _written(self) -> dict[str, graph_table.GraphTable]:
        """Returns the tables that upserts write: of each modality, and of items' features."""
        return self.tables | ({} if self.features is None else {STORED: self.features.table})

    def status(self) -> Tensors:
        """Returns per modality, in one order: watermark, size, capacity int64 [M], encoder_version [M]."""
        tables = self._written()
        names = sorted(tables)
        parts = [tables[name].status() for name in names]
        return {"modality": tf.constant(names)} | {key: tf.stack([p[key] for p in parts]) for key in parts[0]}

    def _require_users(self, raw: typing.Mapping[str, tf.Tensor], like: str) -> list[tf.Operation]:
        """Checks that a request's users are as many as `like`, and a sequence's columns of one length."""
        checks = signatures.require_rows(
            {c.name: raw[c.name] for c in self._feature_set.served if c.side == "user"} | {like: raw[like]}, like
        )
        return checks + self._require_lengths(raw, {})

    def _require_lengths(
        self, raw: typing.Mapping[str, tf.Tensor], vectors: typing.Mapping[str, Tensors]
    ) -> list[tf.Operation]:
        checks = []
        for sequence, columns in self._sequences.items():
            ids = self._feature_set.sequence(sequence).item_ids
            parts = {column.name: raw[column.name] for column in columns} | dict(vectors.get(sequence, {}))
            checks += signatures.require_rows(parts, ids, axis=1)
        return checks

    def _require_candidates(
        self, raw: typing.Mapping[str, tf.Tensor], more: typing.Iterable[str] = ()
    ) -> list[tf.Operation]:
        names = [c.name for c in self._feature_set.served if c.side == "item"]
        return signatures.require_rows({name: raw[name] for name in (*names, *more)}, "item_id")

    def _fit(self, raw: Tensors, vectors: typing.Mapping[str, Tensors] | None = None) -> Tensors:
        """Returns ids as fingerprints, sequences of L with their vectors, and what no request brings."""
        result = signatures.as_fingerprints(raw)
        for sequence, columns in self._sequences.items():
            ids = self._feature_set.sequence(sequence).item_ids
            parts = {column.name: result[column.name] for column in columns} | dict((vectors or {}).get(sequence, {}))
            missing = {column.name: column.missing for column in columns}
            with tf.control_dependencies(self._require_lengths(result, vectors or {})):
                result |= signatures.newest_behaviors(parts, ids, columns[0].shape[0], missing)
        for column in self._feature_set.columns:
            if not column.is_served and column.name not in result:
                like = result["user_id" if column.side == "user" else "item_id"]
                constant = signatures.served_constant(column, tf.shape(like)[0])
                result[column.name] = tf.ensure_shape(constant, like.shape)
            elif column.feature.kind == "ids":
                result[column.name] = signatures.first_values(result[column.name], column.feature.max_values)
        return result

    def _of_side(self, tensors: Tensors, side: str) -> Tensors:
        return {c.name: tensors[c.name] for c in self._feature_set.columns if c.side == side}

    def _behavior_vectors(self, raw: Tensors) -> Tensors:
        result: Tensors = {}
        for side, ids in item_vectors.sides(self._feature_set).items():
            if side != vectors_lib.TARGET:
                result |= self._vectors(side, raw[ids])
        return result

    def _vectors(self, side: str, ids: tf.Tensor) -> Tensors:
        result: Tensors = {}
        for modality, table in self.tables.items():
            result |= vectors_lib.named(modality, side, table.lookup(ids))
        return result

    def _score_raw(self, raw: Tensors, hidden: tf.Tensor | None = None) -> Tensors:
        inputs = self._preprocessor(raw) | self._behavior_vectors(raw)
        target = self._vectors(vectors_lib.TARGET, raw["item_id"])
        if hidden is not None:
            for modality in self.tables:
                name = vectors_lib.names(modality, vectors_lib.TARGET).mask
                target[name] &= ~tf.reduce_any(hidden == modality)
        return self._core_pointwise(self._model_inputs(inputs | target))

    def _rank(self, candidates: Tensors, user: Tensors, core: Core, *, looks_up: bool) -> Tensors:
        """Scores candidates, with their columns and perhaps their vectors, for the user's inputs of one row."""

        def score(chunk: Tensors) -> Tensors:
            found = self._vectors(vectors_lib.TARGET, chunk["item_id"]) if looks_up else chunk
            return core.function(self._model_inputs(self._preprocessor(chunk) | found | user))

        return signatures.in_buckets(score, candidates, core.buckets)

    def _model_inputs(self, tensors: Tensors) -> Tensors:
        return {name: tensors[name] for name in model_lib.input_names(self._feature_set, self.tables)}


def _concrete(function: typing.Callable[..., Tensors], specs: signatures.Specs) -> typing.Any:
    named = {name: tf.TensorSpec(spec.shape, spec.dtype, name=name) for name, spec in specs.items()}
    return tf.function(function, autograph=False).get_concrete_function(**named)
