"""Query -> purchased item pairs, which teach the encoders."""

from __future__ import annotations

import typing

from tfmm.config import RunConfig
from tfmm.data import pairs as pairs_lib
from tfmm.pretrain import in_words
from tfmm.stages.folders import Folder


def make_pairs(
    run: RunConfig, data_dir: Folder, output_dir: Folder, say: typing.Callable[[str], object]
) -> dict[str, dict[str, typing.Any]]:
    """Builds the pairs of each modality whose encoder is trained, see `pairs.build_pairs`; says where they come from.

    Returns:
        The manifests by modality.
    """
    manifests = pairs_lib.build_pairs(data_dir, run.pairs, output_dir, run.data, run.modality_set, run.feature_set)
    for facts in manifests.values():
        say(in_words.pairs_text(facts))
    return manifests
