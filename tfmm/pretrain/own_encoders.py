"""Encoders of a user's own, which a modality names as `module:Class`: what each must have, told before any work."""

from __future__ import annotations

import typing

from tfmm import own_classes
from tfmm.config import SCLConfig
from tfmm.modalities import Modality

_TRAINED, _FROZEN = ("prepare", "build_model"), ("encode",)  # methods of encoders


def make(config: SCLConfig) -> typing.Any:
    """Returns what `config.encoder` gives when it is called with `config`.

    Chance is seeded by `config.seed` first: layers without seeds of their own start the same each time.

    Raises:
        ValueError: it cannot be imported.
    """
    import keras  # by the time that an encoder is made, and not where declarations are checked

    encoder = own_classes.load(config.encoder, f"{config.modality} encoder")
    keras.utils.set_random_seed(config.seed)
    return encoder(config)


def faults(modalities: typing.Iterable[Modality]) -> list[str]:
    """Returns what is wrong with the users' own encoders of a run, a line each; it imports their modules."""
    return [fault for modality in modalities if own_classes.is_own(modality.encoder) for fault in _faults(modality)]


def _faults(modality: Modality) -> list[str]:
    what = f"modality {modality.name!r}: `encoder`"
    try:
        encoder = own_classes.load(modality.encoder, f"{modality.name} encoder")
        own_classes.source_digest([modality.encoder])
    except ValueError as error:
        return [str(error)]
    if not callable(encoder):
        return [f"{what} must be callable, not {type(encoder).__name__}"]
    wanted = _FROZEN if modality.frozen else _TRAINED
    lacking = [name for name in wanted if isinstance(encoder, type) and not hasattr(encoder, name)]
    if not lacking:
        return []
    way_out = (
        "Give it `encode`: string [B] -> float32 [B, D]"
        if modality.frozen
        else "Derive it from tfmm.pretrain.encoders.Encoder, or say frozen=True where nothing is to be trained"
    )
    return [f"{what}, the class {modality.encoder}, must have {', '.join(lacking)}. {way_out}"]
