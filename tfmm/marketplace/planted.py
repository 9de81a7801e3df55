"""What a rich marketplace has beside looks and titles, and the effects that some of it has on clicks.

`truth/effects.json` says what each effect comes from and what it is worth; `truth/impressions.parquet` has each
effect's part of each click's logit.
"""

from __future__ import annotations

import dataclasses
import typing

import numpy as np
import pyarrow as pa

from tfmm import metrics
from tfmm.marketplace import shoppers, wording

CITIES = ("Avila", "Bergen", "Corfu", "Delft", "Essen", "Fano", "Ghent", "Husum")
AGE_GROUPS = ("18-24", "25-34", "35-49", "50-64", "65+")
DEVICES = ("android", "ios", "web")
TAGS = ("bestseller", "gift", "last pieces", "local", "new season", "sale", "vegan", "with video")
EVENING_HOUR = 20  # UTC: clicks are likeliest
_NO_INCOME, _NO_DWELL = 0.1, 0.05  # shares of users, and of behaviors, of whom it is not known
_OWN_DEVICE = 0.8  # share of visits on the user's own device
_HOUR_US = 3_600_000_000


@dataclasses.dataclass(frozen=True)
class Effect:
    """A part of the click's logit that declared columns explain."""

    name: str
    spread: float  # standard deviation over impressions; the mean is 0
    columns: tuple[str, ...]  # that it comes from
    meaning: str


EFFECTS = (
    Effect("price", 0.8, ("items.price", "users.income"), "dear items are clicked less, by the poor above all"),
    Effect(
        "city_category",
        0.8,
        ("users.city", "items.category"),
        "half of the categories are liked in half of the cities, disliked in the others",
    ),
    Effect("time_of_day", 0.8, ("impressions.timestamp",), f"clicks are likeliest at {EVENING_HOUR} h UTC"),
    Effect("position", 0.8, ("impressions.position",), "what stands lower is clicked less"),
)
WITHOUT_EFFECT = ("users.age_group", "items.brand", "items.tags", "impressions.device", "behaviors.dwell")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What users and items are, drawn apart from all else: n users, m items, C categories."""

    age_group: np.ndarray  # int [n]
    city: np.ndarray  # int [n]
    income: np.ndarray  # float [n], a year
    says_income: np.ndarray  # bool [n]
    device: np.ndarray  # int [n], the user's own
    city_liking: np.ndarray  # float [cities], 1 or -1: whether a city likes the local categories
    is_local: np.ndarray  # float [C], 1 or 0: categories that cities differ in
    price: np.ndarray  # float [m]
    brand: np.ndarray  # int [m]
    tags: list[list[str]]  # [m], of 0 to 3

    def users(self) -> dict[str, typing.Any]:
        """Returns the columns of table `users`, but its key."""
        return {
            "age_group": _names(AGE_GROUPS, self.age_group),
            "city": _names(CITIES, self.city),
            "income": pa.array(self.income, mask=~self.says_income),
        }

    def items(self) -> dict[str, typing.Any]:
        """Returns the columns that table `items` has beside the others."""
        return {
            "brand": [wording.brand_name(brand) for brand in self.brand.tolist()],
            "price": self.price,
            "tags": pa.array(self.tags, pa.list_(pa.string())),
        }

    def effects(
        self, users: np.ndarray, items: np.ndarray, categories: np.ndarray, times: np.ndarray, position: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Returns each effect's part of the logits of n impressions, float [n], by name.

        Args:
            users, items: int [n], rows.
            categories: int [n], of the items.
            times: int [n], microseconds.
            position: int [n], from 1.
        """
        price_level, income_level = _standardized(np.log(self.price)), _standardized(np.log(self.income))
        hour = times // _HOUR_US % 24
        raw = {
            "price": -price_level[items] * np.clip(1 - 0.5 * income_level[users], 0, 2),
            "city_category": self.city_liking[self.city[users]] * self.is_local[categories],
            "time_of_day": np.cos(2 * np.pi * (hour - EVENING_HOUR) / 24),
            "position": -np.log(position),
        }
        return {effect.name: effect.spread * _standardized(raw[effect.name]) for effect in EFFECTS}

    def devices(self, users: np.ndarray, visits: np.ndarray, rng: np.random.Generator) -> pa.Array:
        """Draws the device of each impression: a visit has one, mostly the user's own.

        Args:
            users: int [n], rows.
            visits: int [n], which visit an impression belongs to.
        """
        num_visits = int(visits.max(initial=-1)) + 1
        own, other = rng.random(num_visits) < _OWN_DEVICE, rng.integers(0, len(DEVICES), num_visits)
        return _names(DEVICES, np.where(own[visits], self.device[users], other[visits]))


def draw(num_users: int, num_categories: int, brand: np.ndarray, rng: np.random.Generator) -> Plan:
    """Draws users and items; `brand` is int [m], as the items' titles say it."""
    num_items = len(brand)
    count = rng.integers(0, 4, num_items)
    order = rng.permuted(np.tile(np.arange(len(TAGS)), (num_items, 1)), axis=1)
    return Plan(
        age_group=rng.integers(0, len(AGE_GROUPS), num_users),
        city=rng.integers(0, len(CITIES), num_users),
        income=np.exp(10.3 + 0.5 * rng.standard_normal(num_users)).round(-2),
        says_income=rng.random(num_users) >= _NO_INCOME,
        device=rng.integers(0, len(DEVICES), num_users),
        city_liking=rng.permutation(np.resize([1.0, -1.0], len(CITIES))),
        is_local=rng.permutation(np.resize([1.0, 0.0], num_categories)),
        price=np.maximum(np.exp(3.0 + 0.8 * rng.standard_normal(num_items)), 0.5).round(2),
        brand=brand,
        tags=[[TAGS[tag] for tag in row[:n]] for row, n in zip(order.tolist(), count.tolist())],
    )


def draw_dwell(
    taste: shoppers.Taste, traits: shoppers.Traits, users: np.ndarray, items: np.ndarray, rng: np.random.Generator
) -> pa.Array:
    """Draws the seconds that behaviors lasted, float [n]: longer on what suits the taste; null where not known."""
    visual, textual = shoppers.affinities(taste, traits, users, items)
    seconds = np.exp(2.5 + 0.8 * (visual + textual) + 0.6 * rng.standard_normal(len(users)))
    return pa.array(seconds.round(1), mask=rng.random(len(users)) < _NO_DWELL)


def worth(probability: np.ndarray, effects: typing.Mapping[str, np.ndarray]) -> dict[str, typing.Any]:
    """Returns what `truth/effects.json` says: the AUC of the true probabilities, and what each effect adds to it.

    A row counts as a click with its true probability and as none with the rest, so that no chance is in it. Without
    an effect, a click's logit is what is left of it: the effect's mean is 0.

    Args:
        probability: float [n], true ones, of any impressions.
        effects: float [n] parts of the logit, by name.
    """
    logit = np.log(probability / (1 - probability))
    labels, weights = np.repeat([1, 0], len(logit)), np.concatenate([probability, 1 - probability])

    def expected_auc(values: np.ndarray) -> float:
        return metrics.auc(labels, np.tile(values, 2), weights)

    whole = expected_auc(logit)
    facts = {
        effect.name: {
            "columns": list(effect.columns),
            "meaning": effect.meaning,
            "spread_of_logit": round(float(effects[effect.name].std()), 4),
            "auc_lost_without": round(whole - expected_auc(logit - effects[effect.name]), 4),
        }
        for effect in EFFECTS
    }
    return {"auc": round(whole, 4), "effects": facts, "without_effect": list(WITHOUT_EFFECT)}


def _standardized(values: np.ndarray) -> np.ndarray:
    """Returns values of mean 0 and spread 1; zeros where all are one."""
    spread = values.std()
    return (values - values.mean()) / spread if spread > 1e-9 else np.zeros(len(values))


def _names(names: tuple[str, ...], places: np.ndarray) -> pa.Array:
    return pa.array(np.array(names)[places].tolist(), pa.string())
