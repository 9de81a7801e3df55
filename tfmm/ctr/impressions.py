"""A batch of impressions as the click model sees it without item vectors: raw inputs, embeddings, interests."""

from __future__ import annotations

import typing

from keras import ops

from tfmm.features import PADDING, Column, FeatureSet, Sequence

Tensors = typing.Mapping[str, typing.Any]


def product(left: typing.Any, right: typing.Any) -> typing.Any:
    """Returns left * right, of the wider type where they differ, as in mixed precision."""
    return left * right if left.dtype == right.dtype else ops.multiply(left, right)


class Behaviors(typing.NamedTuple):
    """A sequence as the click model sees it without vectors: see `integrations.Context`."""

    target: typing.Any
    behaviors: typing.Any
    is_behavior: typing.Any


class Impressions:
    """B impressions; what is made of them is made when it is first asked for, and has weights only then.

    When C candidates are ranked for one user, what is the user's alone (features of users and contexts, sequences) has
    one row, and that of items has C: `join` and `per_row` repeat it.

    Attributes:
        inputs: the declared inputs by `Column.input`, see `CTRModel`: int indices and float32 numbers.
    """

    def __init__(
        self,
        feature_set: FeatureSet,
        inputs: Tensors,
        embeddings: Tensors,
        attention: Tensors,
        training: bool | None,
    ) -> None:
        """Takes the inputs of a call and the layers of the model: embeddings by table, attention by sequence."""
        self._feature_set, self.inputs, self._training = feature_set, inputs, training
        self._embeddings, self._attention = embeddings, attention
        self._columns = {column.name: column for column in feature_set.columns}
        self._made: dict[str, typing.Any] = {}

    @property
    def num_rows(self) -> typing.Any:
        """Returns B, an int or a tensor."""
        return ops.shape(self.inputs[self._columns["item_id"].input])[0]

    def join(self, parts: typing.Iterable[typing.Any]) -> typing.Any:
        """Joins float [B, .] and [1, .] parts to float32 [B, .]."""
        return ops.concatenate([self.per_row(ops.cast(part, "float32")) for part in parts], axis=-1)

    def per_row(self, values: typing.Any) -> typing.Any:
        """Returns [B, ...] of values [B, ...], or of [1, ...] that all rows share."""
        return ops.broadcast_to(values, (self.num_rows, *values.shape[1:]))

    def column(self, name: str) -> typing.Any:
        """Returns what stands for a column of the feature set: an embedding, or a number beside whether it is there.

        Args:
            name: as in `FeatureSet.columns`.
        Returns:
            float32 [B or 1, E], in a sequence [B or 1, L, E].
        """
        return self._once(f"column {name}", lambda: self._represent(self._columns[name]))

    def behaviors(self, sequence: str) -> Behaviors:
        """Returns a sequence: `target` float32 [B, E], `behaviors` [B or 1, L, E], `is_behavior` bool [B or 1, L]."""
        return self._once(f"sequence {sequence}", lambda: self._behaviors(self._feature_set.sequence(sequence)))

    def joined(self) -> typing.Any:
        """Returns all that our model makes of ids and numbers, DIN's interests among them, float32 [B, F]."""
        return self._once("joined", lambda: self.join(self._parts()))

    def frozen(self) -> Impressions:
        """Returns the same, of which nothing learns from what is made of it."""
        return _Frozen(self)

    def _once(self, name: str, make: typing.Callable[[], typing.Any]) -> typing.Any:
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def _represent(self, column: Column) -> typing.Any:
        values = self.inputs[column.input]
        if not column.feature.is_embedded:
            present = ops.logical_not(ops.isnan(values))
            number = ops.where(present, values, ops.zeros_like(values))
            return ops.stack([number, ops.cast(present, number.dtype)], axis=-1)
        embedded = self._embeddings[column.feature.embedding](values)
        if column.feature.kind != "ids":
            return embedded
        given = ops.cast(values != PADDING, embedded.dtype)[..., None]
        return ops.sum(embedded * given, axis=1) / ops.maximum(ops.sum(given, axis=1), 1.0)

    def _behaviors(self, sequence: Sequence) -> Behaviors:
        return Behaviors(
            self._target_of(sequence),
            ops.concatenate([self.column(name) for name in sequence.columns], axis=-1),
            self.inputs[self._columns[sequence.item_ids].input] != PADDING,
        )

    def _target_of(self, sequence: Sequence) -> typing.Any:
        """Returns the target as one of the sequence's behaviors; it has no columns of a behavior's own."""
        parts = []
        for name, column in zip(sequence.features, sequence.columns):
            if self._feature_set[name].role == "item":
                parts.append(self.column(name))
            else:
                zero = ops.zeros_like(self.column("item_id")[:, :1])
                parts.append(ops.repeat(zero, self.column(column).shape[-1], axis=1))
        return ops.concatenate(parts, axis=-1)

    def _parts(self) -> list[typing.Any]:
        own = [column for column in self._feature_set.columns if column.sequence is None]
        averages, interests = [], []
        for sequence in self._feature_set.sequences:
            of = self.behaviors(sequence.name)
            weights = ops.cast(of.is_behavior, of.behaviors.dtype)[..., None]
            length = ops.sum(weights, axis=1)  # [B or 1, 1]
            average = ops.sum(of.behaviors * weights, axis=1) / ops.maximum(length, 1.0)
            averages += [average, ops.log1p(length)]
            if sequence.name in self._attention:
                interest = self._attention[sequence.name](
                    of.target, of.behaviors, behaviors_mask=of.is_behavior, training=self._training
                )
                interests += [interest, product(interest, of.target)]
            interests.append(product(average, of.target))
        users = [self.column(column.name) for column in own if column.side == "user"]
        items = [self.column(column.name) for column in own if column.side == "item"]
        return [*users, *averages, *items, *interests]


class _Frozen(Impressions):
    """Impressions through which no gradient flows back."""

    def __init__(self, of: Impressions) -> None:
        super().__init__(of._feature_set, of.inputs, of._embeddings, of._attention, of._training)
        self._of = of

    def column(self, name: str) -> typing.Any:
        return ops.stop_gradient(self._of.column(name))

    def behaviors(self, sequence: str) -> Behaviors:
        of = self._of.behaviors(sequence)
        return Behaviors(ops.stop_gradient(of.target), ops.stop_gradient(of.behaviors), of.is_behavior)

    def joined(self) -> typing.Any:
        return ops.stop_gradient(self._of.joined())
