"""Vectors for the layers' tests."""

import numpy as np
import pytest

collect_ignore = ["on_any_backend.py", "recipes"]  # scripts for processes of their own


def unit_rows(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Returns float32 vectors of norm 1 on the last axis."""
    vectors = rng.normal(size=shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def int8_rows(rng: np.random.Generator, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns int8 rows and float32 scales (1 / norm), as the item index holds them."""
    vectors = unit_rows(rng, *shape)
    rows = np.round(vectors * 127 / np.abs(vectors).max(-1, keepdims=True)).astype(np.int8)
    return rows, (1 / np.linalg.norm(rows.astype(np.float32), axis=-1)).astype(np.float32)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20)


@pytest.fixture
def make_unit(rng):
    """A function from a shape to float32 vectors of norm 1."""
    return lambda *shape: unit_rows(rng, *shape)


@pytest.fixture
def make_int8(rng):
    """A function from a shape to int8 rows and their scales."""
    return lambda *shape: int8_rows(rng, *shape)
