"""Declarations drawn at random, on tables drawn at random: each is refused with a reason, or runs to a finite score."""

import dataclasses
import datetime
import pathlib
import tempfile

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from tfmm import preprocessing, runs
from tfmm.config import CTRConfig, DataConfig, ExportConfig, MAKEConfig, RunConfig
from tfmm.ctr import model as model_lib
from tfmm.data import declared, join, transform
from tfmm.export import serving_module, signatures
from tfmm.features import ACTIONS, DEFAULT_FEATURES, KINDS, PARTS, ROLES, SCALINGS, Feature, Label, Sequence
from tfmm.quickstart import requests
from tfmm.training import sources

client = pytest.importorskip("serving.client", reason="the client's packages are not installed")

TABLES_OF = {
    "user": ("users", "impressions"),
    "item": ("items", "impressions"),
    "context": ("impressions",),
    "behavior": ("behaviors",),
}
COLUMNS = {  # of every table, by the kind as which they can be declared
    "id": ("whole", "text", "nothing"),
    "ids": ("wholes", "texts", "nothing"),
    "number": ("real", "whole", "nothing"),
    "boolean": ("truth", "nothing"),
    "time": ("naive", "zoned", "day", "nothing"),
}
NAMES = ("price", "price_value", "price_index", "price_statistics", "city", "city_index", "row", "latest", "action",
         "order_line", "is_eval", "is_row", "score", "logit", "examples", "self", "class", "label", "timestamp",
         "split", "category", "item_id", "acts_item_id", "acts_price", "image_target_mask", "inputs", "training",
         "name", "weight", "t\u00fcr", "Price", "", "a b", "x" * 70)  # fmt: skip
TEXTS = np.array(["", "a", "\u00fc", "\U0001f45f", "0", "a\x00", None], object)
REALS = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 1e30, -1e300, 3e38, 1.5, 7.0, None], object)
WHOLES = np.array([0, 1, -1, 2**63 - 1, -(2**63), 5, None], object)
SERVED = (None, None, None, 1, 0, True, "a", "", 0.5, -7, 2**64, float("nan"), float("inf"), 1e300, [1])
START = datetime.datetime(2024, 3, 31, 1, 30)  # in Berlin, clocks skip an hour


@st.composite
def features(draw):
    """A feature that may be right: the kind is most often that of the column, and a field now and then no good one."""
    role, kind = draw(st.sampled_from(ROLES)), draw(st.sampled_from(KINDS))
    table = draw(st.sampled_from(TABLES_OF[role]))
    column = draw(st.sampled_from(COLUMNS[kind])) if draw(st.integers(0, 9)) else draw(st.sampled_from(NAMES))
    right = {
        "name": draw(st.sampled_from(NAMES) | st.from_regex(r"[a-z]{3}", fullmatch=True)),
        "role": role,
        "kind": kind,
        "source": f"{table}.{column}",
        "dim": draw(st.integers(1, 3)),
        "num_buckets": draw(st.sampled_from((0, 0, 1, 5))),
        "max_values": draw(st.integers(1, 3)),
        "scaling": draw(st.sampled_from(SCALINGS)),
        "num_quantiles": draw(st.integers(2, 5)),
        "part": draw(st.sampled_from(tuple(PARTS))),
        "serving_value": draw(st.sampled_from(SERVED)) if role != "behavior" and kind != "ids" else None,
    }
    if kind in ("id", "ids") and not draw(st.integers(0, 3)):
        right["vocabulary"] = draw(st.sampled_from(("price", "city", "shared", "price_statistics", "..")))
    if not draw(st.integers(0, 5)):
        field = draw(st.sampled_from(tuple(right)))
        wrong = (0, -1, 10**13, "", "id", "behavior", "behaviors.age", None, 2.0, "users.x")
        right[field] = draw(st.sampled_from(wrong))
    return Feature(**right)


@st.composite
def declarations(draw):
    """Features, sequences and a label, as arguments of RunConfig."""
    own = draw(st.lists(features(), max_size=6, unique_by=lambda feature: str(feature.name)))
    keys = [f for f in DEFAULT_FEATURES if f.name not in {feature.name for feature in own}]
    keys = [dataclasses.replace(feature, dim=3) for feature in keys]
    riding = [f.name for f in own if f.role == "behavior" or (f.role == "item" and draw(st.booleans()))]
    sequences = []
    for name in draw(st.lists(st.sampled_from(("acts", "carts", "price")), max_size=2, unique=True)):
        actions = tuple(draw(st.lists(st.sampled_from(ACTIONS[:2]), max_size=2, unique=True)))
        ride = tuple(dict.fromkeys(("item_id", *draw(st.permutations(riding)))))
        sequences.append(Sequence(name, actions, draw(st.integers(0, 3)), ride, din=draw(st.booleans())))
    label = Label(weight="weight") if not draw(st.integers(0, 9)) else Label()
    return {"features": (*keys, *own), "sequences": tuple(sequences), "label": label}


def column_values(generator, rows):
    """Every kind of column, with nulls and what is wild of each."""

    def some(values):
        return [values[i] for i in generator.integers(0, len(values), rows)]

    def lists(values):
        return [None if n > 3 else [values[i] for i in generator.integers(0, len(values), n)]
                for n in generator.integers(0, 5, rows).tolist()]  # fmt: skip

    hours = [START + datetime.timedelta(hours=int(h)) for h in generator.integers(0, 99, 5)]
    times = [*hours, datetime.datetime(1, 1, 1), datetime.datetime(1970, 1, 1), None]
    return {
        "whole": pa.array(some(WHOLES), pa.int64()),
        "text": pa.array(some(TEXTS), pa.string()),
        "wholes": pa.array(lists(WHOLES), pa.list_(pa.int64())),
        "texts": pa.array(lists(TEXTS), pa.list_(pa.string())),
        "real": pa.array(some(REALS), pa.float64()),
        "truth": pa.array(some([True, False, None]), pa.bool_()),
        "naive": pa.array(some(times), pa.timestamp("us")),
        "zoned": pa.array(some(times), pa.timestamp("ms", "America/New_York")),
        "day": pa.array([None if t is None else t.date() for t in some(times)], pa.date32()),
        "nothing": pa.nulls(rows),
    }


def write_tables(folder, generator, with_behaviors, texts):
    """Writes four small tables whose keys are good."""
    users, items = (["u1", "\u00fc", "u3"], ["i1", "i2", "i\U0001f45f"]) if texts else ([1, -2, 3], [2**63 - 1, 5, -1])
    num_shown, num_acts = 14, 9
    rows = {
        "users": {"user_id": users[:2]},  # one is not described
        "items": {"item_id": items, "title": ["a", "b", "c"], "category": [1, None, 0]},
        "impressions": {
            "user_id": [users[i % 3] for i in range(num_shown)],
            "item_id": [items[i] for i in generator.integers(0, 3, num_shown)],
            "timestamp": [START + datetime.timedelta(minutes=37 * i) for i in range(num_shown)],
            "label": [i % 2 for i in range(num_shown)],
            "weight": [0.5 + i for i in range(num_shown)],
        },
        "behaviors": {
            "user_id": [users[i] for i in generator.integers(0, 3, num_acts)],
            "item_id": [items[i] for i in generator.integers(0, 3, num_acts)],
            "timestamp": [START - datetime.timedelta(minutes=61 * i) for i in range(num_acts)],
            "action": ["click", "cart", "purchase"] * 3,
        },
    }
    for name, columns in rows.items():
        if name != "behaviors" or with_behaviors:
            size = len(next(iter(columns.values())))
            path = folder / f"{name}.parquet"
            pq.write_table(pa.table(columns | column_values(generator, size)), path, row_group_size=8)


def wanted_inputs(feature_set, id_types):
    """What the client would learn of `rank` from a server."""
    specs = signatures.raw_specs(feature_set, id_types, 1)
    return {n: client.Input(s.dtype.as_numpy_dtype, s.shape.rank == 2, s.shape[0] == 1) for n, s in specs.items()}


def check_inputs(inputs, feature_set, sizes):
    """Indices lie in their tables, and numbers are finite or missing."""
    for column in feature_set.columns:
        values = np.asarray(inputs[column.input])
        if column.feature.is_embedded:
            assert values.min(initial=0) >= 0 and values.max(initial=0) < sizes[column.feature.embedding], column.name
        else:
            assert not np.isinf(values).any(), column.name


def run(config, folder):
    """Takes a declaration down the road, and returns how many candidates were scored; 0 where the data lacks of it."""
    feature_set = config.feature_set
    if faults := declared.faults(folder / "data", feature_set):
        assert all(len(fault) > 20 for fault in faults)
        with pytest.raises(ValueError, match="must have what the run declares"):
            join.write_examples(folder / "data", config.data, feature_set, folder / "raw")
        return 0
    manifest = join.write_examples(folder / "data", config.data, feature_set, folder / "raw")
    transform.fit(folder / "raw", folder / "out")
    preprocessor = preprocessing.load(feature_set, folder / "out")
    files = sorted(str(path) for path in (folder / "raw").glob("train-*"))
    source = sources.open_source(files, feature_set, {}, preprocessor)
    found = source.gather(np.arange(source.num_rows))
    check_inputs(found, feature_set, preprocessor.sizes)
    assert manifest["dead_letter"] == 0
    id_types = declared.id_types(folder / "data", feature_set)
    user = requests.busiest_user(folder / "data", feature_set, config.data.time_zone)
    items = requests.first_items(folder / "data", feature_set, 3, config.data.time_zone)
    _, tensors = client.rank_request(user, items, wanted_inputs(feature_set, id_types))
    model = model_lib.CTRModel(config.ctr, config.make, feature_set, preprocessor.sizes, {})
    model.build()
    served = serving_module.ServingModule(model, preprocessor, {}, id_types, config.export)
    scores = served.score_rank(**{name: tf.constant(values) for name, values in tensors.items()})["score"].numpy()
    assert np.isfinite(scores).all() and ((scores > 0) & (scores < 1)).all()
    return len(scores)


@hypothesis.given(declarations(), st.integers(0, 2**32 - 1), st.booleans(), st.booleans())
@hypothesis.settings(max_examples=30, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
def test_every_declaration_runs_or_is_refused(declaration, seed, with_behaviors, texts):
    fixed = {
        "data": DataConfig(max_behaviors=3, min_id_count=1, time_zone="Europe/Berlin"),
        "ctr": CTRConfig(units=(4,), attention_units=(3,)),
        "make": MAKEConfig(attention_units=(3,), units=(4, 3, 2)),
        "export": ExportConfig(batch_buckets=(4,), candidate_buckets=(4,), jit_compile=False),
    }
    try:
        config = RunConfig(**declaration, **fixed)
        runs.verify(config)
    except ValueError as error:
        hypothesis.event("refused")
        assert all(line.startswith("- ") for line in str(error).splitlines()[1:])
        return
    with tempfile.TemporaryDirectory() as folder:
        data = pathlib.Path(folder) / "data"
        data.mkdir()
        write_tables(data, np.random.default_rng(seed), with_behaviors, texts)
        count = run(config, pathlib.Path(folder))
    hypothesis.event("ran" if count else "refused by the data")
