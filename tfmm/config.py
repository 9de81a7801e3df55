"""Typed, validated settings: one frozen dataclass per stage of the road from logs to a served score."""

from __future__ import annotations

import collections
import dataclasses
import json
import typing
import zoneinfo

from tfmm import declared_values, vectors
from tfmm import features as features_lib
from tfmm import modalities as modalities_lib
from tfmm.days import DEFAULT_DAYS, DaysConfig
from tfmm.drift import DriftConfig
from tfmm.modalities import Modality
from tfmm.pre_ranking import DEFAULT_PRE_RANKING, PreRankingConfig
from tfmm.scl_config import SCLConfig
from tfmm.scl_config import require as _require

ONE, MIRRORED, MULTI_WORKER = STRATEGIES = ("one", "mirrored", "multi_worker")
FLOAT32, BFLOAT16, FLOAT16 = PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")


def _is_zone(name: str) -> bool:
    try:
        return name == "UTC" or bool(zoneinfo.ZoneInfo(name))
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError, TypeError):
        return False


def _require_training(config: typing.Any) -> None:
    _require(config.batch_size >= 1, "`batch_size` must be at least 1.", config.batch_size)
    _require(config.learning_rate > 0.0, "`learning_rate` must be positive.", config.learning_rate)
    for name in ("attention_units", "units"):
        sizes = getattr(config, name)
        _require(all(size >= 1 for size in sizes), f"`{name}` must hold sizes of at least 1.", sizes)


@dataclasses.dataclass(frozen=True)
class MarketplaceConfig:
    """The synthetic marketplace that stands in where no data is named."""

    num_items: int = 1500  # items at the start of the week
    new_items_per_day: int = 60
    num_users: int = 1500
    num_days: int = 7  # days of impressions
    impressions_per_user_day: int = 6
    num_searches: int = 6000  # searches that end in a purchase, before the week
    image_size: int = 32  # pixels, square
    missing_image_fraction: float = 0.0  # of the items, new ones too
    missing_title_fraction: float = 0.0  # of the items, new ones too; drawn apart from the images
    rich: bool = False  # a table of users, prices, devices, positions, ... with planted effects (`marketplace.planted`)
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("missing_image_fraction", "missing_title_fraction"):
            _require(0.0 <= getattr(self, name) < 1.0, f"`{name}` must lie in [0, 1).", getattr(self, name))
        for name in ("num_items", "num_users", "num_days", "impressions_per_user_day", "num_searches"):
            value = getattr(self, name)
            _require(value > 0, f"`{name}` must be at least 1.", value)
        _require(self.new_items_per_day >= 0, "`new_items_per_day` must not be negative.", self.new_items_per_day)
        _require(self.image_size >= 16, "`image_size` must be at least 16 pixels.", self.image_size)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """How impressions become examples."""

    max_behaviors: int = 50  # L: the newest behaviors kept per impression
    eval_fraction: float = 0.2  # the last impressions by time, unless the table has a `split` column
    min_id_count: int = 2  # ids seen less often in training share the out-of-vocabulary embedding
    max_bad_fraction: float = 0.01  # rows of a table that may break a rule: they become dead letters; more stop the run
    time_zone: str = "UTC"  # IANA name: of dates, and of timestamps whose type names no zone

    def __post_init__(self) -> None:
        _require(self.max_behaviors >= 1, "`max_behaviors` must be at least 1.", self.max_behaviors)
        _require(0.0 < self.eval_fraction < 1.0, "`eval_fraction` must lie between 0 and 1.", self.eval_fraction)
        _require(self.min_id_count >= 1, "`min_id_count` must be at least 1.", self.min_id_count)
        _require(0.0 <= self.max_bad_fraction <= 1.0, "`max_bad_fraction` must lie in 0..1.", self.max_bad_fraction)
        _require(
            _is_zone(self.time_zone),
            "`time_zone` must be a name of the IANA time zone database, such as 'Europe/Berlin' (`pip install tzdata` "
            "where the system has none).",
            self.time_zone,
        )


@dataclasses.dataclass(frozen=True)
class PairsConfig:
    """How encoder pairs are built: query -> purchased item (section 3.2), else co-purchase or co-click."""

    heldout_fraction: float = 0.1  # split by item: no held-out positive is trained on
    max_pairs: int = 1_000_000  # per modality; drawn at random where the logs give more
    max_content_bytes: int = 4 * 2**30  # of the distinct images or texts of a modality's pairs: training holds them
    seed: int = 0

    def __post_init__(self) -> None:
        _require(
            0.0 < self.heldout_fraction < 1.0,
            "`heldout_fraction` must lie between 0 and 1.",
            self.heldout_fraction,
        )
        for name in ("max_pairs", "max_content_bytes"):
            _require(getattr(self, name) >= 1, f"`{name}` must be at least 1.", getattr(self, name))


@dataclasses.dataclass(frozen=True)
class MAKEConfig:
    """Pre-training of the multimodal knowledge extractor on clicks (section 4.3)."""

    epochs: int = 4
    batch_size: int = 256
    learning_rate: float = 3e-3
    attention_units: tuple[int, ...] = (32,)
    softmax: bool = True  # attention weights of a user's behaviors sum to 1
    units: tuple[int, ...] = (128, 64, 32)  # hidden layers of the four-layer MLP; the fourth is the logit
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self.epochs >= 0, "`epochs` must not be negative (0 trains MAKE jointly).", self.epochs)
        _require_training(self)
        _require(
            len(self.units) == 3,
            "`units` must name three hidden layers; the fourth gives the logit.",
            self.units,
        )


@dataclasses.dataclass(frozen=True)
class CTRConfig:
    """The click model and its training (section 4)."""

    model: str = ""  # "": ours; or `module:Class` of your own, see `tfmm.ctr.ranker`
    model_settings: dict[str, typing.Any] = dataclasses.field(default_factory=dict)  # of your own model's class
    epochs: int = 1  # one: ID embeddings overfit from the second on
    batch_size: int = 512
    attention_units: tuple[int, ...] = (32,)
    softmax: bool = True  # attention weights of a user's behaviors sum to 1
    units: tuple[int, ...] = (128, 64)
    learning_rate: float = 2e-3  # dense weights
    embedding_learning_rate: float = 2e-2
    block_rows: int = 4_096  # rows are shuffled inside blocks of this many, in time order
    segments: int = 16  # parts of an epoch, each followed by a line of the history and a checkpoint
    decay_from: float = 0.5  # share of the steps after which the dense rate falls to 0 in a line; 1: it never falls
    id_head: bool = True  # a target without any vector is scored by a head that learned every row from ids alone
    hidden_weight: float = 0.3  # of the loss of each row with the target's vectors hidden, per set of modalities
    hidden_behaviors_fraction: float = 0.2  # of training rows and per modality: a random share of behaviors does
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "block_rows", "segments"):
            _require(getattr(self, name) >= 1, f"`{name}` must be at least 1.", getattr(self, name))
        _require(len(self.units) >= 1, "`units` must name at least one hidden layer.", self.units)
        rate = self.embedding_learning_rate
        _require(rate > 0.0, "`embedding_learning_rate` must be positive.", rate)
        for name in ("decay_from", "hidden_behaviors_fraction"):
            _require(0.0 <= getattr(self, name) <= 1.0, f"`{name}` must lie in 0..1.", getattr(self, name))
        _require(self.hidden_weight >= 0.0, "`hidden_weight` must not be negative.", self.hidden_weight)
        _require_training(self)


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to bring item vectors into the click model, see `tfmm.ctr.integrations`."""

    name: str  # simtier, make, vector, simscore, semantic_id, sa_ta, behavior_search, or `module:Class` of your own
    settings: dict[str, typing.Any] = dataclasses.field(default_factory=dict)  # of its class


DEFAULT_METHODS = (Method("simtier"), Method("make"))


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """On what devices encoders, MAKE and click models are trained, and how exactly they compute (docs/training.md)."""

    strategy: str = "one"  # one: a device; mirrored: all of this machine; multi_worker: the processes of TF_CONFIG
    precision: str = "float32"  # or mixed_bfloat16, or mixed_float16 with loss scaling; weights stay float32

    def __post_init__(self) -> None:
        for name, known in (("strategy", STRATEGIES), ("precision", PRECISIONS)):
            value = getattr(self, name)
            _require(value in known, f"`training.{name}` must be one of {', '.join(known)}.", value)


DEFAULT_TRAINING = TrainingConfig()


@dataclasses.dataclass(frozen=True)
class GateConfig:
    """When a new model may be pushed."""

    min_auc: float = 0.52
    min_gauc: float = 0.52
    max_logloss: float = 1.0
    # Differences are judged with their paired interval over users: beyond it a bound must be missed.
    min_gain_over_id: float = 0.0  # GAUC, absolute: the multimodal model against its ID-only twin
    max_loss_to_service: float = 0.002  # GAUC, absolute: against the model in service; of slices, against the twin too
    max_logloss_rise: float = 0.002  # absolute: against the twin and the model in service
    max_calibration_rise: float = 0.05  # of |predicted / observed clicks - 1|: against the same two
    encoders: str = "warn"  # of one not better than untrained; "refuse": unless clicks are ranked worse without it
    slices: tuple[str, ...] = ()  # features by which the report is sliced, beside age, history and frequency of items
    max_hidden_bias: float = 0.1  # |mean score / click rate - 1| of rows whose target's vectors are hidden

    def __post_init__(self) -> None:
        for name in ("min_auc", "min_gauc"):
            _require(0.0 <= getattr(self, name) <= 1.0, f"`{name}` must lie in 0..1.", getattr(self, name))
        for name in ("max_logloss", "max_hidden_bias"):
            _require(getattr(self, name) > 0.0, f"`{name}` must be positive.", getattr(self, name))
        for name in ("max_logloss_rise", "max_calibration_rise"):
            _require(getattr(self, name) >= 0.0, f"`{name}` must not be negative.", getattr(self, name))
        _require(self.encoders in ("warn", "refuse"), '`encoders` must be "warn" or "refuse".', self.encoders)


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """The SavedModel that TF Serving loads."""

    index_capacity: int = 65_536  # items per modality that a server has room for, which takes memory as they come
    with_items: bool = True  # False: no rows inside; callers look vectors up in the index, see `serving.stored_client`
    batch_buckets: tuple[int, ...] = (8, 64, 512)
    candidate_buckets: tuple[int, ...] = (32, 128, 512)
    jit_compile: bool = True  # XLA scoring core; False writes the twin without XLA

    def __post_init__(self) -> None:
        _require(self.index_capacity >= 1, "`index_capacity` must be at least 1.", self.index_capacity)
        for name in ("batch_buckets", "candidate_buckets"):
            buckets = getattr(self, name)
            _require(
                0 < len(buckets) <= 6 and list(buckets) == sorted(set(buckets)) and buckets[0] >= 1,
                f"`{name}` must hold 1 to 6 ascending positive sizes.",
                buckets,
            )


@dataclasses.dataclass(frozen=True)
class KeepConfig:
    """What a run of the pipeline leaves in its workdir of earlier ones."""

    versions: int = 0  # pushed models kept, the one in service among them; 0: all
    checkpoints: int = 0  # kept of each training, those written last; 0: all

    def __post_init__(self) -> None:
        for name in ("versions", "checkpoints"):
            _require(getattr(self, name) >= 0, f"`{name}` must not be negative (0 keeps all).", getattr(self, name))


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything that one run of the road needs."""

    features: tuple[features_lib.Feature, ...] = features_lib.DEFAULT_FEATURES
    sequences: tuple[features_lib.Sequence, ...] = features_lib.DEFAULT_SEQUENCES
    modalities: tuple[Modality, ...] = ()  # what represents an item; (): what the data has, see `ModalitySet`
    label: features_lib.Label = features_lib.DEFAULT_LABEL
    methods: tuple[Method, ...] = DEFAULT_METHODS  # how item vectors come into the click model, in this order
    marketplace: MarketplaceConfig = MarketplaceConfig()
    data: DataConfig = DataConfig()
    drift: DriftConfig = dataclasses.field(default_factory=DriftConfig)
    pairs: PairsConfig = PairsConfig()
    image: SCLConfig = dataclasses.field(default_factory=lambda: SCLConfig(modality="image"))
    text: SCLConfig = dataclasses.field(default_factory=lambda: SCLConfig(modality="text"))
    make: MAKEConfig = MAKEConfig()
    ctr: CTRConfig = CTRConfig()
    pre_ranking: PreRankingConfig = DEFAULT_PRE_RANKING
    training: TrainingConfig = DEFAULT_TRAINING
    days: DaysConfig = DEFAULT_DAYS
    gate: GateConfig = GateConfig()
    export: ExportConfig = ExportConfig()
    keep: KeepConfig = KeepConfig()
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("image", "text"):
            modality = getattr(self, name).modality
            _require(modality == name, f"`{name}.modality` must be {name!r}.", modality)
        if found := list(self._faults()):
            raise ValueError("\n- ".join(found))

    def _faults(self) -> typing.Iterator[str]:
        names = [method.name for method in self.methods]
        if len(set(names)) < len(names):
            yield f"`methods` must name each method once. Received: {names}."
        is_whole = True
        for part in ("feature_set", "modality_set"):
            try:
                getattr(self, part)
            except ValueError as error:
                is_whole = False
                yield str(error)
        if not self.sequences:
            yield (
                "`sequences` must declare at least one: methods compare the target with a user's behaviors, and item "
                "vectors say nothing of clicks without. Received: none."
            )
        if unknown := sorted(set(self.gate.slices) - set(of_one := declared_values.sliceable(self.features))):
            yield (
                f"`gate.slices` must name features with one id, number or boolean per row: {', '.join(of_one)}. "
                f"Received: {', '.join(unknown)}."
            )
        if not is_whole:
            return  # the names below are those of parts that hold
        names = [name for sequence in self.sequences for name in sequence.columns] + [f.name for f in self.features]
        sides = [vectors.TARGET, *(sequence.name for sequence in self.sequences)]
        known = self.modalities or modalities_lib.DEFAULT
        names += [n for m in known for side in sides for n in vectors.names(m.name, side)]
        if twice := [name for name, count in collections.Counter(names).items() if count > 1]:
            yield (
                "Names of modalities, sequences and features must leave each input of the model a name of its own. "
                f"Received twice: {', '.join(twice[:5])}."
            )

    @property
    def feature_set(self) -> features_lib.FeatureSet:
        """The features, sequences and label, lengths and least counts filled in from `data`."""
        declared = features_lib.FeatureSet(self.features, self.sequences, self.label)
        return declared.resolved(self.data.max_behaviors, self.data.min_id_count)

    @property
    def modality_set(self) -> modalities_lib.ModalitySet:
        """The modalities, checked together."""
        return modalities_lib.ModalitySet(self.modalities)

    def encoders(self, names: typing.Iterable[str]) -> dict[str, SCLConfig]:
        """Returns the encoders' settings of the modalities named; ready vectors have none."""
        bases = {"image": self.image, "text": self.text}
        chosen = [self.modality_set[name] for name in names]
        return {m.name: m.scl_config(bases.get(m.encoder), self.seed) for m in chosen if not m.is_ready}

    @property
    def max_pixels(self) -> dict[str, int]:
        """The most pixels of a picture, by column: as many as every encoder that reads the column takes."""
        result: dict[str, int] = {}
        for name, settings in self.encoders(m.name for m in self.modality_set.known if m.kind == "binary").items():
            modality = self.modality_set[name]
            for column in filter(None, (modality.content, modality.query_column)):
                result[column] = min(settings.max_pixels, result.get(column, settings.max_pixels))
        return result

    def with_seed(self, seed: int) -> RunConfig:
        """Returns the same run with every stage seeded with `seed`, and every `seed` among settings set to it."""

        def seeded(settings: typing.Any) -> typing.Any:
            return {**settings, "seed": seed} if isinstance(settings, dict) and "seed" in settings else settings

        stages: dict[str, typing.Any] = {
            field.name: dataclasses.replace(stage, seed=seed)
            for field in dataclasses.fields(self)
            if hasattr(stage := getattr(self, field.name), "seed")
        }
        stages["ctr"] = dataclasses.replace(stages["ctr"], model_settings=seeded(self.ctr.model_settings))
        for name in ("modalities", "methods"):
            parts = getattr(self, name)
            stages[name] = tuple(dataclasses.replace(part, settings=seeded(part.settings)) for part in parts)
        return dataclasses.replace(self, seed=seed, **stages)


def to_dict(config: object) -> dict[str, typing.Any]:
    """Returns a config dataclass as plain JSON types."""
    return json.loads(json.dumps(dataclasses.asdict(config)))  # type: ignore[call-overload]


def from_dict(kind: type, values: typing.Mapping[str, typing.Any]) -> typing.Any:
    """Rebuilds a config of class `kind` from `to_dict`'s result.

    Raises:
        ValueError: a field that the class lacks, or values that it refuses.

    >>> from_dict(MAKEConfig, to_dict(MAKEConfig(epochs=2))).epochs
    2
    """
    _require(isinstance(values, typing.Mapping), f"{kind.__name__} must be a table of its fields.", values)
    hints = typing.get_type_hints(kind)
    arguments = {}
    for name, value in values.items():
        _require(name in hints, f"{kind.__name__} has the fields {sorted(hints)}.", name)
        hint: typing.Any = hints[name]
        if typing.get_origin(hint) is tuple:
            _require(isinstance(value, (list, tuple)), f"`{name}` of {kind.__name__} must be a list.", value)
            inner: typing.Any = typing.get_args(hint)[0]
            value = tuple(
                from_dict(typing.cast(type, inner), part) if dataclasses.is_dataclass(inner) else part for part in value
            )
        elif dataclasses.is_dataclass(hint) or typing.get_origin(hint) is dict:
            _require(isinstance(value, typing.Mapping), f"`{name}` of {kind.__name__} must be a table.", value)
            value = from_dict(typing.cast(type, hint), value) if dataclasses.is_dataclass(hint) else value
        elif hint in (int, float, str, bool):
            value = float(value) if hint is float and type(value) is int else value
            _require(type(value) is hint, f"`{name}` of {kind.__name__} must be a {hint.__name__}.", value)
        arguments[name] = value
    try:
        return kind(**arguments)
    except TypeError as error:  # a field without a default is missing
        raise ValueError(f"{kind.__name__} must have its fields. Received: {error}.") from error


def as_config(kind: type, value: typing.Any) -> typing.Any:
    """Returns a config as it is, or rebuilt from what `to_dict` made of it."""
    return from_dict(kind, value) if isinstance(value, typing.Mapping) else value
