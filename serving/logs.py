"""Logs of the serving processes: one line per event with its time and level, or one object of JSON."""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import sys

FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")


class _JSON(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.datetime.fromtimestamp(record.created, datetime.timezone.utc)
        event = {
            "time": moment.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            event["traceback"] = self.formatException(record.exc_info)
        return json.dumps(event, ensure_ascii=False)


def configure(log_format: str = "text", level: str = "info") -> None:
    """Sends all logs of this process to standard error.

    Args:
        log_format: "text" or "json".
        level: the least level that is written: "debug", "info", "warning" or "error".
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _JSON() if log_format == "json" else logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s")
    )
    logging.getLogger("tensorflow").handlers.clear()  # its own writes every line once more
    logging.basicConfig(level=level.upper(), handlers=[handler])


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds --log_format and --log_level to a command line; `configure` takes their values."""
    parser.add_argument(
        "--log_format", "--log-format", choices=FORMATS, default="text", help="lines of text or of JSON (default: text)"
    )
    parser.add_argument(
        "--log_level", "--log-level", choices=LEVELS, default="info", help="the least that is written (default: info)"
    )
