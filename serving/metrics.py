"""Prometheus metrics of the serving processes: a registry each, and a port or a page where it is read."""

from __future__ import annotations

import argparse
import contextlib
import logging
import typing

import prometheus_client
from prometheus_client import core

_log = logging.getLogger(__name__)

prometheus_client.disable_created_metrics()  # a second series per counter, which nobody reads


class Collector(typing.Protocol):
    """What gives metrics when a registry is read."""

    def collect(self) -> typing.Iterable[core.Metric]: ...


def registry(*collectors: Collector) -> prometheus_client.CollectorRegistry:
    """Returns a registry that has the process's own metrics (memory, CPU time, open files) and those given."""
    result = prometheus_client.CollectorRegistry()
    prometheus_client.ProcessCollector(registry=result)
    prometheus_client.PlatformCollector(registry=result)
    prometheus_client.GCCollector(registry=result)
    for collector in collectors:
        result.register(collector)
    return result


def page(source: prometheus_client.CollectorRegistry) -> bytes:
    """Returns a registry's metrics in Prometheus' text format."""
    return prometheus_client.generate_latest(source)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds --metrics_port and --metrics_host to a command line; `served` takes their values."""
    parser.add_argument(
        "--metrics_port",
        "--metrics-port",
        type=int,
        default=-1,
        help="port of Prometheus metrics, 0 for any free one, -1 for none (default: -1)",
    )
    parser.add_argument(
        "--metrics_host", "--metrics-host", default="127.0.0.1", help="address to bind for it (default: 127.0.0.1)"
    )


@contextlib.contextmanager
def served(source: prometheus_client.CollectorRegistry, port: int, host: str) -> typing.Iterator[int | None]:
    """Serves a registry at http://host:port/metrics while the block runs; yields the port, None where it is -1.

    Raises:
        OSError: the port is taken, which the message names.
    """
    if port < 0:
        yield None
        return
    try:
        server, thread = prometheus_client.start_http_server(port, host, registry=source)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}: metrics on {host}:{port}") from error
    try:
        _log.info("metrics on %s:%d", host, server.server_port)
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
