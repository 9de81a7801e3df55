import io

from rich import console as rich_console

from tfmm.quickstart import terminal


def _summary(new_items):
    models = {
        name: {"auc": auc, "gauc": auc, "logloss": 0.5, "calibration": 1.02, "gauc_new_items": new_items}
        for name, auc in (("id", 0.6), ("multimodal", 0.65))
    }
    return {
        **models,
        "methods": "SimScore + my_team.methods:Best",
        "model": "my_team.models:Tower",
        "encoders": {
            "image": {
                "acc_at_1": 0.4,
                "acc_at_5": 0.7,
                "acc_at_1_untrained": 0.1,
                "acc_at_1_chance": 0.005,
                "heldout_pairs": 900,
                "heldout_items": 200,
                "distinct_positives": 1_700,
                "memory_bank_size": 0,
                "batch_size": 64,
                "epochs": 8,
                "pairs_per_epoch": 4_288,
                "steps": 536,
                "probe": {"gauc": None, "rows": 3},
                "warnings": [],
            },
            "vector": {
                "probe": {
                    "gauc": 0.55,
                    "gauc_interval": {"low": 0.54, "high": 0.56, "level": 0.95},
                    "auc": 0.56,
                    "users": 12,
                    "rows": 3_000,
                },
                "warnings": ["It is no better."],
            },
        },
        "hidden": {
            "nothing": {"bias": 0.0, "auc": 0.65},
            "all": {"bias": -0.02, "auc": 0.561},
            "image": {"bias": None, "auc": None},
        },
        "left_out": [
            {"stage": "examples", "source": "behaviors", "code": "no_time", "reason": "no time", "count": 1800}
        ],
        "grpc_predict_ms": 3.0,
        "rest_predict_ms": 4.0,
        "gate": {"passed": False, "reasons": ["AUC is 0.5"], "warnings": ["It learned nothing."]},
        "differences": {"multimodal": {"id": {"new_items": {
            "rows": 90, "clicks": 31, "users": 30, "gauc": {"value": 0.05, "low": -0.01, "high": 0.12, "level": 0.99},
            "log_loss": None, "undefined": {"log_loss": "too few"},
        }}}},
        "new_item_delay_s": 0.2,
        "total_seconds": 100.0,
        "peak_memory_gb": 3.0,
    }


def test_result_table_shows_differences(tmp_path):
    text = io.StringIO()
    console = rich_console.Console(file=text, width=120)
    console.print(terminal.result_table(_summary(0.55)))
    for line in terminal.closing_lines(_summary(0.55), tmp_path):
        console.print(line)
    assert "Calibration" in text.getvalue() and "+0.0500" in text.getvalue()
    said = " ".join(text.getvalue().split())
    assert "ID-only against SimScore + my_team.methods:Best, scored by my_team.models:Tower, on held-out" in said
    assert "SimTier" not in said and "MAKE" not in said
    assert "left out: 1,800 of behaviors: no time (no_time)" in said and "`tfmm dead-letters" in said
    assert "image encoder: Acc@1 0.400 (untrained 0.100, chance 0.005), Acc@5 0.700" in said
    assert "image encoder: 1,700 distinct positives, no memory bank; 8 epochs of 4,288 pairs, 536 steps of 64" in said
    assert "over 900 held-out pairs of 200 items" in said
    assert "image probe: no user has both a click and a non-click" in said
    assert "vector probe, vectors alone: GAUC 0.5500 [0.5400, 0.5600], AUC 0.5600, 12 users, 3,000 rows" in said
    assert "It is no better." not in said  # the verdict says it, and first
    assert "Target's vectors hidden (all): mean score / click rate 0.980, AUC 0.5610" in said
    assert "Target's vectors hidden (image): too few rows" in said and said.count("vectors hidden") == 2
    assert "multimodal - id, new items: GAUC +0.0500 [-0.0100, +0.1200], LogLoss not judged: too few (90 rows" in said


def test_verdict_reasons_and_warnings_are_said_first():
    assert terminal.opening_lines(_summary(0.55)) == [
        "The gate refused the multimodal model:", "- AUC is 0.5", "Warning: It learned nothing.",
        "The model in service stays.",
    ]  # fmt: skip


def test_metric_that_does_not_exist_is_said():
    text = io.StringIO()
    rich_console.Console(file=text, width=120).print(terminal.result_table(_summary(None)))
    assert "too few rows" in text.getvalue()
