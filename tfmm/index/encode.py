"""From an item's content to its int8 row: encoders, quantisation, and the two together."""

from __future__ import annotations

import dataclasses
import pathlib
import typing

import numpy as np

from tfmm import artifacts, features, plain_paths
from tfmm.index import item_features, store
from tfmm.index import rows as rows_lib
from tfmm.modalities import MAX_TEXT_BYTES, event_field, refuses_long_texts
from tfmm.pretrain.content_form import ContentForm

Content = bytes | str | typing.Sequence[float]
GIVEN = "given:"  # how the version of vectors that items bring themselves begins


def quantize(vectors: typing.Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns vectors as int8 rows with their scales; only the direction is kept.

    Differs from the paper: it does not say how embeddings are stored. One scale per row moves 0.3 % of
    similarities to another tier against float vectors.

    Args:
        vectors: float [n, D], finite.
    Returns:
        int8 [n, D], round(v * 127 / max|v|), and float32 [n], 1 / norm of the row; a zero vector gives zeros
        and scale 0, which means "no embedding".
    Raises:
        ValueError: not [n, D] with D in 1..1040, or values that are not finite.

    >>> rows, scales = quantize([[0.3, -0.4], [0.0, 0.0]])
    >>> rows.tolist(), [round(float(s) * 158.29, 3) for s in scales]
    ([[95, -127], [0, 0]], [0.998, 0.0])
    """
    vectors = np.asarray(vectors, np.float32)
    if vectors.ndim != 2 or not 0 < vectors.shape[1] <= rows_lib.MAX_DIM:
        raise ValueError(
            f"`vectors` must be float [n, D] with D in 1..{rows_lib.MAX_DIM}. Received: {list(vectors.shape)}."
        )
    if not np.all(np.isfinite(vectors)):
        raise ValueError("`vectors` must be finite. Received: NaN or infinity; leave such items out.")
    exact = vectors.astype(np.float64)  # no overflow in the product
    largest = np.max(np.abs(exact), axis=1, keepdims=True, initial=0)
    rows = np.rint(exact * 127 / np.where(largest > 0, largest, 1)).astype(np.int8)
    return rows, scales_of(rows)


def scales_of(rows: np.ndarray) -> np.ndarray:
    """Returns 1 / norm of each int8 row, float32 [n]; 0 for a zero row."""
    squares = np.sum(np.square(rows.astype(np.int32)), axis=1).astype(np.float32)
    return np.where(squares > 0, np.float32(1) / np.sqrt(np.where(squares > 0, squares, 1)), 0).astype(np.float32)


def similarity(rows_a: np.ndarray, scales_a: np.ndarray, rows_b: np.ndarray, scales_b: np.ndarray) -> np.ndarray:
    """Returns the cosines of int8 rows, float32 [n, m]: an exact dot, times the two scales.

    >>> rows, scales = quantize([[1.0, 0.0], [1.0, 1.0]])
    >>> (similarity(rows, scales, rows, scales) * 100).round().tolist()
    [[100.0, 71.0], [71.0, 100.0]]
    """
    dots = rows_a.astype(np.float32) @ rows_b.astype(np.float32).T
    return dots * scales_a[:, None] * scales_b[None, :]


@dataclasses.dataclass(frozen=True)
class Item:
    """What the index needs to know of an item; a content that is None is missing; text may be invalid UTF-8."""

    item_id: int  # fingerprint
    event_time_us: int = 0
    contents: typing.Mapping[str, Content | None] = dataclasses.field(default_factory=dict)  # by modality
    features: tuple[item_features.Packed, ...] = ()  # a row per layout
    catalog_time_us: int = 0  # when the catalog that says so was written; 0: an event says so
    fault: str | None = None  # why none of it can be used

    def content(self, modality: str) -> Content | None:
        """Returns its content; None where there is none, or nothing in it."""
        found = self.contents.get(modality)
        return found if found is not None and len(found) else None


class EncoderError(RuntimeError):
    """An encoder that fails on every content; the fault is its own, not that of an item."""


class Encoder:
    """A pre-trained encoder (section 3): contents in, unit vectors out.

    Attributes:
        modality: its name.
        dim: D.
        version: hash of its contents; rows of two versions are never compared.
        form: of the contents that it takes; None: as they are.
        is_text: whether it reads texts, of `MAX_TEXT_BYTES` at most.
        probe: a content that every encoder takes.
    """

    probe = b"probe"

    def __init__(
        self,
        folder: str | pathlib.Path,
        modality: str,
        dim: int,
        version: str,
        is_text: bool = False,
        form: ContentForm | None = None,
    ):
        import tensorflow as tf  # here, so that given vectors need none

        self.modality, self.dim, self.version, self.is_text = modality, dim, version, is_text
        self.form = form or ContentForm()
        self._constant = tf.constant
        with plain_paths.plain(folder) as path:
            self._model = tf.saved_model.load(path)  # keeps the variables alive
        self._call = self._model.signatures["serving_default"]

    def __call__(self, contents: typing.Sequence[Content]) -> np.ndarray:
        """Returns float32 [n, D]; zeros where a content cannot be decoded.

        Raises:
            ValueError: it gives vectors of another dim than it says.
        """
        if not contents:
            return np.zeros([0, self.dim], np.float32)
        values = [self.form(typing.cast("bytes | str", value)) for value in contents]
        vectors = self._call(content=self._constant(values))["vector"].numpy()
        if vectors.shape != (len(contents), self.dim):
            raise ValueError(
                f"The {self.modality} encoder must give [{len(contents)}, {self.dim}] values, as its manifest says. "
                f"Received: {list(vectors.shape)}. Export it again."
            )
        return vectors

    def refusal(self, content: Content) -> str | None:
        """Returns why a content is not encoded, or None."""
        if not isinstance(content, (bytes, str)):
            return "must be text or bytes, not a list of numbers"
        if self.is_text and (size := _size_bytes(content)) > MAX_TEXT_BYTES:
            return f"must be at most {MAX_TEXT_BYTES} bytes of UTF-8, not {size}; shorten it"
        return self.form.refusal(content)


class GivenVectors:
    """Stands in for an encoder where items bring their own vectors."""

    probe = (0.0,)

    def __init__(self, dim: int, modality: str = "vector"):
        self.dim, self.modality = dim, modality
        self.version = f"{GIVEN}{artifacts.fingerprint(modality, dim)}"

    def __call__(self, contents: typing.Sequence[Content]) -> np.ndarray:
        """Returns float32 [n, D]; NaN where a vector has another length, or holds None."""
        result = np.full([len(contents), self.dim], np.nan, np.float32)
        with np.errstate(over="ignore"):  # beyond float32: infinite
            for row, vector in zip(result, contents):
                if len(vector) == self.dim:
                    row[:] = np.array(vector, np.float64)
        return result

    def refusal(self, content: Content) -> str | None:
        """Returns why a content is no vector, or None."""
        return "must be a list of numbers, not text or bytes" if isinstance(content, (bytes, str)) else None


AnyEncoder = Encoder | GivenVectors


def load_encoder(folder: str | pathlib.Path) -> Encoder:
    """Loads the encoder that pre-training wrote.

    Args:
        folder: the output folder of pre-training: `manifest.json` and the SavedModel `encoder/`.
    Raises:
        FileNotFoundError: pre-training did not finish there.
        ValueError: it takes contents in a form that is not known here.
    """
    folder = pathlib.Path(folder)
    manifest = artifacts.read_manifest(folder)
    kind = (manifest["config"] or {}).get("encoder") or manifest["modality"]
    return Encoder(
        folder / "encoder",
        manifest["modality"],
        manifest["dim"],
        manifest["encoder_version"],
        is_text=refuses_long_texts(kind),
        form=ContentForm(**manifest.get("content_form", {})),  # of an encoder that says nothing: contents as they are
    )


class Rejected(typing.NamedTuple):
    """An item's content that has no usable embedding."""

    item_id: int  # 0: the row has no id
    modality: str
    reason: str
    content: Content | None = None


def embed(items: typing.Sequence[Item], encoder: AnyEncoder) -> tuple[rows_lib.IndexRows, dict[int, str], int]:
    """Embeds and quantises the items that have content of the encoder's modality.

    Content that the encoder fails on is rejected; that of the other items is embedded all the same.

    Returns:
        The rows (sequence numbers 0: the index gives them), the reasons of the rejected items by their place in
        `items`, and how many items have no such content.
    Raises:
        EncoderError: the encoder fails on every content.
    """
    field = event_field(encoder.modality)
    rejected: dict[int, str] = {}
    present: list[int] = []
    num_missing = 0
    for place, item in enumerate(items):
        content = item.content(encoder.modality)
        if item.item_id == features.PADDING:
            rejected[place] = "item_id: must be neither null, 0 nor empty"
        elif item.fault:
            rejected[place] = item.fault
        elif content is None:
            num_missing += 1
        elif refusal := encoder.refusal(content):
            rejected[place] = f"{field}: {refusal}"
        else:
            present.append(place)
    contents = [typing.cast(Content, items[place].content(encoder.modality)) for place in present]
    vectors, failures = _encode(contents, encoder)
    is_finite = np.isfinite(vectors).all(axis=1)
    usable = is_finite & np.any(vectors != 0, axis=1)
    fault = "is all zeros" if isinstance(encoder, GivenVectors) else "cannot be decoded, or is blank"
    for place, failure, finite, good in zip(present, failures, is_finite, usable):
        if failure is not None:
            rejected[place] = f"{field}: the encoder fails: {failure}"
        elif not good:
            rejected[place] = f"{field}: {fault if finite else f'must give {encoder.dim} finite values'}"
    kept = [items[place] for place, good in zip(present, usable) if good]
    rows, scales = quantize(vectors[usable])
    return (
        rows_lib.IndexRows(
            np.array([item.item_id for item in kept], np.int64),
            rows,
            scales,
            np.zeros(len(kept), np.int64),
            np.array([item.event_time_us for item in kept], np.int64),
        ),
        rejected,
        num_missing,
    )


def feature_rows(items: typing.Sequence[Item]) -> list[store.TableRows]:
    """Returns the items' features as rows of the index, a table per layout.

    Items without an id, or with a fault, are left out.
    """
    tables: dict[str, list[tuple[Item, item_features.Packed]]] = {}
    for item in items:
        for packed in item.features if item.item_id != features.PADDING and not item.fault else ():
            tables.setdefault(packed.version, []).append((item, packed))
    result = []
    for version, own in tables.items():
        rows = rows_lib.IndexRows(
            np.array([item.item_id for item, _ in own], np.int64),
            np.stack([packed.row for _, packed in own]),
            np.ones(len(own), np.float32),
            np.zeros(len(own), np.int64),
            np.array([item.event_time_us for item, _ in own], np.int64),
        )
        given = [np.ones(len(packed.row), bool) if packed.given is None else packed.given for _, packed in own]
        catalog_times_us = np.array([item.catalog_time_us for item, _ in own], np.int64)
        result.append(store.TableRows(features.STORED, version, rows, np.stack(given), catalog_times_us))
    return result


def _size_bytes(text: typing.Any) -> int:
    return len(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)


def _encode(contents: list[Content], encoder: AnyEncoder) -> tuple[np.ndarray, list[str | None]]:
    """Returns float32 [n, D], and by content why the encoder fails on it (its vector is NaN then), or None."""
    try:
        return encoder(contents), [None] * len(contents)
    except Exception as error:  # one content must not take others along, nor end a job at every start
        if len(contents) > 1:
            halves = contents[: len(contents) // 2], contents[len(contents) // 2 :]
            (vectors, failures), (more_vectors, more_failures) = (_encode(half, encoder) for half in halves)
            return np.concatenate([vectors, more_vectors]), failures + more_failures
        try:
            encoder([encoder.probe])
        except Exception as fault:
            raise EncoderError(
                f"The {encoder.modality} encoder {encoder.version} must take any content. It fails on a probe too: "
                f"{str(fault)[:500]}"
            ) from fault
        return np.full([1, encoder.dim], np.nan, np.float32), [str(error)[:500]]
