"""`python -m serving.nearline.judge FOLDER`: exports a candidate, judges it, and pushes it where the gate agrees.

A process apart, so that training goes on, and so that what TensorFlow keeps of each export is gone with it.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import pathlib
import shutil
import signal
import sys
import time
import typing

PUSHED = ".nearline"  # file in the folder of versions: those that this pushed, one a line
_SERVED_WAIT_S, _SERVED_POLL_S = 120.0, 0.2
METRICS = ("auc", "gauc", "logloss", "calibration")  # of a slice that are told of the candidate and the one in service
_NICE = 10  # beside training, which goes on meanwhile
_log = logging.getLogger("serving.nearline.judge")


def judge(folder: pathlib.Path) -> dict[str, typing.Any]:
    """Judges the candidate in a folder, as `candidates` left it, and pushes it, unchanged, where the gate agrees.

    Returns:
        `passed`, the gate's `reasons`, `version` (its folder), `pushed_at`, `served_at` (seconds since 1970; None where
        no server was named or none served it in time), `rows` that it was judged on, `judged_at`, `metrics` of each
        model, those of `METRICS` that the rows have, and `said`, lines about it.
    """
    from serving.nearline import candidates
    from tfmm.ctr import model as model_lib
    from tfmm.ctr import state as state_lib
    from tfmm.export import saved_model, trial
    from tfmm.index import item_vectors, snapshot, store
    from tfmm.stages import judgement, run_file, version
    from tfmm.stages.folders import MULTIMODAL, SERVING, STATE, TRAINED

    order, run = json.loads((folder / candidates.ORDER).read_text()), run_file.read(folder)
    if run is None:
        raise FileNotFoundError(f"{folder} must hold {run_file.FILE}. Received: none.")
    versions, model = pathlib.Path(order["serving_dir"]), folder / MULTIMODAL
    with store.open_store(order["index_url"], create=False) as index:
        snapshot.write_snapshot(index, folder / "snapshot", order["encoder_versions"])
    vocabulary, training = model / STATE / state_lib.VOCABULARY, state_lib.read_manifest(model / STATE)["training"]
    modalities = list(order["encoder_versions"])  # none, of a model of ids alone
    tables = item_vectors.load_vectors(folder / "snapshot", modalities) if modalities else {}
    state = state_lib.load(model / STATE, run.ctr, vocabulary, tables)
    model_lib.save_model(state.model, model / TRAINED, [model / STATE], training=training)
    saved_model.export(
        model / TRAINED, vocabulary, folder / "snapshot", order["id_types"], run.export, model / SERVING, order["head"]
    )
    said: list[str] = []
    pattern, in_service = candidates.eval_pattern(folder), _in_service(versions, _loaded(order))
    report, verdict = judgement.judge(
        run, {MULTIMODAL: model}, (pattern, pattern), folder / "evaluation", said.append, in_service_dir=in_service,
        index_url=order["index_url"],
    )  # fmt: skip
    result = {"passed": verdict.passed, "reasons": list(verdict.reasons), "said": said}
    result |= {"rows": report["rows"]["eval"], "version": None, "pushed_at": None, "served_at": None}
    result |= {"judged_at": time.time(), "metrics": {
        name: {metric: found[metric] for metric in METRICS if found[metric] is not None}
        for name, found in report["models"].items()
    }}  # fmt: skip
    if not verdict.passed:
        return result
    if fault := trial.fault_in_session(model / SERVING):
        return {**result, "passed": False, "reasons": [f"it does not answer: {fault}"]}
    pushed = version.ship(folder, folder / "evaluation", versions)
    result |= {"version": str(pushed), "pushed_at": time.time()}
    loaded = _loaded(order)
    count = order["keep_versions"] if loaded is not None else 0  # where the server does not answer, all stay
    _keep(versions, pushed.name, count, loaded or ())
    if order["server"]:
        result["served_at"] = _served_at(order["server"], order["model_name"], int(pushed.name))
    return result


def _loaded(order: typing.Mapping[str, typing.Any]) -> dict[str, bool] | None:
    """Returns the versions that the server has loaded, or loads, and whether they are in service.

    Returns:
        {} where no server was named, None where it does not answer.
    """
    import grpc

    from serving.replica import Replica

    if not order["server"]:
        return {}
    replica = Replica(order["server"], order["model_name"])
    try:
        return {str(version): is_served for version, is_served in replica.versions().items()}
    except grpc.RpcError as error:
        _log.warning("%s: %s", order["server"], error.code().name)
        return None
    finally:
        replica.close()


def _in_service(versions: pathlib.Path, loaded: typing.Mapping[str, bool] | None) -> pathlib.Path | None:
    """Returns the newest version that a server has in service; the newest of all where no server says so."""
    found = [path for path in versions.iterdir() if path.name.isdigit()] if versions.is_dir() else []
    served = [path for path in found if (loaded or {}).get(path.name)]
    return max(served or found, key=lambda path: int(path.name), default=None)


def _keep(versions: pathlib.Path, name: str, count: int, loaded: typing.Collection[str] = ()) -> None:
    """Removes versions that this pushed beyond the newest `count`, but for those that a server has loaded.

    0 keeps all, and nobody else's are touched.
    """
    path = versions / PUSHED
    pushed = [*(path.read_text().split() if path.is_file() else []), name]
    old = {one for one in pushed[:-count] if one not in loaded} if count else set()
    for one in old:
        shutil.rmtree(versions / one, ignore_errors=True)
    temporary = path.with_name(f"{PUSHED}.{os.getpid()}")
    temporary.write_text("".join(f"{one}\n" for one in pushed if one not in old))
    temporary.replace(path)


def _served_at(target: str, model_name: str, version: int) -> float | None:
    """Returns when a server had a version in service."""
    import grpc

    from serving.replica import Replica

    replica, end = Replica(target, model_name), time.monotonic() + _SERVED_WAIT_S
    try:
        while time.monotonic() < end:
            try:
                if replica.versions().get(version):
                    return time.time()
            except grpc.RpcError as error:
                _log.warning("%s: %s", target, error.code().name)
            time.sleep(_SERVED_POLL_S)
    finally:
        replica.close()
    _log.warning("%s has no version %d in service after %.0f s", target, version, _SERVED_WAIT_S)
    return None


def _end_with_parent() -> None:
    """Lets the system kill this process where the trainer is killed, as far as it can: on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def main(arguments: typing.Sequence[str] | None = None) -> None:
    """Judges the candidate in the folder named."""
    (name,) = sys.argv[1:] if arguments is None else arguments
    folder = pathlib.Path(name)
    _end_with_parent()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from serving import logs
    from serving.nearline import candidates
    from tfmm import folder_lock

    order = json.loads((folder / candidates.ORDER).read_text())
    logs.configure(order["log_format"])
    for name in ("absl", "tensorflow"):  # what they say of each export
        logging.getLogger(name).setLevel(logging.WARNING)
    os.nice(_NICE)
    with folder_lock.hold(folder.parent):  # one that a killed trainer left is at work there, perhaps
        if (folder / candidates.RESULT).exists():
            return
        result = judge(folder)
        temporary = folder / f".{candidates.RESULT}"
        temporary.write_text(json.dumps(result))
        temporary.replace(folder / candidates.RESULT)


if __name__ == "__main__":
    main()
