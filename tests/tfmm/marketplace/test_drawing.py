import dataclasses

import numpy as np
import pytest

from tfmm.marketplace import drawing


def look(shape=0, palette=0, pattern=0, n=1):
    details = np.full((n, 6), 0.5)
    return drawing.Look(np.full(n, shape), np.full(n, palette), np.full(n, pattern), details)


def catalog(**attributes):
    return drawing.draw_catalog(look(**attributes), 32, np.random.default_rng(0))[0].astype(int)


@pytest.mark.parametrize("shape", range(len(drawing.SHAPES)))
def test_every_silhouette_is_drawn_inside_its_picture(shape):
    picture = catalog(shape=shape)
    inked = (picture < 200).any(-1)
    assert 0.1 < inked.mean() < 0.75
    border = np.concatenate([inked[0], inked[-1], inked[:, 0], inked[:, -1]])
    assert border.mean() < 0.1


def test_every_attribute_changes_the_picture():
    first = catalog()
    for name, count in (
        ("shape", len(drawing.SHAPES)),
        ("palette", drawing.NUM_PALETTES),
        ("pattern", len(drawing.PATTERNS)),
    ):
        pictures = [catalog(**{name: value}) for value in range(count)]
        for a in range(count):
            for b in range(a):
                assert np.abs(pictures[a] - pictures[b]).mean() > 2, (name, a, b)
        np.testing.assert_array_equal(pictures[0], first)


def test_details_tell_products_of_one_look_apart():
    other = dataclasses.replace(look(pattern=1), details=np.full((1, 6), 0.9))
    picture = drawing.draw_catalog(other, 32, np.random.default_rng(0))[0].astype(int)
    assert np.abs(picture - catalog(pattern=1)).mean() > 2


def test_a_query_is_another_picture_of_the_same_product():
    pictures = drawing.draw_query(look(shape=10, palette=3, n=4), 32, np.random.default_rng(0))
    assert pictures.shape == (4, 32, 32, 3) and pictures.dtype == np.uint8
    assert np.abs(pictures[0].astype(int) - pictures[1]).mean() > 10
    again = drawing.draw_query(look(shape=10, palette=3, n=4), 32, np.random.default_rng(0))
    np.testing.assert_array_equal(pictures, again)


def test_pictures_do_not_hang_on_how_many_are_drawn_at_once(monkeypatch):
    rng = np.random.default_rng(1)
    some = drawing.Look(rng.integers(0, 12, 5), rng.integers(0, 10, 5), rng.integers(0, 8, 5), rng.random((5, 6)))
    whole = drawing.draw_catalog(some, 16, np.random.default_rng(0))
    monkeypatch.setattr(drawing, "_CHUNK", 2)
    np.testing.assert_array_equal(drawing.draw_catalog(some, 16, np.random.default_rng(0)), whole)
