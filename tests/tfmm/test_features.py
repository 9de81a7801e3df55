"""Tests of the declaration of features and sequences."""

import dataclasses

import pytest

from tfmm.features import DEFAULT_FEATURES, DEFAULT_SEQUENCES, Feature, FeatureSet, Label, Sequence


def test_columns_are_features_then_what_rides_along():
    own = (*DEFAULT_FEATURES, Feature("age", "behavior", "number", source="behaviors.age"))
    declared = FeatureSet(own, (Sequence("clicks", ("click",), 4, ("item_id", "age")),)).resolved(9, 2)
    names = ["user_id", "item_id", "category", "clicks_item_id", "clicks_age"]
    assert [column.name for column in declared.columns] == names
    assert [column.shape for column in declared.columns] == [(), (), (), (4,), (4,)]
    assert [column.input for column in declared.columns][-2:] == ["clicks_item_id_index", "clicks_age_value"]
    assert [column.side for column in declared.columns] == ["user", "item", "item", "user", "user"]


def test_open_lengths_and_counts_are_filled_in_and_given_ones_stay():
    declared = FeatureSet((*DEFAULT_FEATURES[:2], Feature("category", "item", min_count=7))).resolved(9, 2)
    assert declared.sequences[0].length == 9
    assert [feature.min_count for feature in declared.features] == [2, 2, 7]


def test_features_of_one_vocabulary_share_its_embedding():
    declared = FeatureSet((*DEFAULT_FEATURES, Feature("brand", "item"), Feature("liked", "user", vocabulary="brand")))
    assert declared.vocabularies == ("user_id", "item_id", "category", "brand")
    assert list(declared.embeddings) == ["user_id", "item_id", "category", "brand"]


def test_feature_known_in_training_only_is_in_no_request():
    declared = FeatureSet((*DEFAULT_FEATURES, Feature("position", "context", "number", serving_value=1)))
    assert "position" in {column.name for column in declared.columns}
    assert "position" not in {column.name for column in declared.served}


def test_source_tells_table_and_column():
    feature = Feature("price_level", "item", "number", source="items.price", scaling="quantiles")
    assert (feature.table, feature.column, feature.num_indices) == ("items", "price", 17)
    assert (Feature("city", "user").table, Feature("city", "user").column) == ("users", "city")


FAULTS = [
    (Feature("Brand", "item"), "must be lower case letters"),
    (Feature("label", "item"), "must be lower case letters.*none of timestamp, label"),
    (Feature("brand", "product"), "`role` must be one of user, item, context, behavior, not 'product'"),
    (Feature("brand", "item", "text"), "`kind` must be one of id, ids, number, boolean, time, not 'text'"),
    (Feature("brand", "item", dim=0), "`dim` must be at least 1, not 0"),
    (Feature("brand", "item", source="users.brand"), "the table of role item one of items, impressions"),
    (Feature("price", "item", "number", scaling="squared"), "`scaling` must be one of standard, log, quantiles"),
    (Feature("price", "item", "number", vocabulary="brand"), "only ids have a `vocabulary`"),
    (Feature("category", "item"), "names of features and of sequences' columns must differ; 'category' stands 2 times"),
    (Feature("behavior_item_ids", "user"), "'behavior_item_ids' stands 2 times"),
    (Feature("dwell", "behavior", "number"), "must ride along in a sequence; none names it"),
    (Feature("tags", "item", "ids", serving_value="a"), "`serving_value` is for single values"),
    (Feature("liked", "user", vocabulary="category", dim=3), "share 'category', so `dim`, `min_count`"),
]


@pytest.mark.parametrize(("feature", "words"), FAULTS)
def test_fault_of_a_feature_is_named(feature, words):
    with pytest.raises(ValueError, match=words):
        FeatureSet((*DEFAULT_FEATURES, feature))


def test_all_faults_are_said_at_once():
    with pytest.raises(ValueError, match=r"(?s)Brand.*must be lower case.*'brand'.*`dim` must be at least 1"):
        FeatureSet((*DEFAULT_FEATURES, Feature("Brand", "item"), Feature("brand", "item", dim=0)))


@pytest.mark.parametrize(
    ("sequence", "words"),
    [
        (Sequence("target"), "and not 'target'"),
        (Sequence("clicks", ("tap",)), "`actions` must be among click, cart, favorite, purchase, not tap"),
        (Sequence("clicks", length=-1), "`length` must be at least 1"),
        (Sequence("clicks", features=("category",)), "`features` must hold 'item_id'"),
        (Sequence("clicks", features=("item_id", "brand")), "`features` must be declared; 'brand' is not"),
        (Sequence("clicks", features=("item_id", "user_id")), "must be single values of items or behaviors; 'user_id'"),
        (Sequence("clicks", features=("item_id",), column_names=("a", "b")), "must name one per feature, 1 in all"),
        (Sequence("behavior", features=("item_id",)), "names of sequences must differ; 'behavior' stands 2 times"),
    ],
)
def test_fault_of_a_sequence_is_named(sequence, words):
    with pytest.raises(ValueError, match=words):
        FeatureSet(DEFAULT_FEATURES, (*DEFAULT_SEQUENCES, sequence))


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (Label(""), "`column` must name a column"),
        (Label(negative_rate=0.0), r"`negative_rate` must lie in \(0, 1\], a share such as 0.1, not 0.0"),
        (Label(negative_rate=10.0), "not 10.0"),
        (Label(negative_rate=float("nan")), "not nan"),
        (Label(negative_rate=0.1, negative_rate_column="rate"), "not both; 0.1 and 'rate' are given"),
        (Label(weight="label"), "must be columns of their own, not 'label'"),
        (Label(weight="timestamp"), "must be columns of their own, not 'timestamp'"),
    ],
)
def test_fault_of_the_label_is_named(label, words):
    with pytest.raises(ValueError, match=words):
        FeatureSet(label=label)


def test_no_feature_reads_the_label():
    leak = Feature("bought", "context", "number", source="impressions.clicked")
    with pytest.raises(ValueError, match=r"'bought': reads the label, impressions\.clicked, which no request knows"):
        FeatureSet((*DEFAULT_FEATURES, leak), label=Label("clicked"))
    assert FeatureSet((*DEFAULT_FEATURES, leak)).label == Label()


def test_names_of_weights_and_rates_are_taken():
    with pytest.raises(ValueError, match="none of timestamp, label, sample_weight, negative_rate"):
        FeatureSet((*DEFAULT_FEATURES, Feature("sample_weight", "context", "number")))


def test_keys_are_needed_and_stay_ids():
    with pytest.raises(ValueError, match="must declare 'user_id'"):
        FeatureSet(DEFAULT_FEATURES[1:])
    with pytest.raises(ValueError, match="feature 'item_id': must be of kind 'id' and role 'item'"):
        FeatureSet((DEFAULT_FEATURES[0], dataclasses.replace(DEFAULT_FEATURES[1], kind="number"), DEFAULT_FEATURES[2]))
