"""What represents an item, as values that a run declares: its modalities, and how their encoders learn.

All that handles contents derives from them: which columns are read and checked, the encoders' pairs, encoders and item
vectors, what events bring.
"""

from __future__ import annotations

import collections
import dataclasses
import re
import typing

from tfmm.features import STORED

LEARNED = ("image", "text")  # the encoders of our own
READY = "vector"  # no encoder: the column holds vectors
OWN = "content"  # kind of the column of an own encoder
MAX_DIM = 1040  # of vectors: a dot of two int8 rows is a whole number below 2**24, so exact in float32, up to here
BACKBONES = {"resnet18_v2": 1, "resnet50_v2": 1, "vit_b16": 16, "clip_vit_b16": 16}  # what divides their image_size
KERAS_FILE = ".keras"  # end of the name of an encoder that is a model of a file
TRANSFORMER = "text_transformer"
_KINDS = {  # of the column
    "image": "binary",
    "text": "string",
    READY: "vector",
    TRANSFORMER: "string",
    **dict.fromkeys(BACKBONES, "binary"),
}
KINDS = (*dict.fromkeys(_KINDS.values()), OWN)
NOTHING, ALL = "nothing", "all"  # what reports call the rows as they are, and those without vectors of any modality
PAIRS, CHECKPOINTS, DEAD_LETTERS = "pairs", "checkpoints", "dead_letter"  # folders that stand beside modalities' own
RESERVED = (NOTHING, ALL, PAIRS, CHECKPOINTS, DEAD_LETTERS, STORED)
_BY_FILE = ("pixel_mean", "pixel_std")
_READ = {  # settings that one kind of encoder reads, and others do not
    "image": ("image_size", "max_pixels", "width", "stages", "head_channels"),
    "text": ("text_buckets", "token_dropout"),
    TRANSFORMER: ("text_buckets", "token_dropout", "text_words", "text_layers", "text_heads"),
    KERAS_FILE: ("max_pixels", *_BY_FILE),
    **dict.fromkeys(BACKBONES, ("image_size", "max_pixels", "weights")),
}
OURS, PAPER = "ours", "paper"  # memory banks
# The paper's: every negative is a key of the momentum encoder.
PAPER_BANK: dict[str, typing.Any] = {"memory_bank_size": 196_800, "in_batch_negatives": False, "momentum": 0.999}
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def require(holds: bool, rule: str, value: object) -> None:
    """Raises ValueError with the rule and the value where it does not hold."""
    if not holds:
        raise ValueError(f"{rule} Received: {value!r}.")


def unread(encoder: str, settings: typing.Iterable[str]) -> list[str]:
    """Returns the settings that an encoder of ours would not read, sorted; of one of a user's own, none is known.

    >>> unread("text", ["dim", "width"])
    ['width']
    """
    kind = KERAS_FILE if encoder.endswith(KERAS_FILE) else encoder
    special = {name for names in _READ.values() for name in names}
    return sorted((special - set(_READ[kind])) & set(settings)) if kind in _READ else []


@dataclasses.dataclass(frozen=True)
class SCLConfig:
    """Semantic-aware contrastive pre-training of one item encoder (section 3)."""

    modality: str = "image"  # its name
    encoder: str = ""  # as a Modality names it; "": as `modality` says
    frozen: bool = False  # an encoder that is used as it is: nothing is trained
    weights: str = ""  # file of the backbone's weights, .weights.h5; "": fresh ones; backbones only
    pixel_mean: tuple[float, ...] = ()  # taken from colors in [0, 1], three; (): 0; a model of a file only
    pixel_std: tuple[float, ...] = ()  # that they are divided by then; (): 1
    dim: int = 64  # D
    image_size: int = 32  # pixels, square; image only
    max_pixels: int = 50_000_000  # of a picture: larger ones are refused by their header, before they are decoded
    width: int = 16  # channels of the first stage; image only
    stages: int = 3  # of the ResNet, each of twice the channels at half the size; image only
    head_channels: int = 32  # of its last convolution; image only
    text_buckets: int = 16_384  # hashed words and character n-grams; texts only
    text_words: int = 32  # W, the first of a text; text_transformer only
    text_layers: int = 2  # of the Transformer
    text_heads: int = 4  # of its attention, which divide `dim`
    batch_size: int = 64  # small: steps count for more than in-batch negatives, some of which would also fit
    epochs: int = 8  # the most; fewer, down to one, where they would see more than `max_pairs_seen`
    max_pairs_seen: int = 450_000  # by all epochs together; one epoch of more pairs ends there
    learning_rate: float = 2e-3
    clip_norm: float = 0.0  # longest gradient of all weights together; 0: as it is
    accumulate: int = 1  # batches, the mean of whose gradients is one update; negatives stay those of each batch
    warm_up_steps: int = 100  # at most, and at most a tenth of all
    final_learning_rate: float = 0.02  # share of the learning rate that is left at the end of the cosine
    weight_decay: float = 1e-4
    bank: str = OURS  # ours: by the settings below and the size of the data; paper: `PAPER_BANK`, whatever the data
    memory_bank_size: int = 196_800  # K at most, as in the paper; 0: no bank
    memory_bank_share: float = 0.01  # K at most, per distinct positive item: a bank must not hold what also fits
    lone_positive_bank: int = 8_192  # K at most where a query has one positive item, see `pretrain.plan`; 0: as above
    momentum: float = 0.99  # of the key encoder
    temperature: float = 0.07  # start of the learnable temperature
    in_batch_negatives: bool = True  # beside the memory bank
    triplet_weight: float = 1.0
    triplet_margin: float = 0.2  # cosine
    augment: bool = False  # worth its time in long runs on few pairs whose queries look like the items
    token_dropout: float = 0.1  # share of a text's tokens that `augment` leaves out; texts only
    seed: int = 0

    @property
    def with_bank(self) -> SCLConfig:
        """The same settings with what `bank` says about the memory bank."""
        return dataclasses.replace(self, **PAPER_BANK) if self.bank == PAPER else self

    def __post_init__(self) -> None:
        require(self.bank in (OURS, PAPER), f"`bank` must be {OURS} or {PAPER}.", self.bank)
        others = {name: getattr(self, name) for name, value in PAPER_BANK.items() if getattr(self, name) != value}
        stated = {name: value for name, value in others.items() if value != getattr(type(self), name)}
        require(
            self.bank == OURS or not stated,
            f"`bank`={PAPER} says {', '.join(f'{n}={v}' for n, v in PAPER_BANK.items())} itself: leave these out.",
            stated,
        )
        require(
            bool(self.encoder) or self.modality in LEARNED,
            f"`modality` must be one of {', '.join(LEARNED)} where `encoder` names none.",
            self.modality,
        )
        require(
            0 < self.dim <= MAX_DIM, f"`dim` must lie in 1..{MAX_DIM} (int8 dots are exact up to there).", self.dim
        )
        require(self.memory_bank_size >= 0, "`memory_bank_size` must not be negative.", self.memory_bank_size)
        require(self.lone_positive_bank >= 0, "`lone_positive_bank` must not be negative.", self.lone_positive_bank)
        require(self.memory_bank_share >= 0.0, "`memory_bank_share` must not be negative.", self.memory_bank_share)
        require(0.0 <= self.momentum < 1.0, "`momentum` must lie in [0, 1).", self.momentum)
        require(
            0.01 <= self.temperature <= 1.0,
            "`temperature` must lie in [0.01, 1], the range that it is learned in.",
            self.temperature,
        )
        require(
            self.in_batch_negatives or self.memory_bank_size > 0,
            "`memory_bank_size` must be at least 1 where `in_batch_negatives` is False: a loss needs negatives.",
            self.memory_bank_size,
        )
        for name in _BY_FILE:
            values = getattr(self, name)
            require(len(values) in (0, 3), f"`{name}` must have a value for each of three colors.", values)
        require(all(value > 0.0 for value in self.pixel_std), "`pixel_std` must be positive.", self.pixel_std)
        patch = BACKBONES.get(self.encoder, 1)
        divides = self.encoder != TRANSFORMER or self.dim % max(self.text_heads, 1) == 0
        require(divides, f"`text_heads` must divide `dim`, {self.dim}.", self.text_heads)
        fits = self.image_size % patch == 0
        require(fits, f"`image_size` must be a multiple of {patch} for {self.encoder}.", self.image_size)
        require(self.image_size >= 8, "`image_size` must be at least 8 pixels.", self.image_size)
        require(self.learning_rate > 0.0, "`learning_rate` must be positive.", self.learning_rate)
        require(self.clip_norm >= 0.0, "`clip_norm` must not be negative.", self.clip_norm)
        require(self.weight_decay >= 0.0, "`weight_decay` must not be negative.", self.weight_decay)
        require(self.triplet_weight >= 0.0, "`triplet_weight` must not be negative.", self.triplet_weight)
        require(0.0 < self.triplet_margin <= 2.0, "`triplet_margin` must lie in (0, 2].", self.triplet_margin)
        require(self.warm_up_steps >= 0, "`warm_up_steps` must not be negative.", self.warm_up_steps)
        for name in ("final_learning_rate", "token_dropout"):
            require(0.0 <= getattr(self, name) < 1.0, f"`{name}` must lie in [0, 1).", getattr(self, name))
        counts = ("batch_size", "epochs", "max_pairs_seen", "max_pixels", "width", "stages", "head_channels")
        for name in (*counts, "accumulate", "text_buckets", "text_words", "text_layers", "text_heads"):
            require(getattr(self, name) >= 1, f"`{name}` must be at least 1.", getattr(self, name))


@dataclasses.dataclass(frozen=True)
class Modality:
    """One thing that an item is represented by: a column of the catalog, and what makes vectors of it.

    Encoders:

    - `image`: PNG or JPEG, by the image encoder, trained on pairs.
    - `resnet18_v2`, `resnet50_v2`, `vit_b16`, `clip_vit_b16`: PNG or JPEG, by a net of keras-cv with fresh weights, or
      with those of the file `weights`; trained on pairs, or `frozen`.
    - `my_net.keras`: PNG or JPEG, by a Keras model of your own, pixels [B, S, S, 3] -> [B, D] or what is pooled to it;
      trained on pairs, or `frozen`.
    - `text`: strings, by the text encoder, trained on pairs.
    - `text_transformer`: strings, by a small Transformer over their words, trained on pairs from scratch.
    - `vector`: the column holds vectors, all of one length; nothing is trained.
    - `module:callable` of your own: bytes or strings. It is called with an `SCLConfig` and returns a
      `tfmm.pretrain.encoders.Encoder`, which is trained as ours are; or, with `frozen`, any object whose `encode` makes
      vectors, see `tfmm.pretrain.frozen`.
    """

    name: str
    encoder: str  # image, text, vector, a backbone's name, a .keras file, or module:callable of your own
    column: str = ""  # of items; "": the modality's name
    query_column: str = ""  # of searches: what a query of this modality is; "": pairs come from orders and clicks
    frozen: bool = False  # an own encoder, or one of a file, that is used as it is
    settings: dict[str, typing.Any] = dataclasses.field(default_factory=dict)  # of its SCLConfig
    meaning: str = ""  # of the column, in `tfmm data schema`
    query_meaning: str = ""

    @property
    def content(self) -> str:
        """The column of items that it reads."""
        return self.column or self.name

    @property
    def kind(self) -> str:
        """The kind of its columns: binary (a picture), string, vector, or content (of an own encoder)."""
        return _KINDS.get(self.encoder, _KINDS["image"] if self.is_file else OWN)

    @property
    def is_file(self) -> bool:
        """Whether its encoder is a Keras model of a file."""
        return self.encoder.endswith(KERAS_FILE)

    @property
    def is_ready(self) -> bool:
        """Whether the catalog brings its vectors."""
        return self.encoder == READY

    @property
    def is_trained(self) -> bool:
        """Whether its encoder learns from pairs."""
        return not (self.is_ready or self.frozen)

    def columns(self, table: str) -> tuple[tuple[str, str, str], ...]:
        """Returns name, kind and meaning of what it reads of a table."""
        if table == "items":
            return ((self.content, self.kind, self.meaning or f"modality {self.name!r}"),)
        if table == "searches" and self.query_column:
            return ((self.query_column, self.kind, self.query_meaning or f"queries of modality {self.name!r}"),)
        return ()

    def scl_config(self, base: SCLConfig | None = None, seed: int = 0) -> SCLConfig:
        """Returns the settings of its encoder: those of `base`, or the defaults with a seed, and its own on them.

        Raises:
            ValueError: a setting that SCLConfig lacks or refuses.
        """
        own = {"modality": self.name, "frozen": self.frozen}
        if self.name != self.encoder or self.encoder not in LEARNED:
            own["encoder"] = self.encoder
        start = SCLConfig(seed=seed) if base is None else base
        return dataclasses.replace(start, **{**self.settings, **own})

    def faults(self) -> typing.Iterator[str]:
        """Yields what is wrong with it, a line each."""
        name = f"modality {self.name!r}"
        is_own = self.encoder not in _KINDS and not self.is_file
        if not _NAME.fullmatch(self.name):
            yield f"{name}: `name` must be lower case letters, digits and _, a letter first"
        if self.name in RESERVED:
            yield f"{name}: `name` must not be one of {', '.join(RESERVED)}, which folders, tables and reports use"
        if is_own and not _REFERENCE.fullmatch(self.encoder):
            named = ", ".join((*_KINDS, f"a {KERAS_FILE} file"))
            yield f"{name}: `encoder` must be one of {named}, or module:callable, not {self.encoder!r}"
        if self.frozen and not (is_own or self.is_file or self.settings.get("weights")):
            yield f"{name}: only an encoder of your own or with weights of a file can be `frozen`; {self.encoder} " + (
                "has none" if self.is_ready else "learns from pairs"
            )
        if self.query_column and not self.is_trained:
            yield f"{name}: `query_column` is for encoders that are trained; this one is not, so leave it out"
        if self.is_ready and self.settings:
            yield f"{name}: ready vectors have no `settings`, not {', '.join(sorted(self.settings))}"
            return
        known = {field.name for field in dataclasses.fields(SCLConfig)} - {"modality", "encoder", "frozen"}
        if unknown := sorted(set(self.settings) - known):
            yield f"{name}: `settings` must be among {', '.join(sorted(known))}, not {', '.join(unknown)}"
        elif found := unread(self.encoder, self.settings):
            yield f"{name}: `settings` of the {self.encoder} encoder hold no {', '.join(found)}"
        elif not self.is_ready:
            try:
                self.scl_config()
            except (ValueError, TypeError) as error:
                yield f"{name}: {error}"


DEFAULT = (
    Modality(
        "text",
        "text",
        column="title",
        query_column="query_text",
        meaning="the text that a shopper reads",
        query_meaning="what was typed",
    ),
    Modality(
        "image",
        "image",
        query_column="query_image",
        meaning="encoded PNG or JPEG",
        query_meaning="the picture that was searched with, PNG or JPEG",
    ),
    Modality(
        "vector", READY, meaning="the item's own embedding, where the catalog brings one; one length for all"
    ),
)


@dataclasses.dataclass(frozen=True)
class ModalitySet:
    """The modalities of one run, checked together.

    Args:
        modalities: side by side, each with content in at least one row of the catalog; (): those of `DEFAULT` that
            the data has, its own vectors alone where it brings any.

    Raises:
        ValueError: all that is wrong with them, a line each.

    >>> ModalitySet().present({"title", "image"}.__contains__)
    ('image', 'text')
    >>> ModalitySet().present({"title", "vector"}.__contains__)
    ('vector',)
    """

    modalities: tuple[Modality, ...] = ()

    def __post_init__(self) -> None:
        if found := list(self._faults()):
            raise ValueError("The declaration of modalities must hold together. Received:\n- " + "\n- ".join(found))

    @property
    def known(self) -> tuple[Modality, ...]:
        """Those declared, or `DEFAULT`."""
        return self.modalities or DEFAULT

    def __getitem__(self, name: str) -> Modality:
        return next(modality for modality in self.known if modality.name == name)

    def present(self, has_content: typing.Callable[[str], bool]) -> tuple[str, ...]:
        """Returns the sorted names of the modalities that a catalog has; of declared ones all, with content or without.

        Args:
            has_content: says of a column of items whether any row holds something.
        """
        if self.modalities:
            return tuple(sorted(modality.name for modality in self.modalities))
        found = [modality for modality in DEFAULT if has_content(modality.content)]
        ready = [modality for modality in found if modality.is_ready]
        return tuple(sorted(modality.name for modality in ready or found))

    def columns(self, table: str) -> dict[str, tuple[str, str]]:
        """Returns the columns of a table with contents, each with kind and meaning.

        One that an own encoder shares with ours has the kind of ours.
        """
        result: dict[str, tuple[str, str]] = {}
        for name, kind, meaning in (column for modality in self.known for column in modality.columns(table)):
            if name not in result or result[name][0] == OWN:
                result[name] = (kind, meaning)
        return result

    def _faults(self) -> typing.Iterator[str]:
        for modality in self.modalities:
            yield from modality.faults()
        for name, count in collections.Counter(modality.name for modality in self.modalities).items():
            if count > 1:
                yield f"names of modalities must differ; {name!r} stands {count} times"
        for table in ("items", "searches"):
            readers: dict[str, Modality] = {}
            for modality in self.modalities:
                for name, kind, _ in modality.columns(table):
                    first = readers.setdefault(name, modality)
                    if first.kind == OWN:
                        readers[name] = modality
                    elif kind not in (OWN, first.kind):
                        yield (
                            f"modalities {first.name!r} and {modality.name!r} read {table}.{name}, which is one column "
                            f"and cannot be both {first.encoder} and {modality.encoder}"
                        )


UNDECLARED = ModalitySet()


def event_field(name: str) -> str:
    """Returns the field of an event that brings a modality's content: of the default ones their column, else
    `contents.<name>`.

    >>> event_field("text"), event_field("audio")
    ('title', 'contents.audio')
    """
    return next((m.content for m in DEFAULT if m.name == name), f"contents.{name}")
