"""Structured logs: one JSON object a line, a fixed sentence plus fields.

    configure("kars-router")
    logging.getLogger(__name__).info("bundle in force", extra={"version": 7})

Fields come from `extra`. Bodies, prompts and credentials do not belong there; nothing here looks for
them. `audit` is the record that counts, this is for the people who run the service.
"""

import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

import orjson

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_RESERVED = frozenset({"time", "level", "logger", "message", "service", "exception"})
_MAX_FIELD_CHARS = 4096


class JsonFormatter(logging.Formatter):
    """Renders a record as one line of JSON."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its line end."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name, value in vars(record).items():
            if name not in _STANDARD:
                line[f"{name}_" if name in _RESERVED else name] = value
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        try:
            return orjson.dumps(line, default=_text, option=orjson.OPT_NON_STR_KEYS).decode()
        except orjson.JSONEncodeError:
            # Lone surrogates, huge numbers, odd keys: a strange value must not cost the whole line.
            return json.dumps({name: _text(value) for name, value in line.items()})


def configure(service: str, level: str = "INFO", stream: TextIO | None = None) -> None:
    """Send every log of this process to `stream` (stderr) as JSON lines; call once, from main.

    Args:
        service: value of the field `service`.
        level: lowest level that is written; a name such as `DEBUG`.
        stream: where to write; None for stderr.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(service))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # gRPC's C core writes text of its own to stderr unless it is told otherwise before its first use.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def _text(value: object) -> str:
    return str(value)[:_MAX_FIELD_CHARS]
