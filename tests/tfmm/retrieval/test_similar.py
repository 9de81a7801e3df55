import importlib.util
import pathlib
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from tfmm import cli, saved_model
from tfmm.index import encode, snapshot, store
from tfmm.metrics import top_n_accuracy
from tfmm.retrieval import similar, top_k

DIM, ITEMS, TWIN, WITHDRAWN = 8, 500, (103, 107), 105


@pytest.fixture(scope="module")
def index_path(tmp_path_factory) -> pathlib.Path:
    """An index of 500 items: two are twins, one was withdrawn."""
    path = tmp_path_factory.mktemp("index") / "items.sqlite"
    vectors = np.random.default_rng(0).normal(size=(ITEMS, DIM))
    vectors[7] = vectors[3]
    with store.open_store(str(path)) as index:
        index.register_encoder("image", "v1", DIM)
        index.activate("image", "v1")
        index.write("image", "v1", np.arange(100, 100 + ITEMS), *encode.quantize(vectors), np.ones(ITEMS, np.int64))
        index.withdraw([WITHDRAWN], [2])
    return path


@pytest.fixture(scope="module")
def snapshot_dir(index_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("snapshot")
    with store.open_store(str(index_path)) as index:
        snapshot.write_snapshot(index, folder)
    return folder


@pytest.fixture(scope="module")
def table(snapshot_dir):
    return snapshot.load_snapshot(snapshot_dir)["image"]


def reference(table, item, count):
    """Cosines by their definition, in float64; the most similar first, of equal ones the lesser id."""
    vectors = table.rows.astype(np.float64) * table.scales.astype(np.float64)[:, None]
    own = vectors[table.ids == item][0]
    cosines = {int(i): float(v @ own) for i, v, s in zip(table.ids, vectors, table.scales) if i != item and s > 0}
    return sorted(cosines.items(), key=lambda pair: (-round(pair[1], 6), pair[0]))[:count]


@pytest.mark.parametrize("count", [1, 10, 2 * ITEMS])
def test_the_most_similar_items_are_those_of_the_largest_cosines(table, count):
    ids, cosines = similar.similar(table, 120, count)
    wanted = reference(table, 120, count)
    assert ids.tolist() == [item for item, _ in wanted] and 120 not in ids and WITHDRAWN not in ids
    np.testing.assert_allclose(cosines, [cosine for _, cosine in wanted], atol=1e-6)


def test_a_twin_is_the_most_similar_item(table):
    ids, cosines = similar.similar(table, TWIN[0], 1)
    assert ids.tolist() == [TWIN[1]] and cosines[0] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("item", [99, "never seen", WITHDRAWN])
def test_an_item_without_a_vector_is_refused(table, item):
    with pytest.raises(ValueError, match="The item must have a vector in the index. Received: " + repr(item)):
        similar.similar(table, item)


def test_the_command_shows_ids_cosines_and_titles(index_path, tmp_path):
    items = {"item_id": np.arange(100, 100 + ITEMS), "title": [f"thing [{n}]" for n in range(ITEMS)]}
    pq.write_table(pa.table(items), tmp_path / "items.parquet")
    words = ["similar", str(TWIN[0]), "--index", str(index_path), "--data", str(tmp_path), "--count", "3"]
    shown = CliRunner().invoke(cli.main, words)
    assert shown.exit_code == 0, shown.output
    assert "1.0000" in shown.output and "thing [7]" in shown.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["103"], "Name --index or --snapshot"),
        (["--index", "{index}"], "Name an ITEM to look at, or --export"),
        (["--index", "{index}", "--export", "out"], "--export needs --snapshot"),
        (["5", "--index", "{index}"], "must have a vector in the index"),
        (["103", "--index", "{index}", "--modality", "sound"], "--modality must be one of image. Received: sound"),
    ],
)
def test_a_command_that_lacks_something_says_what(index_path, words, said):
    given = [word.format(index=index_path) for word in words]
    refused = CliRunner().invoke(cli.main, ["similar", *given])
    assert refused.exit_code == 1 and said in refused.output


needs_tfrs = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow_recommenders") is None, reason="tensorflow-recommenders is not installed"
)


@needs_tfrs
@pytest.mark.parametrize("kind", top_k.KINDS)
def test_the_exported_index_answers_as_the_command_does_where_tf_serving_loads_it(snapshot_dir, table, tmp_path, kind):
    top_k.export(snapshot_dir, tmp_path / "similar" / "1", "image", kind, count=6)
    wanted = [TWIN[0], *(item for item, _ in reference(table, TWIN[0], 5))]
    with saved_model.load_session(tmp_path / "similar" / "1") as loaded:
        by_item = loaded("similar_items", {"item_ids": np.array([TWIN[0], 99])}, ("item_ids", "scores"))
        found = table.lookup(np.array([TWIN[0]]))
        vectors = found.rows.astype(np.float32) * found.scales[:, None]
        by_vector = loaded("serving_default", {"vectors": vectors}, ("item_ids", "scores"))
    assert set(by_item["item_ids"][0, :2].tolist()) == set(TWIN)  # itself, and its equal
    assert by_item["item_ids"][0, 2:].tolist() == wanted[2:]
    assert not by_item["scores"][1].any() and not by_item["item_ids"][1].any()  # unknown
    assert [path.name for path in (tmp_path / "similar").iterdir()] == ["1"]
    np.testing.assert_allclose(by_vector["scores"], by_item["scores"][:1], atol=1e-6)


@needs_tfrs
def test_what_cannot_be_exported_is_said_in_a_line(snapshot_dir, tmp_path):
    with pytest.raises(ValueError, match=r"`kind` must be one of brute_force, streaming. Received: 'ann'"):
        top_k.export(snapshot_dir, tmp_path, "image", "ann")
    with pytest.raises(ValueError, match=r"could not be exported: .*`modality` must be one of"):
        top_k.export(snapshot_dir, tmp_path, "sound")


FACTORIZED = """
import sys
import numpy as np, tensorflow as tf, tensorflow_recommenders as tfrs
queries, positives = np.load(sys.argv[1]), np.load(sys.argv[2])
ids = tf.range(len(positives))
index = tfrs.layers.factorized_top_k.BruteForce(k=5).index(tf.constant(positives), ids)
metric = tfrs.metrics.FactorizedTopK(candidates=index, ks=(1, 5))
metric.update_state(tf.constant(queries), tf.constant(positives), true_candidate_ids=ids)
print(*[float(value) for value in metric.result()])
"""


@needs_tfrs
def test_acc_at_n_is_what_factorized_top_k_says(tmp_path):
    """By ids: by scores alone its positive competes with itself among the candidates, in another rounding."""
    rng = np.random.default_rng(1)
    positives = rng.normal(size=(300, DIM)).astype(np.float32)
    queries = positives + rng.normal(size=(300, DIM)).astype(np.float32)
    for name, rows in (("queries", queries), ("positives", positives)):
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        np.save(tmp_path / f"{name}.npy", rows)
    done = subprocess.run(
        [sys.executable, "-c", FACTORIZED, str(tmp_path / "queries.npy"), str(tmp_path / "positives.npy")],
        env=top_k.legacy_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ours = top_n_accuracy(queries, positives)
    np.testing.assert_allclose([float(word) for word in done.stdout.split()], [ours[1], ours[5]], atol=1e-6)
    assert 0.1 < ours[1] < ours[5] < 1.0
