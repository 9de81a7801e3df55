"""The running system: the server, the stream, one predict by each protocol, and a new item that is scored at once."""

from __future__ import annotations

import contextlib
import pathlib
import time
import typing

import numpy as np

from tfmm.data import as_known, declared, schema
from tfmm.index import snapshot as snapshot_lib
from tfmm.quickstart import processes, requests, stage_lines

NEW_ITEM_TIMEOUT_S = 30.0
PREDICTS = 20  # timed calls per protocol; the median is told
CANDIDATES = 50


def serve_and_stream(
    environment: typing.Any, outputs: typing.Mapping[str, str], lines: stage_lines.StageLines
) -> dict[str, float]:
    """Serves the newest version, scores by gRPC and REST, and streams a new item until it is scored.

    Args:
        environment: `tfx_pipeline.environments.Environment` of the run.
        outputs: the DAG's artifacts, by `Node.output`.
        lines: where the steps are shown.
    Returns:
        grpc_predict_ms, rest_predict_ms: medians over some calls with one user and 50 candidates;
        new_item_delay_s: from the event to the first score that uses the new item's embedding.
    Raises:
        ChildProcessError: the server or the stream ended.
        FileNotFoundError: the encoders of the version in service are not there.
        TimeoutError: the new item was not scored with its embedding in time.
    """
    from serving import client as client_lib
    from serving import replicator
    from tfx_pipeline.environments import MODEL_NAME

    logs, events_path = environment.workdir / "logs", environment.workdir / "index" / "events.sqlite"
    data = environment.data_dir or pathlib.Path(outputs["Marketplace.dataset"])
    snapshot_dir = outputs["CatalogEmbedder.snapshot"]
    if not environment.encoders_dir.is_dir():
        raise FileNotFoundError(
            f"{environment.encoders_dir} must lead to the encoders of the version in service. Received: none that the "
            "runs in this workdir made. Run in another --workdir."
        )
    lines.start("Start server and stream")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(
            processes.Child(
                "The model server",
                [
                    "serving.model_server",
                    f"--model_name={MODEL_NAME}",
                    f"--model_base_path={environment.serving_dir}",
                    "--port=0",
                    "--rest_api_port=0",
                    f"--ready_file={logs / 'server.json'}",
                ],
                logs / "server.log",
                ready_file=logs / "server.json",
            )
        )
        stream = stack.enter_context(
            processes.Child(
                "The streaming job",
                [
                    "serving.streaming",
                    "--runner=FnApiRunner",  # whatever TFMM_BEAM says
                    "--events",
                    str(events_path),
                    "--index",
                    environment.index_url,
                    "--encoders",
                    str(environment.encoders_dir),
                    "--ready-file",
                    str(logs / "stream.json"),
                ],
                logs / "stream.log",
                ready_file=logs / "stream.json",
            )
        )
        ports = server.wait_ready()
        follower = stack.enter_context(
            replicator.Replicator(environment.index_url, [f"127.0.0.1:{ports['grpc_port']}"], MODEL_NAME)
        )
        stream.wait_ready()
        follower.wait_caught_up(60.0)
        lines.finish("Start server and stream")

        client = stack.enter_context(
            client_lib.RankingClient(
                f"127.0.0.1:{ports['grpc_port']}", f"http://127.0.0.1:{ports['rest_port']}", MODEL_NAME
            )
        )
        try:
            grpc_ms, rest_ms, delay_s = _score(environment, data, events_path, client, snapshot_dir, lines)
        except client_lib.PredictError as error:
            raise ChildProcessError(
                f"The model server refused a request: {error}. See {logs / 'server.log'}."
            ) from error
    return {
        "grpc_predict_ms": round(grpc_ms, 2),
        "rest_predict_ms": round(rest_ms, 2),
        "new_item_delay_s": round(delay_s, 3),
    }


def manifest_in_service(environment: typing.Any) -> dict[str, typing.Any]:
    """Returns what the export says that is in service: after a refusal it is not the newest."""
    from tfmm.export import saved_model
    from tfx_pipeline.environments import newest_version

    version = newest_version(environment.serving_dir)
    if version is None:
        raise FileNotFoundError(f"{environment.serving_dir} must hold a version. Received: none.")
    return saved_model.read_manifest(version)


def looked_up(environment: typing.Any) -> list[str]:
    """Returns the item features that the version in service knows by item id."""
    return (manifest_in_service(environment).get("item_features") or {"names": []})["names"]


def _score(
    environment: typing.Any,
    data: pathlib.Path,
    events_path: pathlib.Path,
    client: typing.Any,
    snapshot_dir: str,
    lines: stage_lines.StageLines,
) -> tuple[float, float, float]:
    """Returns the milliseconds by gRPC and by REST, and the seconds until a new item was scored."""
    from serving.streaming import event_log

    lines.start("Predict by gRPC and REST")
    feature_set = environment.config.feature_set
    time_zone = environment.config.data.time_zone
    user = requests.busiest_user(data, feature_set, time_zone)
    candidates = requests.first_items(data, feature_set, CANDIDATES, time_zone)
    grpc_ms, grpc_scores = _median_ms(lambda: client.rank(user, candidates))
    rest_ms, rest_scores = _median_ms(lambda: client.rank_rest(user, candidates))
    difference = float(np.max(np.abs(grpc_scores - rest_scores)))
    if difference > 1e-5:
        raise ChildProcessError(f"gRPC and REST must give one score to 1e-5. Received: a difference of {difference}.")
    lines.finish("Predict by gRPC and REST", f"{grpc_ms:.1f} ms, {rest_ms:.1f} ms")

    lines.start("Score a new item")
    with event_log.SQLiteEventLog(events_path) as log:
        delay_s = _score_new_item(environment, data, log, client, user, snapshot_dir)
    lines.finish("Score a new item", f"{delay_s:.2f} s after its event")
    return grpc_ms, rest_ms, delay_s


def _median_ms(call: typing.Callable[[], typing.Any]) -> tuple[float, typing.Any]:
    result = call()
    times = []
    for _ in range(PREDICTS):
        started = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - started)
    return 1e3 * float(np.median(times)), result


def _score_new_item(
    environment: typing.Any,
    data: pathlib.Path,
    log: typing.Any,
    client: typing.Any,
    user: typing.Mapping[str, typing.Any],
    snapshot_dir: str,
) -> float:
    """Sends a new item's event and asks for its score until the score shows its embedding; returns the seconds."""
    from serving.streaming import events

    feature_set = environment.config.feature_set
    item, contents = new_item(environment, data, snapshot_dir, number=log.append([]))
    candidate = requests.candidates_of(feature_set, [item])
    features = {feature.column: candidate[feature.name][0] for feature in feature_set.stored}
    before = float(client.rank(user, candidate)[0])  # masked: the index does not know the item
    sent = time.monotonic()
    log.append([events.make_event(item["item_id"], contents=contents, features=features)])
    while time.monotonic() - sent < NEW_ITEM_TIMEOUT_S:
        if float(client.rank(user, candidate)[0]) != before:
            delay_s = time.monotonic() - sent
            _wait_complete(client, user, candidate, looked_up(environment))
            return delay_s
        time.sleep(0.01)
    raise TimeoutError(
        f"The new item {item['item_id']} was not scored with its embedding within "
        f"{NEW_ITEM_TIMEOUT_S:.0f} s. See {environment.workdir / 'logs'} and the dead letters of "
        f"{environment.index_url}."
    )


def _wait_complete(
    client: typing.Any,
    user: typing.Mapping[str, typing.Any],
    candidate: typing.Mapping[str, typing.Any],
    stored: typing.Sequence[str],
) -> None:
    """Waits until the item's id alone is scored as all that is known of it."""
    alone = {name: values for name, values in candidate.items() if name not in stored}
    deadline = time.monotonic() + NEW_ITEM_TIMEOUT_S
    while float(client.rank(user, candidate)[0]) != float(client.rank(user, alone)[0]):
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"The id of the new item {candidate['item_id'][0]} was not scored as its features within "
                f"{NEW_ITEM_TIMEOUT_S:.0f} s: the index did not pass them on."
            )
        time.sleep(0.01)


def new_item(
    environment: typing.Any, data: pathlib.Path, snapshot_dir: str, number: int
) -> tuple[dict[str, typing.Any], dict[str, typing.Any]]:
    """Returns an item that the catalog does not hold, by column, and its contents by modality.

    The marketplace draws one; of data of one's own, an item's content comes again under a new id.

    Args:
        environment: of the run.
        data: the tables.
        snapshot_dir: the index snapshot, which says what can be embedded.
        number: how many new items came before.
    """
    modality_set = environment.config.modality_set
    if environment.data_dir is None:
        from tfmm.marketplace import generator

        item = generator.draw_new_item(environment.config.marketplace, number, time.time_ns() // 1000)
        return item, {m: item.get(modality_set[m].content) for m in snapshot_lib.load_snapshot(snapshot_dir).modalities}
    config = environment.config
    tables = declared.tables(config.feature_set, modality_set)
    items = as_known.read_table(data, "items", config.data.time_zone, tables=tables)
    snapshot = snapshot_lib.load_snapshot(snapshot_dir)
    held = np.mean(
        [np.isin(schema.fingerprints(items["item_id"]), snapshot[m].ids) for m in snapshot.modalities], axis=0
    )
    embedded = np.flatnonzero(held == held.max())  # content that the encoders take
    row = items.slice(int(embedded[number % len(embedded)]), 1).to_pylist()[0]
    ids = items["item_id"].to_pylist()
    item_id = f"new-item-{number}" if isinstance(ids[0], str) else max(ids) + 1 + number
    contents = {m: row.get(modality_set[m].content) for m in schema.modalities(data, modality_set)}
    return {**row, "item_id": item_id}, contents
