"""What encoders bring from outside, classes of a user's own, nets of keras-cv and files: checked before any work."""

from __future__ import annotations

import pathlib
import typing

from tfmm import extras, own_classes
from tfmm.config import SCLConfig
from tfmm.modalities import Modality
from tfmm.pretrain import weights_file
from tfmm.scl_config import BACKBONES

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
    """Returns what is wrong with the users' own encoders and files of a run, a line each; it imports their modules."""
    found: list[str] = []
    for modality in modalities:
        own = own_classes.is_own(modality.encoder)
        found += _faults(modality) if own else [f"modality {modality.name!r}: {f}" for f in _file_faults(modality)]
    return found


def file_digests(modalities: typing.Iterable[Modality]) -> list[str]:
    """Returns hashes of the files that encoders are made of: another content under the same name is another encoder."""
    digests = []
    for modality in modalities:
        for path in filter(None, (modality.is_file and modality.encoder, modality.settings.get("weights"))):
            digests.append(weights_file.digest(path))
    return digests


def _file_faults(modality: Modality) -> typing.Iterator[str]:
    if modality.is_file and not pathlib.Path(modality.encoder).is_file():
        yield f"`encoder` must be a Keras model's file that exists, not {modality.encoder!r}"
    if modality.encoder in BACKBONES or (modality.is_trained and modality.scl_config().by_keras_cv):
        try:
            extras.verify("vision", "keras_cv")
        except extras.MissingExtraError as error:
            yield str(error)
    if (weights := modality.settings.get("weights")) and (said := weights_file.fault(weights)):
        yield said


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
