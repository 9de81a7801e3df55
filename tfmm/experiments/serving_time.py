"""How long an exported click model takes to rank, as a server loads it and without a network."""

from __future__ import annotations

import os
import statistics
import time

from tfmm import config as config_lib
from tfmm import saved_model as loader
from tfmm.export import saved_model, signatures, warmup
from tfmm.features import FeatureSet

CALLS, WARM_UPS = 50, 5


def candidates(config: config_lib.ExportConfig) -> int:
    """Returns how many candidates a timed request has: the bucket in the middle."""
    return config.candidate_buckets[len(config.candidate_buckets) // 2]


def rank_ms(version_dir: str | os.PathLike[str]) -> float:
    """Returns the median milliseconds of `rank`, one user and `candidates`, of a SavedModel loaded in this process.

    Args:
        version_dir: as `export.saved_model.export` writes it.
    """
    manifest = saved_model.read_manifest(os.fspath(version_dir))
    config = config_lib.as_config(config_lib.ExportConfig, manifest["config"])
    feature_set = config_lib.as_config(FeatureSet, manifest["feature_set"])
    requests = [
        inputs
        for signature, inputs in warmup.requests(feature_set, manifest["id_types"], config)
        if signature == signatures.RANK
    ]
    inputs, seconds = requests[config.candidate_buckets.index(candidates(config))], []
    with loader.load_session(version_dir) as model:
        for _ in range(WARM_UPS + CALLS):
            started = time.perf_counter()
            model(signatures.RANK, inputs)
            seconds.append(time.perf_counter() - started)
    return 1000.0 * statistics.median(seconds[WARM_UPS:])
