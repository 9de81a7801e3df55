"""What represents an item, as values that a run declares: its modalities.

All that handles contents derives from them: which columns are read and checked, the encoders' pairs, encoders and item
vectors, what events bring.
"""

from __future__ import annotations

import collections
import dataclasses
import re
import typing

from tfmm.features import STORED
from tfmm.scl_config import BACKBONES, BY_FILE, LEARNED, OF_PICTURES, TRANSFORMER, SCLConfig

READY = "vector"  # no encoder: the column holds vectors
OWN = "content"  # kind of the column of an own encoder
KERAS_FILE = ".keras"  # end of the name of an encoder that is a model of a file
_KINDS = {  # of the column
    "image": "binary",
    "text": "string",
    READY: "vector",
    TRANSFORMER: "string",
    **dict.fromkeys(BACKBONES, "binary"),
}
KINDS = (*dict.fromkeys(_KINDS.values()), OWN)
MAX_TEXT_BYTES = 1 << 14  # of UTF-8; an encoder's cost grows with the longest text of a batch
NOTHING, ALL = "nothing", "all"  # what reports call the rows as they are, and those without vectors of any modality
PAIRS, CHECKPOINTS, DEAD_LETTERS = "pairs", "checkpoints", "dead_letter"  # folders that stand beside modalities' own
RESERVED = (NOTHING, ALL, PAIRS, CHECKPOINTS, DEAD_LETTERS, STORED)
_PICTURES = ("max_pixels", *OF_PICTURES)
_READ = {  # settings that one kind of encoder reads, and others do not
    "image": ("image_size", *_PICTURES, "width", "stages", "head_channels", "oriented_gradients"),
    "text": ("text_buckets", "text_ngrams", "token_dropout"),
    TRANSFORMER: ("text_buckets", "text_ngrams", "token_dropout", "text_words", "text_layers", "text_heads"),
    KERAS_FILE: (*_PICTURES, *BY_FILE),
    **dict.fromkeys(BACKBONES, ("image_size", *_PICTURES, "weights")),
}
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def unread(encoder: str, settings: typing.Iterable[str]) -> list[str]:
    """Returns the settings that an encoder of ours would not read, sorted; of one of a user's own, none is known.

    >>> unread("text", ["dim", "width"])
    ['width']
    """
    kind = KERAS_FILE if encoder.endswith(KERAS_FILE) else encoder
    special = {name for names in _READ.values() for name in names}
    return sorted((special - set(_READ[kind])) & set(settings)) if kind in _READ else []


def refuses_long_texts(encoder: str) -> bool:
    """Returns whether an encoder takes texts of `MAX_TEXT_BYTES` at most; others cut texts, or bear them.

    >>> refuses_long_texts("text"), refuses_long_texts("text_transformer")
    (True, False)
    """
    return encoder == "text"


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
