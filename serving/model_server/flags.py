"""Flags of tensorflow_model_server that change nothing here, and those that are refused, each with the reason."""

from __future__ import annotations

import typing

ONE_LOOP = "one event loop answers, and --num_threads run models"
ONE_THREAD = "versions load and go one after another, beside the requests"

# name: (kind, why its value changes nothing)
WITHOUT_EFFECT: dict[str, tuple[type, str]] = {
    "rest_api_num_threads": (int, ONE_LOOP),
    "num_load_threads": (int, ONE_THREAD),
    "num_unload_threads": (int, ONE_THREAD),
    "flush_filesystem_caches": (bool, "the page cache is left to the system"),
    "remove_unused_fields_from_bundle_metagraph": (bool, "signatures are all that is kept"),
    "xla_gpu_compilation_enabled": (bool, "XLA is always on"),
    "skip_initialize_tpu": (bool, "there are no TPUs"),
}

# name: (kind, the value that asks for nothing, why another one is refused)
REFUSED: dict[str, tuple[type, typing.Any, str]] = {
    "enable_batching": (
        bool, False, "batching merges rows of different callers, upserts of the item index among them; the "
        "candidates of one request are a batch already (signature `rank`)",
    ),
    "batching_parameters_file": (str, "", "requests are not batched here, see --enable_batching"),
    "enable_per_model_batching_parameters": (bool, False, "requests are not batched here, see --enable_batching"),
    "xla_cpu_compilation_enabled": (
        bool, True, "XLA is always on here; export with ExportConfig(jit_compile=False) for a server without it"
    ),
    "saved_model_tags": (str, "serve", "models are exported with the tag serve"),
    "tensorflow_session_config_file": (
        str, "", "sessions take their threads from --tensorflow_session_parallelism, and nothing else is set",
    ),
    "platform_config_file": (str, "", "SavedModels are the one platform"),
    "per_process_gpu_memory_fraction": (float, 0.0, "GPU memory is taken as it is needed"),
    "use_alts_credentials": (bool, False, "ALTS works inside Google's own network alone"),
    "enable_profiler": (bool, False, "there is no profiler service; time calls by the metrics"),
    "prefer_tflite_model": (bool, False, "SavedModels are served, TensorFlow Lite is not"),
    "num_tflite_pools": (int, 0, "SavedModels are served, TensorFlow Lite is not"),
    "num_tflite_interpreters_per_pool": (int, 0, "SavedModels are served, TensorFlow Lite is not"),
    "thread_pool_factory_config_file": (str, "", ONE_LOOP),
    "mixed_precision": (str, "", "the precision is the exported model's"),
}  # fmt: skip


def faults(given: typing.Mapping[str, typing.Any]) -> list[str]:
    """Returns a line for each flag among those given that asks for what is not done here.

    >>> faults({"enable_batching": False, "mixed_precision": "bfloat16"})
    ["--mixed_precision=bfloat16 is not done here: the precision is the exported model's."]
    """
    return [
        f"--{name}={str(given[name]).lower() if kind is bool else given[name]} is not done here: {reason}."
        for name, (kind, harmless, reason) in REFUSED.items()
        if given.get(name, harmless) != harmless
    ]
