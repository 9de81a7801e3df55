"""What would leave a rule untested is refused: the rule, the value and the way out are named."""

import keras
import numpy as np
import pytest

from tfmm.testing import check_layer
from tfmm.testing.arguments import as_arrays, inputs_hidden_by_masks

VALUES = np.float32([[1, 2], [3, 4], [5, 6]])
MASK = np.array([[True, False], [True, True], [False, True]])


@pytest.mark.parametrize(
    "inputs, options, rule",
    [
        ({}, {}, "`inputs` must hold at least one array"),
        ({"inputs": VALUES[:1]}, {}, r"`inputs` must have the batch as first axis, of at least 2 rows.*\(1, 2\)"),
        ({"inputs": np.float32(1)}, {}, r"`inputs` must have the batch as first axis.*Received: \(\)"),
        ({"inputs": np.array([["a"], ["b"]])}, {}, r"`inputs` must hold numbers or bools.*StringLookup"),
        ({"inputs": [["a"], ["b"]]}, {}, "`inputs` must hold numbers or bools.*Received: .*'a'"),
        ({"inputs": VALUES, "other": VALUES[:2]}, {}, "must have equally many rows.*'inputs': 3, 'other': 2"),
        ({"inputs": VALUES}, {"differentiable": ["inputs", "inptus"]}, r"must name float inputs.*: \['inptus'\]"),
        ({"inputs": VALUES, "ids": [1, 2, 3]}, {"differentiable": ["ids"]}, r"must name float inputs.*: \['ids'\]"),
        ({"inputs": VALUES}, {"masks": {"msak": "inputs"}}, r"`masks` must name inputs.*Received: \['msak'\]"),
        ({"inputs": VALUES, "mask": MASK}, {"masks": {"mask": "inptus"}}, r"must name inputs.*Received: \['inptus'\]"),
        ({"inputs": VALUES, "inputs_mask": MASK | True}, {}, "`inputs_mask` must hide something"),
        ({"inputs": VALUES, "inputs_mask": MASK * 1.0}, {}, "`inputs_mask` must be bool.*float64"),
        ({"inputs": VALUES, "inputs_mask": MASK[:, :1]}, {}, r"must have the first axes of `inputs` \(3, 2\)"),
        ({"a": VALUES, "b": VALUES, "history_mask": MASK}, {}, r"Pass `masks={'history_mask': .*\['a', 'b'\]"),
        ({"a": VALUES[:, :1], "history_mask": MASK}, {}, r"or fit one by its shape alone.*Received: \[\]"),
    ],
)
def test_arguments_that_test_nothing_are_refused(inputs, options, rule):
    with pytest.raises(ValueError, match=rule):
        check_layer(keras.layers.Identity, {}, inputs, **options)


def test_lists_become_what_keras_makes_of_them():
    arrays = as_arrays({"values": [[1.0], [2.0]], "ids": [1, 2], "mask": [True, False], "same": np.zeros(2)})
    assert {name: str(x.dtype) for name, x in arrays.items()} == {
        "values": "float32",
        "ids": "int32",
        "mask": "bool",
        "same": "float64",
    }


def test_mask_finds_its_input_by_name_then_by_shape_unless_told():
    wide = np.zeros((3, 9))
    inputs = {"a": VALUES, "b": VALUES, "a_mask": MASK, "wide": wide, "history_mask": wide > 0}
    assert inputs_hidden_by_masks(inputs, {}) == {"a_mask": "a", "history_mask": "wide"}
    told = {"a_mask": "b", "history_mask": None}
    assert inputs_hidden_by_masks(inputs, told) == told
