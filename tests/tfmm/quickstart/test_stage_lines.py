import io

from rich import console as rich_console

from tfmm.quickstart import stage_lines
from tfmm.training import progress


def test_events_are_read_once_and_only_when_complete(tmp_path):
    path = tmp_path / "progress.jsonl"
    events = stage_lines.Events(path)
    assert events.new() == []
    report = progress.jsonl(path)
    report("node:SCLTrainer", 0, 1)
    with path.open("a") as file:
        file.write('{"stage": "half')
    assert [event["stage"] for event in events.new()] == ["node:SCLTrainer"]
    with path.open("a") as file:
        file.write('", "done": 1, "total": 1}\n')
    assert [event["stage"] for event in events.new()] == ["half"]


def test_events_of_an_earlier_run_are_left_out(tmp_path):
    path = tmp_path / "progress.jsonl"
    progress.jsonl(path)("old", 1, 1)
    assert stage_lines.Events(path).new() == []


def test_stage_lines_keep_the_seconds_of_finished_nodes_and_show_metrics():
    text = io.StringIO()
    console = rich_console.Console(file=text, force_terminal=True, width=160)
    with stage_lines.StageLines(console) as lines:
        lines.show({"stage": "node:SCLTrainer", "done": 0, "total": 1})
        lines.show({"stage": "pretrain_image", "done": 3, "total": 10, "loss": 0.5, "time": 1.0})
        lines.show({"stage": "node:SCLTrainer", "done": 1, "total": 1})
    assert list(lines.seconds) == ["SCLTrainer"]
    assert "Pre-train the encoders (SCL)" in text.getvalue()
    assert "loss 0.5" in text.getvalue()


def test_a_note_of_a_training_is_a_line_of_a_log_file():
    text = io.StringIO()
    with stage_lines.StageLines(rich_console.Console(file=text, width=200)) as lines:
        lines.show({"stage": "node:MAKETrainer", "done": 0, "total": 1})
        lines.show({"stage": "make", "done": 3, "total": 4, "note": "3 of 4 parts were trained before", "time": 1.0})
    assert "make: 3 of 4 parts were trained before\n" in text.getvalue()


def test_a_stage_has_the_name_that_it_is_given():
    text = io.StringIO()
    console = rich_console.Console(file=text, width=160)
    with stage_lines.StageLines(console, {"MultimodalTrainer": "Train SimScore"}) as lines:
        for done in (0, 1):
            lines.show({"stage": "node:MultimodalTrainer", "done": done, "total": 1})
    assert text.getvalue().startswith("Train SimScore ")
