"""How an item encoder learns: the settings of pre-training (section 3)."""

from __future__ import annotations

import dataclasses
import typing

LEARNED = ("image", "text")  # the encoders of our own
MAX_DIM = 1040  # of vectors: a dot of two int8 rows is a whole number below 2**24, so exact in float32, up to here
BACKBONES = {"resnet18_v2": 1, "resnet50_v2": 1, "vit_b16": 16, "clip_vit_b16": 16}  # what divides their image_size
TRANSFORMER = "text_transformer"
CHARACTER_NGRAMS = (3, 4)  # lengths
BY_FILE = ("pixel_mean", "pixel_std")
OURS, PAPER = "ours", "paper"  # memory banks
# The paper's: every negative is a key of the momentum encoder.
PAPER_BANK: dict[str, typing.Any] = {"memory_bank_size": 196_800, "in_batch_negatives": False, "momentum": 0.999}
LAST, BEST = KEPT = ("last", "best")  # weights that a training leaves
QUERIES, POSITIVES, BOTH = SIDES = ("queries", "positives", "both")  # of pairs
OF_PICTURES = ("crop", "color_jitter", "flip")  # that vary pictures in training
# Settings of training alone: weights may follow from them, but no encoder reads them to make a vector.
TRAINING_ALONE = ("evaluate_every", "validation_fraction", "exported", "augmented", *OF_PICTURES)
# Settings that came later and change vectors: an encoder's version names them only where they are not the default.
LATER = ("oriented_gradients", "text_ngrams")


def require(holds: bool, rule: str, value: object) -> None:
    """Raises ValueError with the rule and the value where it does not hold."""
    if not holds:
        raise ValueError(f"{rule} Received: {value!r}.")


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
    oriented_gradients: bool = False  # edges and colors of 8 x 8 parts of a picture beside the net's; image only
    text_buckets: int = 16_384  # hashed words and character n-grams; texts only
    text_ngrams: tuple[int, ...] = CHARACTER_NGRAMS  # lengths of the n-grams inside words; texts only
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
    augmented: str = BOTH  # queries, positives (hard negatives with them) or both: what is varied at random
    crop: float = 1.0  # least share of a picture's area that a random crop keeps, by keras-cv; 1: the whole picture
    color_jitter: float = 0.0  # how far brightness, contrast, saturation and hue are varied, by keras-cv; 0: not
    flip: bool = False  # mirror half of the pictures, by keras-cv: not where they hold text, or left and right matter
    evaluate_every: int = 0  # steps between evaluations; 0: after each epoch
    validation_fraction: float = 0.0  # of the training pairs' items, kept back to tell the best weights by; 0: none
    exported: str = LAST  # last: the weights at the end; best: those of the best evaluation on the pairs kept back
    seed: int = 0

    @property
    def by_keras_cv(self) -> bool:
        """Whether pictures are varied by keras-cv's layers."""
        return self.crop < 1.0 or self.color_jitter > 0.0 or self.flip

    @property
    def is_augmented(self) -> bool:
        """Whether contents are varied at random in training."""
        return self.augment or self.by_keras_cv

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
        for name in BY_FILE:
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
        require(self.augmented in SIDES, f"`augmented` must be one of {', '.join(SIDES)}.", self.augmented)
        require(0.0 < self.crop <= 1.0, "`crop` must lie in (0, 1]; 1 leaves pictures whole.", self.crop)
        of_texts = (self.encoder or self.modality) in (LEARNED[1], TRANSFORMER)
        require(
            not (of_texts and self.by_keras_cv),
            f"{', '.join(f'`{name}`' for name in OF_PICTURES)} vary pictures, and must be left out for an encoder of "
            "texts; `augment` varies those, by `token_dropout`.",
            {name: getattr(self, name) for name in OF_PICTURES},
        )
        require(self.evaluate_every >= 0, "`evaluate_every` must not be negative.", self.evaluate_every)
        require(self.exported in KEPT, f"`exported` must be one of {', '.join(KEPT)}.", self.exported)
        require(
            self.exported == LAST or self.validation_fraction > 0.0,
            f"`validation_fraction` must be positive where `exported` is {BEST}, which is chosen on pairs kept back.",
            self.validation_fraction,
        )
        for name in ("final_learning_rate", "token_dropout", "color_jitter", "validation_fraction"):
            require(0.0 <= getattr(self, name) < 1.0, f"`{name}` must lie in [0, 1).", getattr(self, name))
        lengths = self.text_ngrams  # a list, where a file says so
        require(
            isinstance(lengths, (list, tuple))
            and all(isinstance(one, int) and 1 <= one <= 8 for one in lengths)
            and len(set(lengths)) == len(lengths),
            "`text_ngrams` must be a list of different lengths of 1..8 characters.",
            lengths,
        )
        object.__setattr__(self, "text_ngrams", tuple(lengths))
        counts = ("batch_size", "epochs", "max_pairs_seen", "max_pixels", "width", "stages", "head_channels")
        for name in (*counts, "accumulate", "text_buckets", "text_words", "text_layers", "text_heads"):
            require(getattr(self, name) >= 1, f"`{name}` must be at least 1.", getattr(self, name))
