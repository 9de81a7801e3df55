"""Words of the synthetic catalog: titles from attributes, and the way shoppers ask for the same thing."""

from __future__ import annotations

import dataclasses

import numpy as np

STYLES = (
    ("retro", "vintage", "old-school"),
    ("nautical", "maritime", "seaside"),
    ("floral", "flowery", "blossom"),
    ("minimalist", "plain-lined", "scandi"),
    ("rustic", "farmhouse", "country"),
    ("gothic", "dark-romantic", "baroque"),
    ("tropical", "jungle", "palm-leaf"),
    ("industrial", "factory", "loft"),
    ("festive", "holiday", "christmas"),
    ("playful", "kids", "cartoon"),
)
MATERIALS = (
    ("oak", "wooden", "timber"),
    ("glass", "crystal", "clear"),
    ("wool", "knitted", "woolen"),
    ("ceramic", "stoneware", "porcelain"),
    ("steel", "metal", "iron"),
    ("linen", "cotton", "cloth"),
    ("bamboo", "wicker", "rattan"),
    ("leather", "hide", "suede"),
)
NOUNS = (
    ("mug", "cup"),
    ("lamp", "light"),
    ("cushion", "pillow"),
    ("vase", "urn"),
    ("bag", "tote"),
    ("clock", "timepiece"),
    ("chair", "seat"),
    ("plate", "dish"),
    ("bottle", "flask"),
    ("shirt", "top"),
    ("frame", "border"),
    ("bowl", "basin"),
)
FEATURES = (
    "handmade",
    "foldable",
    "large",
    "small",
    "set of two",
    "waterproof",
    "limited",
    "gift boxed",
    "signed",
    "light",
    "sturdy",
    "recycled",
)
_SYLLABLES = ("ba", "do", "fi", "ga", "he", "ka", "lu", "mo", "ni", "po", "ra", "si", "tu", "ve", "wo", "zan")
NUM_BRANDS = 60


@dataclasses.dataclass(frozen=True)
class Wording:
    """What n products say of themselves; int [n] indices, brands up to NUM_BRANDS, models any number."""

    noun: np.ndarray
    style: np.ndarray
    material: np.ndarray
    feature: np.ndarray
    brand: np.ndarray
    model: np.ndarray

    def __getitem__(self, rows: np.ndarray | slice) -> Wording:
        return Wording(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))

    def rows(self) -> list[tuple[int, ...]]:
        return list(zip(*(getattr(self, field.name).tolist() for field in dataclasses.fields(self))))


def brand_name(brand: int) -> str:
    """Returns a made-up brand.

    >>> brand_name(17)
    'Dofi'
    """
    base = len(_SYLLABLES)
    return (_SYLLABLES[brand % base] + _SYLLABLES[(brand // base + brand % base) % base]).capitalize()


def titles(wording: Wording, rng: np.random.Generator) -> list[str]:
    """Returns one title per product; which synonym a seller takes is drawn."""
    choice = rng.integers(0, 3, (len(wording.noun), 3))
    result = []
    for (noun, style, material, feature, brand, model), (a, b, c) in zip(wording.rows(), choice.tolist()):
        result.append(
            f"{brand_name(brand)} {STYLES[style][a]} {MATERIALS[material][b]} {NOUNS[noun][c % 2]} "
            f"{FEATURES[feature]} {model}"
        )
    return result


def queries(wording: Wording, rng: np.random.Generator) -> list[str]:
    """Returns what a shopper types for each product: some of its traits, in the shopper's words and order."""
    choice = rng.integers(0, 3, (len(wording.noun), 3))
    kept = rng.random((len(wording.noun), 5)) < (0.85, 0.8, 0.9, 0.35, 0.35)
    order = rng.permuted(np.tile(np.arange(5), (len(wording.noun), 1)), axis=1)
    result = []
    for row, (noun, style, material, feature, brand, _) in enumerate(wording.rows()):
        a, b, c = choice[row]
        words = (
            STYLES[style][a],
            MATERIALS[material][b],
            NOUNS[noun][c % 2],
            FEATURES[feature],
            brand_name(brand).lower(),
        )
        said = [words[place] for place in order[row] if kept[row, place]]
        result.append(" ".join(said) if said else words[2])
    return result
