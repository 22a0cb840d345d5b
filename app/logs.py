"""Structured logs: one JSON object per line on standard output. Secrets are never logged."""

import asyncio
import atexit
import logging
import sys
from datetime import UTC, datetime
from typing import Any

import orjson
from starlette.types import Scope

from app import tracing
from app.masking import masked, masked_values

_FLUSH_SECONDS = 0.1
_STANDARD_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """timestamp, level, logger, message, then the members of `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update((key, value) for key, value in vars(record).items() if key not in _STANDARD_ATTRIBUTES)
        if trace_id := tracing.trace_id():
            line["trace_id"] = trace_id
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(masked_values(line), default=_masked_text).decode()


def _masked_text(value: object) -> str:
    return masked(str(value))


class AccessLog:
    """One line for each request. Lines are buffered for 0.1 s: a write for each of them used a fifth of a post's time.

    Those of probes and scrapes, some each second, have the level debug: they would push out of sight what a log has to say.
    """

    def __init__(self, *, enabled: bool, with_probes: bool) -> None:
        self._enabled = enabled
        self._with_probes = with_probes
        self._lines: list[bytes] = []
        atexit.register(self.flush)

    def write(self, scope: Scope, status: int, size: int, seconds: float, *, is_probe: bool) -> None:
        """Add the line of one answered request. Called in the event loop."""
        if not self._enabled or (is_probe and not self._with_probes):
            return
        if not self._lines:
            asyncio.get_running_loop().call_later(_FLUSH_SECONDS, self.flush)
        line = {
            "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "level": "debug" if is_probe else "info",
            "logger": "access",
            "request_id": scope["state"]["request_id"],
            "method": scope["method"],
            "path": scope["path"],
            "remote_addr": (scope.get("client") or ("",))[0],
            "user": scope["state"].get("username", ""),
            "status": status,
            "bytes": size,
            "duration": round(seconds, 6),
        }
        if trace_id := scope["state"].get("trace_id"):
            line["trace_id"] = trace_id
        self._lines.append(orjson.dumps(line))

    def flush(self) -> None:
        """Write the buffered lines."""
        if self._lines:
            self._lines.append(b"")
            lines, self._lines = self._lines, []
            sys.stdout.buffer.write(b"\n".join(lines))
            sys.stdout.buffer.flush()


def configure(level: str) -> None:
    """Write the records of every logger of this process to standard output, as JSON lines."""
    output = logging.StreamHandler(sys.stdout)
    output.setFormatter(JsonLines())
    logging.basicConfig(level=level, handlers=[output], force=True)
    for logger_name in ("uvicorn.error", "uvicorn.access", "alembic", "httpx"):
        logging.getLogger(logger_name).setLevel(max(logging.WARNING, logging.getLevelName(level)))
