import numpy as np

from tfmm.marketplace import drawing, wording


def some(n=400):
    rng = np.random.default_rng(0)
    sizes = (
        len(wording.NOUNS),
        len(wording.STYLES),
        len(wording.MATERIALS),
        len(wording.FEATURES),
        wording.NUM_BRANDS,
        900,
    )
    return wording.Wording(*(rng.integers(0, size, n) for size in sizes))


def test_titles_say_style_material_and_noun_in_some_synonym():
    words = some()
    for title, (noun, style, material, feature, brand, model) in zip(
        wording.titles(words, np.random.default_rng(0)), words.rows()
    ):
        assert title.startswith(wording.brand_name(brand))
        assert any(word in title for word in wording.STYLES[style])
        assert any(word in title for word in wording.MATERIALS[material])
        assert any(word in title for word in wording.NOUNS[noun])
        assert wording.FEATURES[feature] in title and title.endswith(f" {model}")


def test_queries_leave_words_out_and_use_synonyms():
    words = some()
    titles = wording.titles(words, np.random.default_rng(1))
    queries = wording.queries(words, np.random.default_rng(2))
    shared = [
        len(set(query.split()) & set(title.lower().split())) / len(query.split())
        for query, title in zip(queries, titles)
    ]
    assert all(queries)
    assert 0.2 < np.mean(shared) < 0.8
    assert np.mean([len(query.split()) for query in queries]) < np.mean([len(title.split()) for title in titles])


def test_brands_differ_and_each_shape_has_a_noun():
    assert len({wording.brand_name(brand) for brand in range(wording.NUM_BRANDS)}) == wording.NUM_BRANDS
    assert len(wording.NOUNS) == len(drawing.SHAPES)
    assert all(name == nouns[0] for name, nouns in zip(drawing.SHAPES, wording.NOUNS))
