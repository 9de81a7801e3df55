"""`python -m serving.streaming`: embeds new items as their events arrive, until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import typing

from serving import logs, metrics


def main(arguments: typing.Sequence[str] | None = None) -> None:
    """Runs the job; options that it does not know go to Beam."""
    parser = argparse.ArgumentParser(
        prog="python -m serving.streaming",
        description=__doc__,
        epilog="Example: python -m serving.streaming --events run/events.sqlite --index run/items.sqlite "
        "--encoders run/encoders. Further options go to Beam, as do those of TFMM_BEAM.",
    )
    parser.add_argument(
        "--events",
        required=True,
        help="source of events: a path (a SQLite log, made where missing), kafka://host:port/topic, "
        "redis://host:port/0?stream=key, folder:///path, or your URL",
    )
    parser.add_argument("--index", required=True, help="item index, a path or a URL; made where missing")
    parser.add_argument(
        "--encoders",
        action="append",
        help="folder with one encoder per modality, as pre-training wrote them; not needed where items bring vectors; "
        "repeat it to write the rows of two encoders of a modality side by side",
    )
    parser.add_argument("--ready-file", help="JSON file written when the job polls")
    parser.add_argument("--poll-ms", type=float, default=5.0, help="between looks at an idle log (default: 5)")
    parser.add_argument(
        "--bundle-ms",
        type=float,
        help="until a bundle ends, for which checkpoints wait (default: 60000 in this process, 100 elsewhere)",
    )
    parser.add_argument("--dead-letters", help="source of events that gets dead letters too, such as a topic")
    parser.add_argument(
        "--readers",
        type=int,
        help="that share a source's partitions (default: the engine's --parallelism; in this process one)",
    )
    metrics.add_options(parser)
    logs.add_options(parser)
    options, pipeline_args = parser.parse_known_args(arguments)

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logs.configure(options.log_format, options.log_level)
    logging.getLogger("apache_beam").setLevel(logging.WARNING)
    from serving.streaming import metrics as stream_metrics
    from serving.streaming import pipeline

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: pipeline.stop_requested.set())
    with metrics.served(stream_metrics.REGISTRY, options.metrics_port, options.metrics_host):
        pipeline.run(
            options.events,
            options.encoders,
            options.index,
            options.ready_file,
            options.poll_ms / 1000,
            None if options.bundle_ms is None else options.bundle_ms / 1000,
            pipeline_args,
            options.readers,
            options.dead_letters,
        )
    logging.info("stopped")


if __name__ == "__main__":
    main()
