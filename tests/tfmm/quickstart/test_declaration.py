"""What `tfmm run show` prints of a declaration."""

import dataclasses
import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from rich import console as rich_console

from tfmm import cli, presets
from tfmm.features import Feature, Sequence
from tfmm.modalities import Modality
from tfmm.quickstart import declaration


@pytest.fixture
def folder(tmp_path):
    times = pa.array(range(4), pa.timestamp("s"))
    tables = {
        "items": {"item_id": ["a", "b"], "clip": [[1.0, 0.0], [0.0, 1.0]], "brand": [4, 5]},
        "impressions": {"user_id": ["u"] * 4, "item_id": ["a", "b"] * 2, "timestamp": times, "label": [0, 1] * 2,
                        "position": [1, 2, 3, 4]},
        "behaviors": {"user_id": ["u"], "item_id": ["a"], "timestamp": times[:1], "action": ["click"]},
    }  # fmt: skip
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    return tmp_path


def run(modality="clip"):
    return dataclasses.replace(
        presets.small(),
        features=(*presets.small().features[:2], Feature("brand", "item", dim=4),
                  Feature("city", "context", source="impressions.user_id", num_buckets=10, dim=2),
                  Feature("position", "context", "number", serving_value=1)),
        sequences=(Sequence("clicks", ("click",), 7, ("item_id", "brand")),),
        modalities=(Modality(modality, "vector"),),
    )  # fmt: skip


def rows_of(parts, title):
    """Returns the cells of a table, by row."""
    (found,) = (part for part in parts if part.title == title)
    return list(zip(*(column.cells for column in found.columns), strict=True))


def test_embeddings_are_counted_by_the_data(folder):
    with_data = rows_of(declaration.tables(run(), folder), "Embedding tables")
    assert with_data == [
        ("user_id", "at most 3", "16", "48", "192", "user_id"),
        ("item_id", "at most 4", "16", "64", "256", "item_id"),
        ("brand", "at most 4", "4", "16", "64", "brand"),
        ("city", "12", "2", "24", "96", "city"),
        ("all", "", "", "152", "608", ""),
    ]
    without = rows_of(declaration.tables(run()), "Embedding tables")
    assert without[0] == ("user_id", "by the data", "16", "16 a row", "64 a row", "user_id")
    assert without[3] == with_data[3] and len(without) == 4


def test_inputs_of_each_signature_are_shown(folder):
    parts = declaration.tables(run(), folder)
    assert rows_of(parts, "Inputs") == [
        ("user", "user_id", "string", "[B]", "[1]", "[1]"),
        ("candidates", "item_id", "string", "[B]", "[C]", "[C]"),
        ("candidates", "brand", "int64", "[B]", "[C]", "looked up"),
        ("user", "city", "string", "[B]", "[1]", "[1]"),
        ("user", "clicks_item_id", "string", "[B, any]", "[1, any]", "[1, any]"),
        ("user", "clicks_brand", "int64", "[B, any]", "[1, any]", "looked up"),
    ]
    takes = dict(rows_of(parts, "Signatures"))
    assert set(takes) == {"serving_default", "rank", "rank_ids", "score_vectors", "serve_examples"}
    assert takes["serve_examples"].endswith("which may bring position")
    items = rows_of(parts, "Inputs of score_vectors beside these")
    assert [row[:2] for row in items] == [
        ("target", "clip_target_rows, clip_target_scales, clip_target_mask"),
        ("clicks", "clip_clicks_rows, clip_clicks_scales, clip_clicks_mask"),
    ]
    assert items[1][3] == "[B, any, 2], [B, any], [B, any]"
    undecided = rows_of(declaration.tables(run()), "Inputs of score_vectors beside these")
    assert undecided[0][3] == "[B, D], [B], [B]"
    inputs = rows_of(declaration.tables(run()), "Inputs")
    assert inputs[0] == ("user", "user_id", "int64 or string", "[B]", "[1]", "[1]")


def test_it_prints(folder):
    terminal = rich_console.Console(width=200, record=True, file=io.StringIO())
    for part in declaration.tables(run(), folder):
        terminal.print(part)
    assert "impressions.label" in terminal.export_text()
    narrow = rich_console.Console(width=60, record=True, file=io.StringIO())
    for part in declaration.tables(run(), folder):
        narrow.print(part)
    assert "…" not in narrow.export_text(), "a name is cut"


def test_what_the_data_lacks_and_what_cannot_be_imported_is_said_at_once(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "run.toml").write_text(
        'preset = "small"\n[[sequences]]\nname = "carts"\nactions = ["cart", "favorite"]\n'
        '[[modalities]]\nname = "clip"\nencoder = "no_such_module:Clip"\n[[methods]]\nname = "no_such_module:Best"\n'
    )
    monkeypatch.setenv("COLUMNS", "400")
    for command in ("run show --data", "data check", "pretrain --output o --data", "quickstart --workdir w --data"):
        found = CliRunner().invoke(cli.main, [*command.split(), ".", "--run", "run.toml"])
        assert found.exit_code == 1
        said = " ".join(found.output.replace("│", " ").split())
        for words in ("nobody did 'cart'", "nobody did 'favorite'", "'no_such_module:Clip'", "'no_such_module:Best'"):
            assert words in said, command
    assert not (folder / "o").exists() and not (folder / "w").exists()


def test_a_catalog_without_content_leaves_the_methods_without_a_modality(folder):
    path = folder / "items.parquet"
    pq.write_table(pq.read_table(path).drop(["clip"]), path)
    for command in ("run show", f"pretrain --output {folder / 'encoders'}"):
        found = CliRunner().invoke(cli.main, [*command.split(), "--data", str(folder), "--run", "small"])
        assert found.exit_code == 1
        assert "The methods simtier, make need a modality" in found.output
    assert not (folder / "encoders").exists()
