"""Sections about processes: requests, versions, the stream, replicas and the near-line trainer, by their metrics."""

from __future__ import annotations

import collections
import time
import typing

from serving.page import cells
from serving.page.counters import Counters, Labels
from serving.page.watching import KEEP_S, Trends, Watch

RATE_S = 10.0  # over which what is per second is taken
_QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
# What a server answers for reasons of its own; the others are of what it was asked.
_SERVERS_FAULT = ("INTERNAL", "UNKNOWN", "UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "DATA_LOSS")
_VERSION_LEVELS = {"AVAILABLE": cells.OK, "END": None}
Section = dict[str, typing.Any]
Pages = typing.Sequence[Watch[Counters]]


def _answering(pages: Pages) -> typing.Iterator[tuple[str, Counters]]:
    for page in pages:
        if page.value is not None and not page.is_silent:
            yield page.shown, page.value


def _notes(pages: Pages, *kinds: str) -> list[cells.Cell]:
    return [note for page in pages if page.kind in kinds for note in page.notes]


def _of(labels: Labels, *names: str) -> list[str]:
    found = dict(labels)
    return [found.get(name, "") for name in names]


def _percentiles(found: typing.Sequence[float | None]) -> dict[str, cells.Cell]:
    return {name: cells.duration(value) for name, value in zip(_QUANTILES, found)}


def _percentile_titles(what: str) -> dict[str, str]:
    return {name: f"{what} {name}" for name in _QUANTILES}


def requests(pages: Pages, trends: Trends) -> Section:
    """Requests by model and signature, and what was answered otherwise than OK."""
    rows, statuses, queues = [], [], []
    for name, page in _answering(pages):
        latency = "tfmm_request_latency_seconds"
        found = page.quantiles(latency, list(_QUANTILES.values()), KEEP_S)
        rates = page.rates(f"{latency}_count", RATE_S)
        for labels in sorted(page.now(f"{latency}_count")):
            model, signature = _of(labels, "model_name", "signature")
            own = {"server": cells.cell(name), "model": cells.cell(model), "signature": cells.cell(signature)}
            trend = trends.add(("requests", name, labels), rates.get(labels))
            told = _percentiles(found.get(labels, [None] * 3))
            rows.append({**own, "rate": cells.rate(rates.get(labels)), **told, "trend": trend})
        counted = ":tensorflow:serving:request_count"
        grown = page.grown(counted, KEEP_S)
        for labels, total in sorted(page.now(counted).items()):
            model, status = _of(labels, "model_name", "status")
            if status != "OK":
                level = cells.WARN if status in _SERVERS_FAULT and grown[labels] else None
                told = {"recent": cells.count(grown[labels], level), "total": cells.count(total)}
                told |= {"status": cells.cell(status), "model": cells.cell(model or "unknown")}
                statuses.append({"server": cells.cell(name), **told})
        if waiting := page.now("tfmm_requests_waiting"):
            running = page.now("tfmm_requests_running").values()
            queues.append({
                "server": cells.cell(name), "waiting": cells.count(sum(waiting.values())),
                "running": cells.count(sum(running)),
            })  # fmt: skip
    columns = {"server": "server", "model": "model", "signature": "signature", "rate": "requests",
               **_percentile_titles("latency"), "trend": "10 minutes"}  # fmt: skip
    refused = {"status": "status", "server": "server", "model": "model", "recent": "last minute", "total": "all"}
    queue = {"server": "server", "waiting": "waiting", "running": "running"}
    return cells.section("requests", "Requests", [
        cells.table("Answered OK, percentiles of the last minute", columns, rows),
        cells.table("Answered otherwise", refused, statuses),
        cells.table("Queue", queue, queues),
    ], _notes(pages, "server"))  # fmt: skip


def versions(pages: Pages) -> Section:
    """Versions in service, their labels, and how full their tables are."""
    rows, tables = [], []
    for name, page in _answering(pages):
        labelled = collections.defaultdict(list)
        for labels, named in page.now("tfmm_model_label").items():
            model, label = _of(labels, "model_name", "label")
            labelled[model, f"{named:.0f}"].append(label)
        for labels, value in sorted(page.now("tfmm_model_version_state").items()):
            model, version, state = _of(labels, "model_name", "version", "state")
            if value:
                own = ", ".join(sorted(labelled[model, version]))
                rows.append({
                    "version": cells.cell(version), "model": cells.cell(model), "server": cells.cell(name),
                    "state": cells.cell(state, level=_VERSION_LEVELS.get(state, cells.WARN)),
                    "labels": cells.cell(own or None),
                })  # fmt: skip
        capacity = page.now("tfmm_index_capacity")
        for labels, items in sorted(page.now("tfmm_index_items").items()):
            version, modality, encoder = _of(labels, "version", "modality", "encoder_version")
            room = capacity.get(labels)
            filled = items / room if room else None
            level = None if filled is None else cells.BAD if filled >= 1 else cells.WARN if filled > 0.9 else cells.OK
            tables.append({
                "modality": cells.cell(modality), "encoder": cells.cell(encoder), "version": cells.cell(version),
                "server": cells.cell(name), "items": cells.count(items), "filled": cells.share(filled, level),
            })  # fmt: skip
    columns = {"version": "version", "model": "model", "server": "server", "state": "state", "labels": "labels"}
    of_tables = {"modality": "modality", "encoder": "encoder", "version": "version", "server": "server",
                 "items": "items", "filled": "of its room"}  # fmt: skip
    return cells.section("versions", "Versions and labels", [
        cells.table("Versions", columns, rows), cells.table("Their tables of the item index", of_tables, tables),
    ], _notes(pages, "server"))  # fmt: skip


def stream(pages: Pages, trends: Trends) -> Section:
    """Events, their delay to the index, and dead letters by reason."""
    rows, letters = [], []
    for _, page in _answering(pages):
        rates = page.rates("tfmm_stream_events_total", RATE_S)
        delays = page.quantiles("tfmm_stream_delay_seconds", list(_QUANTILES.values()), KEEP_S)
        items, withdrawn = page.now("tfmm_stream_items_total"), page.now("tfmm_stream_withdrawn_total")
        newest = page.now("tfmm_stream_watermark_seconds")
        for labels, total in sorted(page.now("tfmm_stream_events_total").items()):
            age = time.time() - newest[labels] if labels in newest else None
            rows.append({
                "source": cells.cell(*_of(labels, "source")), "rate": cells.rate(rates.get(labels)),
                **_percentiles(delays.get(labels, [None] * 3)), "age": cells.duration(age),
                "events": cells.count(total), "items": cells.count(items.get(labels)),
                "withdrawn": cells.count(withdrawn.get(labels)),
                "trend": trends.add(("stream", labels), rates.get(labels)),
            })  # fmt: skip
        dead = "tfmm_stream_dead_letters_total"
        grown = page.grown(dead, KEEP_S)
        for labels, total in sorted(page.now(dead).items()):
            source, reason = _of(labels, "source", "reason")
            level = cells.WARN if grown[labels] else None
            own = {"reason": cells.cell(reason), "source": cells.cell(source)}
            letters.append({**own, "recent": cells.count(grown[labels], level), "total": cells.count(total)})
    columns = {"source": "source", "rate": "events", **_percentile_titles("delay"), "age": "newest event",
               "events": "all", "items": "items", "withdrawn": "withdrawn", "trend": "10 minutes"}  # fmt: skip
    reasons = {"reason": "reason", "source": "source", "recent": "last minute", "total": "all"}
    return cells.section("stream", "New items: the stream", [
        cells.table("Events, and their delay from their own time to the index", columns, rows),
        cells.table("Dead letters of the stream, by reason", reasons, letters),
    ], _notes(pages, "stream"))  # fmt: skip


def replicas(pages: Pages) -> Section:
    """How far each table of each loaded version is behind the index."""
    rows = []
    for _, page in _answering(pages):
        following, reached = page.now("tfmm_replica_following"), page.now("tfmm_replica_reached")
        for labels, behind in sorted(page.now("tfmm_replica_lag_rows").items()):
            target, model, version, modality = _of(labels, "target", "model_name", "version", "modality")
            is_written = bool(following.get(labels))
            level = cells.BAD if not is_written else cells.WARN if behind else cells.OK
            state = "does not follow" if not is_written else "behind" if behind else "up to date"
            rows.append({
                "target": cells.cell(target), "model": cells.cell(model), "version": cells.cell(version),
                "modality": cells.cell(modality), "lag": cells.count(behind), "state": cells.cell(state, level=level),
            })  # fmt: skip
        for labels, value in sorted(reached.items()):
            target, model = _of(labels, "target", "model_name")
            if not value:
                gone = cells.cell("not reached", level=cells.BAD)
                rows.append({"target": cells.cell(target), "model": cells.cell(model), "state": gone})
    columns = {"target": "server", "model": "model", "version": "version", "modality": "modality",
               "lag": "changes behind", "state": "state"}  # fmt: skip
    shown = cells.table("Changes of the item index that each table does not have yet", columns, rows)
    return cells.section("replicas", "Replicas", [shown], _notes(pages, "replicator"))


def trainer(pages: Pages, trends: Trends) -> Section:
    """What the near-line trainer does, and its newest slice that was judged."""
    facts: list[dict[str, cells.Cell]] = []
    slices: list[dict[str, cells.Cell]] = []
    for name, page in _answering(pages):
        if not page.now("tfmm_nearline_rows_total"):
            continue
        (rows,) = page.now("tfmm_nearline_rows_total").values()
        rates = list(page.rates("tfmm_nearline_rows_total", KEEP_S).values())
        per_s = rates[0] if rates else None
        watermark = next(iter(page.now("tfmm_nearline_watermark_seconds").values()), 0.0)
        outcomes = {dict(labels)["outcome"]: n for labels, n in page.now("tfmm_nearline_candidates_total").items()}
        told = {"trainer": cells.cell(name), "rate": cells.rate(per_s), "rows": cells.count(rows)}
        for column, metric in (("trained", "trained_delay"), ("served", "served_delay")):
            found = page.quantiles(f"tfmm_nearline_{metric}_seconds", [0.5])
            told[column] = cells.duration(next(iter(found.values()), [None])[0])
        waiting = next(iter(page.now("tfmm_nearline_waiting_requests").values()), None)
        facts.append({
            **told, "waiting": cells.count(waiting),
            "watermark": cells.duration(time.time() - watermark if watermark else None),
            "pushed": cells.count(outcomes.get("pushed", 0.0)), "refused": cells.count(outcomes.get("refused", 0.0)),
            "trend": trends.add(("trainer", name), per_s),
        })  # fmt: skip
        slices += _newest_slice(page)
    columns = {"trainer": "trainer", "rate": "rows", "rows": "since its start", "trained": "impression to weights, p50",
               "served": "impression to service, p50", "waiting": "requests that wait", "watermark": "logs read up to",
               "pushed": "candidates pushed", "refused": "refused", "trend": "10 minutes"}  # fmt: skip
    judged = {"model": "model", "slice": "slice", "rows": "rows", "judged": "judged at", "verdict": "verdict",
              "auc": "AUC", "gauc": "GAUC", "logloss": "LogLoss", "calibration": "predicted / observed"}  # fmt: skip
    return cells.section("trainer", "Near-line trainer", [
        cells.table("Training", columns, facts),
        cells.table("The newest slice that was judged, by rows that the model was not trained on", judged, slices),
    ], _notes(pages, "trainer"))  # fmt: skip


def _newest_slice(page: Counters) -> typing.Iterator[dict[str, cells.Cell]]:
    def one(name: str) -> float | None:
        return next(iter(page.now(f"tfmm_nearline_slice{name}").values()), None)

    number, passed = one(""), one("_passed")
    if not number:
        return
    by_model: dict[str, dict[str, float]] = collections.defaultdict(dict)
    for labels, value in page.now("tfmm_nearline_slice_metric").items():
        model, metric = _of(labels, "model", "metric")
        by_model[model][metric] = value
    verdict = cells.cell("pushed", level=cells.OK) if passed else cells.cell("refused", level=cells.WARN)
    for model, metrics in sorted(by_model.items(), reverse=True) or [("", {})]:
        yield {
            "model": cells.cell(model or None), "slice": cells.count(number), "rows": cells.count(one("_rows")),
            "judged": cells.moment(one("_judged_seconds") or None), "verdict": verdict,
            **{name: cells.number(value) for name, value in metrics.items()},
        }  # fmt: skip
