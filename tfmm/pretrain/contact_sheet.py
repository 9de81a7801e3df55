"""A few held-out pairs to look at: the query, what was bought, the hard negative, and what the encoder finds."""

from __future__ import annotations

import base64
import typing

import numpy as np
import tensorflow as tf

from tfmm.pretrain import images, picture_header
from tfmm.pretrain.heldout import Heldout, Vectors
from tfmm.pretrain.pair_table import NONE

FILE = "contact_sheet.json"
NUM_ROWS, NUM_FOUND = 6, 5
SIDE, QUALITY = 72, 85  # of a thumbnail: pixels, JPEG
MAX_CHARACTERS = 200  # of a text

Card = dict[str, typing.Any]


def make(heldout: Heldout, vectors: Vectors, ranks: np.ndarray, seed: int) -> list[Card]:
    """Returns rows to show, of pairs drawn by the seed whatever the encoder makes of them, one an item.

    Args:
        heldout: the pairs.
        vectors: of the encoder.
        ranks: int64 [n], of each pair's positive among all items.
        seed: of the draw.
    Returns:
        Per row `query`, `positive` and `negative` (a card, or None), `rank`, and `found`: the items most similar to the
        query, each a card with `similarity` and `is_hit`. A card has `text`, or `image`, a JPEG of `SIDE` pixels in
        base64; of anything else `text` tells the bytes.
    """
    pairs = heldout.pairs
    _, first, own = np.unique(pairs.item_ids, return_index=True, return_inverse=True)
    chosen = np.sort(np.random.default_rng(seed).permutation(first)[:NUM_ROWS])
    similarity = vectors.queries[chosen] @ vectors.positives[first].T
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :NUM_FOUND]
    contents = np.append(heldout.positive[first[order]].ravel(), [pairs.query[chosen], heldout.positive[chosen]])
    used = np.unique(np.append(contents, pairs.negative[chosen]))
    cards = dict(zip(used[used != NONE].tolist(), _cards([pairs.contents[row] for row in used if row != NONE])))
    return [
        {
            "query": cards[int(pairs.query[pair])],
            "positive": cards[int(heldout.positive[pair])],
            "negative": cards.get(int(pairs.negative[pair])),
            "rank": int(ranks[pair]),
            "found": [
                {
                    **cards[int(heldout.positive[first[item]])],
                    "similarity": round(float(similarity[row, item]), 4),
                    "is_hit": bool(item == own[pair]),
                }
                for item in order[row]
            ],
        }
        for row, pair in enumerate(chosen)
    ]


def _cards(contents: list[bytes]) -> list[Card]:
    pictures, valid = images.decode_images(tf.constant(contents, tf.string), SIDE)
    return [
        {"image": base64.b64encode(tf.io.encode_jpeg(255 - picture, quality=QUALITY).numpy()).decode()}
        if is_picture and picture_header.num_pixels(content)
        else {"text": _text(content)}
        for content, picture, is_picture in zip(contents, pictures, valid.numpy(), strict=True)
    ]


def _text(content: bytes) -> str:
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return f"{len(content):,} bytes"
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 1] + "…"
