"""A seeded synthetic marketplace: drawn products, shoppers with taste, searches and a week of clicks.

`<output_dir>/truth/` holds what no log would show: the attributes of items, the tastes of users, true click
probabilities and, of a rich marketplace, what was planted in them (`tfmm.marketplace.planted`).
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import typing

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

from tfmm import artifacts
from tfmm.config import MarketplaceConfig
from tfmm.data import schema
from tfmm.marketplace import drawing, planted, shoppers, wording

WEEK_START_US = 1_709_510_400_000_000  # Monday 2024-03-04 00:00 UTC
FIRST_ITEM_ID, FIRST_USER_ID, FIRST_SEARCH_ID = 1_000_001, 500_001, 9_000_001
_HOUR_US, _DAY_US = 3_600_000_000, 86_400_000_000
_PAST_DAYS = 60  # of searches, clicks and purchases before the week
_PAST_CLICKS = 25  # mean, per user
POOL = 64  # candidates per user and day
NEW_IN_POOL = 28  # those among them that entered the catalog within 24 hours
_SHOWN = ("user_id", "item_id", "timestamp", "label")  # of an impression; the rest is truth
_SHOWN_RICH = ("device", "position")


@dataclasses.dataclass(frozen=True)
class _Catalog:
    look: drawing.Look
    words: wording.Wording
    traits: shoppers.Traits
    created_at: np.ndarray  # int64 [n], us
    day: np.ndarray  # int [n], day of the week on which the item entered; -1 before the week


def generate(config: MarketplaceConfig, output_dir: str | pathlib.Path) -> dict[str, typing.Any]:
    """Writes the tables items, searches, behaviors and impressions, and `truth/`; of a rich one, also users.

    Args:
        config: sizes and seed; the same ones give the same bytes in every column. What makes a marketplace rich is
            drawn apart: the others' columns stay, but for clicks and what follows from them.
        output_dir: made where missing.
    Returns:
        The manifest: rows per table, click-through rate, and more.
    """
    folder = pathlib.Path(output_dir).absolute()  # pyarrow takes other relative names for URIs
    (folder / "truth").mkdir(parents=True, exist_ok=True)
    rng_catalog, rng_taste, rng_past, rng_week, rng_pictures, rng_missing, rng_rich = _generators(config)
    catalog = _draw_catalog(config, rng_catalog)
    taste = shoppers.draw_taste(config.num_users, rng_taste)
    plan = None
    if config.rich:
        plan = planted.draw(config.num_users, len(drawing.SHAPES), catalog.words.brand, rng_rich)
    searches, search_behaviors = _search(config, catalog, taste, rng_past, rng_pictures)
    past = _browse(config, catalog, taste, rng_past)
    impressions, week = _run_week(config, catalog, taste, plan, rng_week, rng_rich)
    behaviors = _sorted(schema.concatenate([search_behaviors, past, week]), rng_week)
    tables = {
        "items": _items(config, catalog, rng_pictures, rng_missing),
        "searches": searches,
        "behaviors": behaviors,
        "impressions": impressions.select([*_SHOWN, *(_SHOWN_RICH if plan else ())]),
        "truth/items": _true_items(catalog),
        "truth/users": _true_users(taste),
        "truth/impressions": impressions,
    }
    if plan is not None:
        tables |= _rich_tables(tables, plan, catalog, taste, rng_rich)
        effects = {effect.name: impressions[f"{effect.name}_effect"].to_numpy() for effect in planted.EFFECTS}
        worth = planted.worth(impressions["click_probability"].to_numpy(), effects)
        (folder / "truth" / "effects.json").write_text(json.dumps(worth, indent=2) + "\n")
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=65_536)
    clicks = impressions["label"].to_numpy()
    return artifacts.write_manifest(
        folder,
        "data",
        config,
        source="marketplace",
        rows={name: table.num_rows for name, table in tables.items() if "/" not in name},
        click_through_rate=round(float(clicks.mean()), 4),
    )


def draw_shoppers(config: MarketplaceConfig) -> tuple[shoppers.Taste, shoppers.Traits]:
    """Draws again what users of `generate` like, by `FIRST_USER_ID`, and what items are, by `FIRST_ITEM_ID`."""
    rng_catalog, rng_taste, *_ = _generators(config)
    return shoppers.draw_taste(config.num_users, rng_taste), _draw_catalog(config, rng_catalog).traits


def _generators(config: MarketplaceConfig) -> list[np.random.Generator]:
    return [np.random.default_rng(part) for part in np.random.SeedSequence(config.seed).spawn(7)]


def draw_new_item(config: MarketplaceConfig, number: int, created_at_us: int) -> dict[str, typing.Any]:
    """Draws an item that the catalog of `generate` does not hold, as an event would bring it.

    Args:
        config: of the catalog.
        number: 0.. ; gives the item and its id.
        created_at_us: microseconds since 1970.
    Returns:
        item_id, title, image (PNG bytes), category and created_at (us); of a rich one also brand, price and tags.
    """
    rng, look, words = _draw_new(config, number)
    offset = config.num_items + config.num_days * config.new_items_per_day + number
    item = {
        "item_id": FIRST_ITEM_ID + offset,
        "title": wording.titles(words, rng)[0],
        "image": encode_png(drawing.draw_catalog(look, config.image_size, rng))[0],
        "category": int(words.noun[0]) + 1,
        "created_at": created_at_us,
    }
    if not config.rich:
        return item
    columns = pa.table(planted.draw(0, len(drawing.SHAPES), words.brand, rng).items())
    return {**item, **columns.to_pylist()[0]}


def traits_of_new_item(config: MarketplaceConfig, number: int) -> shoppers.Traits:
    """Returns what shoppers see of `draw_new_item`'s item, as arrays of one; its popularity is drawn as of others."""
    _, look, words = _draw_new(config, number)
    return _traits(look, words, np.random.default_rng((config.seed, 2, number)))


def _draw_new(
    config: MarketplaceConfig, number: int
) -> tuple[np.random.Generator, drawing.Look, wording.Wording]:
    rng = np.random.default_rng((config.seed, 1, number))
    return rng, *_draw_items(1, rng)


def encode_png(pictures: np.ndarray) -> list[bytes]:
    """Encodes uint8 [n, height, width, 3] as n PNG files."""
    return [tf.io.encode_png(picture).numpy() for picture in pictures]


def _draw_items(n: int, rng: np.random.Generator) -> tuple[drawing.Look, wording.Wording]:
    shape = rng.integers(0, len(drawing.SHAPES), n)
    look = drawing.Look(
        shape,
        rng.integers(0, drawing.NUM_PALETTES, n),
        rng.integers(0, len(drawing.PATTERNS), n),
        rng.random((n, 6)),
    )
    words = wording.Wording(
        shape,
        rng.integers(0, len(wording.STYLES), n),
        rng.integers(0, len(wording.MATERIALS), n),
        rng.integers(0, len(wording.FEATURES), n),
        rng.integers(0, wording.NUM_BRANDS, n),
        rng.integers(10, 1000, n),
    )
    return look, words


def _draw_catalog(config: MarketplaceConfig, rng: np.random.Generator) -> _Catalog:
    n = config.num_items + config.num_days * config.new_items_per_day
    look, words = _draw_items(n, rng)
    day = np.concatenate(
        [np.full(config.num_items, -1), np.repeat(np.arange(config.num_days), config.new_items_per_day)]
    )
    created_at = np.where(
        day < 0,
        WEEK_START_US - rng.integers((_PAST_DAYS + 1) * _DAY_US, 150 * _DAY_US, n),
        WEEK_START_US + day * _DAY_US + rng.integers(0, _DAY_US, n),
    )
    return _Catalog(look, words, _traits(look, words, rng), created_at, day)


def _traits(look: drawing.Look, words: wording.Wording, rng: np.random.Generator) -> shoppers.Traits:
    popularity = rng.standard_normal(len(look.shape))
    return shoppers.Traits(look.shape, look.palette, look.pattern, words.style, words.material, popularity)


def _search(
    config: MarketplaceConfig,
    catalog: _Catalog,
    taste: shoppers.Taste,
    rng: np.random.Generator,
    rng_pictures: np.random.Generator,
) -> tuple[pa.Table, pa.Table]:
    """Searches that end in the purchase of what was wanted, and the clicks from its page to a rival of it."""
    n, old = config.num_searches, config.num_items
    users = rng.integers(0, config.num_users, n)
    pool = shoppers.draw_pool(0.6 * catalog.traits.popularity[:old], n, 16, rng)
    wanted = shoppers.choose(taste, catalog.traits, users, pool, rng)
    times = np.sort(WEEK_START_US - rng.integers(_HOUR_US, _PAST_DAYS * _DAY_US, n))
    said = wording.queries(catalog.words[wanted], rng)
    pictures = encode_png(drawing.draw_query(catalog.look[wanted], config.image_size, rng_pictures))
    kind = rng.random(n)  # a fifth types only, a fifth photographs only
    search_ids = FIRST_SEARCH_ID + np.arange(n)
    searches = _table(
        search_id=search_ids,
        user_id=FIRST_USER_ID + users,
        timestamp=times,
        query_text=pa.array([None if k > 0.8 else text for k, text in zip(kind, said)], pa.string()),
        query_image=pa.array([None if k < 0.2 else png for k, png in zip(kind, pictures)], pa.binary()),
    )
    rivals = _rivals(catalog, wanted, old, rng)
    looked = rng.random(n) < 0.7
    actions = [
        ("click", wanted, np.full(n, -1), 40, np.ones(n, bool)),
        ("click", rivals, wanted, 90, looked),
        ("purchase", wanted, np.full(n, -1), 300, np.ones(n, bool)),
    ]
    parts = []
    for action, items, trigger, seconds, kept in actions:
        parts.append(
            _table(
                user_id=FIRST_USER_ID + users[kept],
                item_id=FIRST_ITEM_ID + items[kept],
                timestamp=(times + seconds * 1_000_000)[kept],
                action=[action] * int(kept.sum()),
                search_id=search_ids[kept],
                trigger_item_id=pa.array(FIRST_ITEM_ID + trigger[kept], mask=trigger[kept] < 0),
            )
        )
    return searches, pa.concat_tables(parts)


def _rivals(catalog: _Catalog, wanted: np.ndarray, old: int, rng: np.random.Generator) -> np.ndarray:
    """For each wanted item, another one that resembles it most, among a random 24."""
    pool = rng.integers(0, old, (len(wanted), 24))
    traits, alike = catalog.traits, np.zeros(pool.shape)
    for values, weight in (
        (traits.category, 2.0),
        (traits.palette, 1.2),
        (traits.pattern, 1.0),
        (traits.style, 0.8),
        (traits.material, 0.6),
    ):
        alike += weight * (values[pool] == values[wanted][:, None])
    alike[pool == wanted[:, None]] = -1
    return pool[np.arange(len(wanted)), np.argmax(alike + 0.3 * rng.random(pool.shape), axis=1)]


def _browse(config: MarketplaceConfig, catalog: _Catalog, taste: shoppers.Taste, rng: np.random.Generator) -> pa.Table:
    """Clicks, and a few purchases, in the weeks before the week."""
    counts = np.minimum(rng.geometric(1 / _PAST_CLICKS, config.num_users), 5 * _PAST_CLICKS)
    users = np.repeat(np.arange(config.num_users), counts)
    pool = shoppers.draw_pool(catalog.traits.popularity[: config.num_items], len(users), 24, rng)
    items = shoppers.choose(taste, catalog.traits, users, pool, rng)
    times = WEEK_START_US - rng.integers(_HOUR_US, _PAST_DAYS * _DAY_US, len(users))
    bought = rng.random(len(users)) < 0.12
    return _table(
        user_id=FIRST_USER_ID + users,
        item_id=FIRST_ITEM_ID + items,
        timestamp=times,
        action=np.where(bought, "purchase", "click").tolist(),
    )


def _run_week(
    config: MarketplaceConfig,
    catalog: _Catalog,
    taste: shoppers.Taste,
    plan: planted.Plan | None,
    rng: np.random.Generator,
    rng_rich: np.random.Generator,
) -> tuple[pa.Table, pa.Table]:
    users, items, times, positions, visits = [], [], [], [], []
    for day in range(config.num_days):
        start = WEEK_START_US + day * _DAY_US + rng.integers(6 * _HOUR_US, 23 * _HOUR_US, config.num_users)
        old = np.flatnonzero(catalog.day < day)
        pool = old[shoppers.draw_pool(catalog.traits.popularity[old], config.num_users, POOL, rng)]
        recent = _recent(catalog.created_at, start, rng)
        pool[:, :NEW_IN_POOL] = np.where(recent >= 0, recent, pool[:, :NEW_IN_POOL])
        most = min(3 * config.impressions_per_user_day, pool.shape[1])
        shown = shoppers.show(taste, catalog.traits, pool, most, rng)
        counts = np.minimum(rng.poisson(config.impressions_per_user_day, config.num_users), most)
        place = np.arange(most)
        kept = (place < counts[:, None]) & (shown >= 0)
        time = start[:, None] + place * 25_000_000 + rng.integers(0, 5_000_000, shown.shape)
        users.append(np.broadcast_to(np.arange(config.num_users)[:, None], shown.shape)[kept])
        items.append(shown[kept])
        times.append(time[kept])
        positions.append(np.cumsum(kept, axis=1)[kept])
        visits.append(day * config.num_users + users[-1])
    user, item, time = np.concatenate(users), np.concatenate(items), np.concatenate(times)
    visual, textual = shoppers.affinities(taste, catalog.traits, user, item)
    logits = shoppers.click_logits(taste, catalog.traits, user, item) + shoppers.NOISE * rng.standard_normal(len(user))
    rich: dict[str, typing.Any] = {}
    if plan is not None:
        position = np.concatenate(positions)
        effects = plan.effects(user, item, catalog.traits.category[item], time, position)
        logits = logits + sum(effects.values())
        rich = {"device": plan.devices(user, np.concatenate(visits), rng_rich), "position": position}
        rich |= {f"{name}_effect": values for name, values in effects.items()}
    probability = 1 / (1 + np.exp(-logits))
    label = (rng.random(len(user)) < probability).astype(np.int64)
    impressions = _table(
        user_id=FIRST_USER_ID + user,
        item_id=FIRST_ITEM_ID + item,
        timestamp=time,
        label=label,
        click_probability=probability,
        visual_affinity=visual,
        textual_affinity=textual,
        popularity=catalog.traits.popularity[item],
        **rich,
    )
    bought = (label == 1) & (rng.random(len(user)) < 0.12)
    parts = []
    for action, rows, delay in (("click", label == 1, 3_000_000), ("purchase", bought, 12_000_000)):
        parts.append(
            _table(
                user_id=FIRST_USER_ID + user[rows],
                item_id=FIRST_ITEM_ID + item[rows],
                timestamp=time[rows] + delay,
                action=[action] * int(rows.sum()),
            )
        )
    return _sorted(impressions, rng), pa.concat_tables(parts)


def _recent(created_at: np.ndarray, times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws items of the 24 hours before each time; int64 [n, NEW_IN_POOL], -1 where there are none."""
    order = np.argsort(created_at, kind="stable")
    first, last = (np.searchsorted(created_at[order], bound) for bound in (times - _DAY_US, times))
    places = first[:, None] + rng.integers(0, np.maximum(last - first, 1)[:, None], (len(times), NEW_IN_POOL))
    found = order[np.minimum(places, len(order) - 1)]
    return np.where((last > first)[:, None], found, -1)


def _items(
    config: MarketplaceConfig, catalog: _Catalog, rng: np.random.Generator, rng_missing: np.random.Generator
) -> pa.Table:
    n = len(catalog.day)
    titles = wording.titles(catalog.words, rng)
    images = encode_png(drawing.draw_catalog(catalog.look, config.image_size, rng))
    has_no_title = rng_missing.random(n) < config.missing_title_fraction
    has_no_image = rng_missing.random(n) < config.missing_image_fraction
    return _table(
        item_id=FIRST_ITEM_ID + np.arange(n),
        title=pa.array(titles, pa.string(), mask=has_no_title),
        image=pa.array(images, pa.binary(), mask=has_no_image),
        category=catalog.traits.category + 1,
        created_at=pa.array(catalog.created_at, pa.timestamp("us")),
    )


def _rich_tables(
    tables: dict[str, pa.Table], plan: planted.Plan, catalog: _Catalog, taste: shoppers.Taste, rng: np.random.Generator
) -> dict[str, pa.Table]:
    """Returns `users`, and items and behaviors with the columns that they have in a rich marketplace."""
    acts = tables["behaviors"]
    users, items = (acts[name].to_numpy() for name in ("user_id", "item_id"))
    dwell = planted.draw_dwell(taste, catalog.traits, users - FIRST_USER_ID, items - FIRST_ITEM_ID, rng)
    return {
        "users": _table(user_id=FIRST_USER_ID + np.arange(len(plan.city)), **plan.users()),
        "items": pa.table({**dict(zip(tables["items"].column_names, tables["items"].columns)), **plan.items()}),
        "behaviors": acts.append_column("dwell", dwell),
    }


def _true_items(catalog: _Catalog) -> pa.Table:
    traits = dataclasses.asdict(catalog.traits)
    return _table(
        item_id=FIRST_ITEM_ID + np.arange(len(catalog.day)),
        entry_day=catalog.day,
        feature=catalog.words.feature,
        brand=catalog.words.brand,
        **traits,
    )


def _true_users(taste: shoppers.Taste) -> pa.Table:
    return _table(
        user_id=FIRST_USER_ID + np.arange(len(taste.looks)),
        liked_looks=taste.looks.tolist(),
        liked_themes=taste.themes.tolist(),
        category_preference=taste.categories.tolist(),
    )


def _sorted(table: pa.Table, rng: np.random.Generator) -> pa.Table:
    """Sorts by time, ties at random, so that the order of rows says nothing of labels."""
    order = np.lexsort((rng.random(table.num_rows), table["timestamp"].cast(pa.int64()).to_numpy()))
    return table.take(pa.array(order))


def _table(**columns: typing.Any) -> pa.Table:
    if "timestamp" in columns:
        columns["timestamp"] = pa.array(columns["timestamp"], pa.timestamp("us"))
    return pa.table(columns)
