import types

import numpy as np
import pyarrow as pa

from tfmm.quickstart import html_report

ROWS = np.array([[10, 0], [9, 1], [0, 7], [0, 0]], np.int8)
SCALES = np.array([0.1, 1 / np.sqrt(82), 1 / 7, 0.0], np.float32)


def test_neighbors_are_the_most_similar_others():
    order, similarity = html_report.nearest_neighbors(ROWS, SCALES, np.array([0]), 2)
    assert order[0].tolist() == [1, 2]
    np.testing.assert_allclose(similarity[0], [9 / np.sqrt(82), 0.0], atol=1e-6)


PHOTO = {"image": "QUJD"}
SHEET = [
    {
        "query": {"text": "<u> mug"},
        "positive": PHOTO,
        "negative": {"text": "cup"},
        "rank": 2,
        "found": [{"text": "cup", "similarity": 0.75, "is_hit": False}, {**PHOTO, "similarity": 0.5, "is_hit": True}],
    }
]
SLICE = {"click_rate": 0.2, "mean_score": 0.21, "auc": 0.55, "bias": 0.05}


def _snapshot():
    return {"text": types.SimpleNamespace(ids=np.array([1, 2, 3, 4]), rows=ROWS, scales=SCALES)}


def test_gallery_leaves_out_withdrawn_items_and_names_cards():
    items = pa.table({"item_id": [1, 2, 3, 4], "title": ["red", "rose", None, "gone"]})
    rows = html_report.gallery(_snapshot(), "text", items)
    assert [row["item"]["title"] for row in rows] == ["red", "rose", "item 3"]
    assert rows[0]["neighbors"][0]["title"] == "rose"


def test_report_is_one_escaped_file(tmp_path):
    items = pa.table(
        {
            "item_id": [1, 2, 3, 4],
            "title": ["<b>red</b>", "rose", "blue", "gone"],
            "image": [b"\x89PNG", None, None, None],
        }
    )
    model = {"auc": 0.6, "gauc": 0.6, "logloss": 0.5, "calibration": 1.1, "gauc_new_items": None}
    models = {"id": model, "multimodal": model}
    summary = {
        **models,
        "methods": "SimScore + my_team:Best",
        "model": "",
        "encoders": {"text": {"probe": {"gauc": None}, "warnings": ["<it> is no better"]}},
        "not_read": ["not used: users.parquet"],
        "left_out": [{"stage": "stream", "source": "log", "code": "not_json", "reason": "not JSON: <", "count": 1800}],
        "grpc_predict_ms": 3.0,
        "rest_predict_ms": 4.0,
        "new_item_delay_s": 0.2,
        "peak_memory_gb": 3.0,
        "data": {"items": 4},
        "stages": {"Push": 1.0},
        "hidden": {"nothing": SLICE, "all": {**SLICE, "auc": None}},
        "differences": {"multimodal": {"in_service": {"all": {
            "rows": 9, "clicks": 3, "undefined": {"gauc": "3 clicks, 30 are needed"}, "gauc": None,
            "log_loss": {"value": 0.03, "low": 0.01, "high": 0.05},
        }}}},
        "slices": {"history": {"none": {"rows": 9, "clicks": 3, "models": {
            "id": {"gauc": None}, "multimodal": {"gauc": 0.61, "gauc_gain": {"value": 0.02, "low": 0.01, "high": 0.03}},
        }}}},
        "in_service": {"index": {"text": {"rows": 4, "left_out": None}}, "left_out": None},
        "missing": {"all": {"rows": 0, "models": {}}, "text": {"rows": 7, "models": {"multimodal": SLICE}}},
    }
    svg = html_report.curves({"MAKE": [{"epoch": 0, "loss": 0.7}, {"epoch": 1, "loss": 0.6}], "one": [{"loss": 1.0}]})
    html_report.write_report(
        tmp_path / "report.html",
        summary,
        {"text": html_report.gallery(_snapshot(), "text", items)},
        svg,
        {"passed": False, "reasons": ["AUC is 0.5"], "warnings": ["<i> nothing"], "checks": ["AUC is 0.5"]},
        {"photo": SHEET},
    )
    text = (tmp_path / "report.html").read_text()
    assert "&lt;b&gt;red" in text and "<b>red" not in text
    assert "<th>SimScore + my_team:Best</th>" in text and "SimTier" not in text and "scored by" not in text
    assert "<td>history: none</td><td>9</td><td>3</td>" in text and "+0.0200 [+0.0100, +0.0300]" in text
    assert "is no better" not in text  # the verdict says it, and first
    assert 'class="worse">Warning: &lt;i&gt; nothing' in text
    assert "multimodal - in_service" in text and "+0.0300 [+0.0100, +0.0500]" in text
    assert "The model in service took 4 text rows" in text
    assert "not used: users.parquet" in text and "1,800</td><td>not JSON: &lt; (not_json)" in text
    assert "data:image/png;base64,iVBORw" in text
    assert "What the photo encoder finds" in text and text.count("data:image/jpeg;base64,QUJD") == 2
    assert "&lt;u&gt; mug" in text and "bought, found at 2" in text and text.count("hard negative</div>") == 1
    assert text.count('card hit"') == 1 and "0.50 hit" in text
    assert "refused the multimodal model: AUC is 0.5" in text
    assert "hidden from the model: all" in text and "missing in the index: text" in text
    assert "missing in the index: all" not in text and text.count("0.2100") == 3
    assert text.count("<svg") == 1 and "http://" not in text.split("<svg")[0]
