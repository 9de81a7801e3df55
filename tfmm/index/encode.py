"""From an item's content to its int8 row: encoders, quantisation, and the two together."""

from __future__ import annotations

import dataclasses
import pathlib
import typing

import numpy as np

from tfmm import artifacts, features
from tfmm.index import rows as rows_lib

Content = bytes | str | typing.Sequence[float]
CONTENT_FIELDS = {"image": "image", "text": "title", "vector": "vector"}  # modality -> field of an item


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
    """What the index needs to know of an item; a content that is None is missing."""

    item_id: int  # fingerprint
    category: int = 0  # fingerprint; 0: none
    event_time_us: int = 0
    image: bytes | None = None  # encoded PNG or JPEG
    title: str | None = None
    vector: typing.Sequence[float] | None = None


class Encoder:
    """A pre-trained encoder (section 3): contents in, unit vectors out.

    Attributes:
        modality: image or text.
        dim: D.
        version: hash of its contents; rows of two versions are never compared.
    """

    def __init__(self, folder: str | pathlib.Path, modality: str, dim: int, version: str):
        import tensorflow as tf  # here, so that given vectors need none

        self.modality, self.dim, self.version = modality, dim, version
        self._constant = tf.constant
        self._model = tf.saved_model.load(str(folder))  # keeps the variables alive
        self._call = self._model.signatures["serving_default"]

    def __call__(self, contents: typing.Sequence[Content]) -> np.ndarray:
        """Returns float32 [n, D]; zeros where a content cannot be decoded."""
        if not contents:
            return np.zeros([0, self.dim], np.float32)
        values = [value.encode() if isinstance(value, str) else value for value in contents]
        return self._call(content=self._constant(values))["vector"].numpy()


class GivenVectors:
    """Stands in for an encoder where items bring their own vectors (modality `vector`)."""

    modality = "vector"

    def __init__(self, dim: int):
        self.dim = dim
        self.version = f"given:{artifacts.fingerprint('vector', dim)}"

    def __call__(self, contents: typing.Sequence[Content]) -> np.ndarray:
        """Returns float32 [n, D]; NaN where a vector has another length."""
        result = np.full([len(contents), self.dim], np.nan, np.float32)
        for row, vector in zip(result, contents):
            if len(vector) == self.dim:
                row[:] = vector
        return result


AnyEncoder = Encoder | GivenVectors


def load_encoder(folder: str | pathlib.Path) -> Encoder:
    """Loads the encoder that pre-training wrote.

    Args:
        folder: the output folder of pre-training: `manifest.json` and the SavedModel `encoder/`.
    Raises:
        FileNotFoundError: pre-training did not finish there.
    """
    folder = pathlib.Path(folder)
    manifest = artifacts.read_manifest(folder)
    return Encoder(folder / "encoder", manifest["modality"], manifest["dim"], manifest["encoder_version"])


class Rejected(typing.NamedTuple):
    """An item's content that has no usable embedding."""

    item_id: int  # 0: the row has no id
    modality: str
    reason: str


def embed(items: typing.Sequence[Item], encoder: AnyEncoder) -> tuple[rows_lib.IndexRows, dict[int, str], int]:
    """Embeds and quantises the items that have content of the encoder's modality.

    Returns:
        The rows (sequence numbers 0: the index gives them), the reasons of the rejected items by their place in
        `items`, and how many items have no such content.
    """
    field = CONTENT_FIELDS[encoder.modality]
    contents = [getattr(item, field) for item in items]
    rejected = {
        place: "item_id: must be neither null, 0 nor empty"
        for place, item in enumerate(items)
        if item.item_id == features.PADDING
    }
    num_named = len(items) - len(rejected)
    present = [
        place
        for place, content in enumerate(contents)
        if content is not None and len(content) and place not in rejected
    ]
    vectors = encoder([contents[place] for place in present])
    is_finite = np.isfinite(vectors).all(axis=1)
    usable = is_finite & np.any(vectors != 0, axis=1)
    unusable = "vector: is all zeros" if encoder.modality == "vector" else f"{field}: cannot be decoded"
    for place, finite, good in zip(present, is_finite, usable):
        if not good:
            rejected[place] = unusable if finite else f"{field}: must give {encoder.dim} finite values"
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
        num_named - len(present),
    )
