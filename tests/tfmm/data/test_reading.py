"""Dead letters of a row group in which nothing is right."""

import json

import numpy as np
import pyarrow as pa

from tfmm.data import reading


def test_letters_of_a_poisoned_row_group_are_made_a_few_at_a_time(monkeypatch):
    num_rows, made = 10_000, []
    table = pa.table({"user_id": np.arange(num_rows), "label": np.full(num_rows, 7)})
    bad = np.ones(num_rows, bool)
    bad[3] = False
    letters = reading.DeadLetters(table, "impressions", np.arange(num_rows) + 50, bad, np.full(num_rows, "why", object))
    plain = reading._plain
    monkeypatch.setattr(reading, "_plain", lambda part: made.append(part.num_rows) or plain(part))
    assert len(letters) == num_rows - 1
    first = next(iter(letters))
    assert (first["table"], first["row"], first["reason"]) == ("impressions", 50, "why")
    assert json.loads(first["content"]) == {"user_id": 0, "label": 7}
    assert made == [reading._LETTERS]
    rows = pa.concat_tables(letters.batches())["row"].to_pylist()
    assert rows == [row for row in range(50, 50 + num_rows) if row != 53]
    assert max(made) <= reading._LETTERS
