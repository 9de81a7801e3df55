"""Tests of declarations that cannot hold: each is refused, with the rule, the value and the way out."""

import pytest

from tfmm.config import Method, RunConfig
from tfmm.features import DEFAULT_FEATURES, Feature, FeatureSet, Label, Sequence

PRICE = Feature("price", "item", "number")
NAN, TOO_LARGE = float("nan"), 1e300


def refused(*features, sequences=None, label=None):
    """Returns what is said of a declaration with these features beside the default ones."""
    more = {} if sequences is None else {"sequences": sequences}
    more |= {} if label is None else {"label": label}
    with pytest.raises(ValueError, match="must hold together") as caught:
        FeatureSet((*DEFAULT_FEATURES, *features), **more)
    return str(caught.value)


@pytest.mark.parametrize("name", ["class", "lambda", "self", "none_", "_row"])
def test_names_are_those_that_a_signature_can_have(name):
    if name == "none_":
        assert FeatureSet((*DEFAULT_FEATURES, Feature(name, "item")))
    else:
        assert f"feature {name!r}: `name` must be lower case letters" in refused(Feature(name, "item"))


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("id", 0.5), ("id", True), ("id", 2**63), ("id", [1]), ("number", "one"), ("number", NAN),
        ("number", float("inf")), ("number", TOO_LARGE), ("number", True), ("boolean", "yes"), ("boolean", 0.5),
        ("boolean", NAN), ("time", 0.5), ("time", "12:00"), ("time", 2**63), ("time", True),
    ],
)  # fmt: skip
def test_serving_value_must_be_one_of_its_kind(kind, value):
    words = {
        "id": "an integer or a string, as its ids are",
        "number": "a finite number of at most 1e+30",
        "boolean": "true or false",
        "time": "a whole number of microseconds since 1970",
    }
    said = refused(Feature("place", "context", kind, serving_value=value))
    assert f"feature 'place': `serving_value` must be {words[kind]}" in said and f"not {value!r}" in said


@pytest.mark.parametrize(
    ("kind", "value"),
    [("id", 3), ("id", "home"), ("id", 0), ("id", ""), ("number", 1), ("number", -0.5), ("boolean", True),
     ("boolean", 0), ("boolean", 1.0), ("time", 1_700_000_000_000_000)],
)  # fmt: skip
def test_serving_value_of_its_kind_is_taken(kind, value):
    declared = FeatureSet((*DEFAULT_FEATURES, Feature("place", "context", kind, serving_value=value)))
    assert "place" not in [column.name for column in declared.served]


def test_what_serving_replaces_does_not_ride_in_a_sequence():
    """A request brings the columns of a sequence; one that it does not bring would be missing at export."""
    shelf = Feature("shelf", "item", "number", serving_value=1)
    said = refused(shelf, sequences=(Sequence("clicks", features=("item_id", "shelf")),))
    assert "sequence 'clicks': 'shelf' has a `serving_value`, so it is known of no behavior in service" in said
    assert "declare another feature with source 'items.shelf' and without it" in said
    again = Feature("clicked_shelf", "item", "number", source="items.shelf")
    clicks = Sequence("clicks", features=("item_id", "clicked_shelf"))
    served = [column.name for column in FeatureSet((*DEFAULT_FEATURES, shelf, again), (clicks,)).served]
    assert served[-3:] == ["clicked_shelf", "clicks_item_id", "clicks_clicked_shelf"]


@pytest.mark.parametrize(
    "other",
    [
        Feature("brand", "item", "number", scaling="quantiles"),
        Feature("brand", "item", "boolean"),
        Feature("brand", "context", "time"),
    ],
    ids=lambda feature: feature.kind,
)
def test_vocabulary_is_shared_by_ids_alone(other):
    said = refused(other, Feature("liked", "user", vocabulary="brand"))
    assert "'brand' and 'liked' share 'brand', so both must be ids" in said


@pytest.mark.parametrize("vocabulary", ["../brand", "Brand", "a b", "marque_\u00e9"])
def test_vocabulary_is_a_name_of_a_file(vocabulary):
    said = refused(Feature("brand", "item", vocabulary=vocabulary))
    assert f"feature 'brand': `vocabulary` must be lower case letters, digits and _, not {vocabulary!r}" in said


@pytest.mark.parametrize(
    ("features", "name"),
    [
        ((PRICE, Feature("price_value", "item")), "price_value"),
        ((Feature("city", "user"), Feature("city_index", "user", "number")), "city_index"),
        ((PRICE, Feature("price_statistics", "item")), "price_statistics"),
        ((PRICE, Feature("brand", "item", vocabulary="price_statistics")), "price_statistics"),
        ((Feature("behavior_item_ids_index", "user"),), "behavior_item_ids_index"),
        ((Feature("timestamp_", "item"), Feature("category_index", "item")), "category_index"),
    ],
)
def test_no_name_is_that_of_an_input_or_a_statistic_of_another(features, name):
    assert f"{name!r} must name one thing" in refused(*features)


def test_columns_of_sequences_are_named_as_features_are():
    columns = Sequence("clicks", features=("item_id", "category"), column_names=("label", "Clicked categories"))
    said = refused(sequences=(columns,))
    assert "sequence 'clicks': `column_names` must be lower case letters" in said
    assert "'label', 'Clicked categories'" in said


@pytest.mark.parametrize(("field", "label"), [("weight", Label(weight="kept")), ("negative_rate_column",
                         Label(negative_rate_column="kept"))])  # fmt: skip
def test_no_feature_reads_how_a_row_counts(field, label):
    leak = Feature("share", "context", "number", source="impressions.kept")
    said = refused(leak, label=label)
    assert f"feature 'share': reads the label's `{field}`, impressions.kept, which no request knows" in said


def test_keys_come_from_the_columns_that_tables_are_joined_by():
    of_shop = Feature("item_id", "item", source="items.sku")
    with pytest.raises(ValueError, match="must be of kind 'id' and role 'item', from a column 'item_id'"):
        FeatureSet((DEFAULT_FEATURES[0], of_shop, DEFAULT_FEATURES[2]))


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (Feature("brand", "item", dim="8"), "feature 'brand': `dim` must be of type int, not '8'"),
        (Feature("brand", "item", num_buckets=1.5), "`num_buckets` must be of type int, not 1.5"),
        (Feature(7, "item"), "feature 7: `name` must be of type str, not 7"),
        (Feature("brand", "item", source=None), "`source` must be of type str, not None"),
        (Sequence("clicks", "click"), "sequence 'clicks': `actions` must be a tuple of strings, not 'click'"),
        (Sequence("clicks", length="5"), "`length` must be of type int, not '5'"),
        (Sequence("clicks", din=1), "`din` must be of type bool, not 1"),
        (Label(5), "label: `column` must be of type str, not 5"),
        (Label(negative_rate="0.1"), "label: `negative_rate` must be of type float, not '0.1'"),
    ],
)
def test_fields_hold_values_of_their_types(part, words):
    if isinstance(part, Feature):
        said = refused(part)
    else:
        said = refused(sequences=(part,)) if isinstance(part, Sequence) else refused(label=part)
    assert words in said


def test_lists_stand_for_tuples():
    assert Sequence("clicks", ["click"], features=["item_id"]) == Sequence("clicks", ("click",), features=("item_id",))


def test_embedding_table_has_a_bound():
    said = refused(Feature("city", "user", num_buckets=10**12))
    assert "feature 'city': an embedding table must take at most 16 GiB, not 29,802.3 GiB" in said


@pytest.mark.parametrize("name", ["image_target_mask", "text_behavior_rows", "vector_target_scales"])
def test_no_feature_is_named_as_item_vectors_are(name):
    """Of modalities that the data may have, too: the names are inputs of `score_vectors`."""
    with pytest.raises(ValueError, match=f"leave each input of the model a name of its own. Received twice: {name}"):
        RunConfig(features=(*DEFAULT_FEATURES, Feature(name, "user")))


def test_fields_of_other_types_are_said_by_a_run_too():
    with pytest.raises(ValueError, match="sequence 'clicks': `features` must be a tuple of strings, not None"):
        RunConfig(sequences=(Sequence("clicks", features=None),))


def test_a_field_of_another_type_is_said_of_each_of_two_features_of_one_name():
    said = refused(Feature("brand", "item", dim="8"), Feature("brand", "item", min_count="2"))
    assert "`dim` must be of type int, not '8'" in said and "`min_count` must be of type int, not '2'" in said


def test_methods_named_twice_are_said_with_all_else():
    with pytest.raises(ValueError, match=r"(?s)must name each method once.*\n- .*\n- feature 'brand': `dim`"):
        RunConfig(features=(*DEFAULT_FEATURES, Feature("brand", "item", dim=0)), methods=(Method("make"),) * 2)
