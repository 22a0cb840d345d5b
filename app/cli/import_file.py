"""The import of one file: its events go to a service's import route, in portions.

A file is ndjson with one event a line, as they are posted, or an export of this service (ndjson or csv). Beside each file two
others are written: `FILE.import.json`, how far the import has come, so that it continues there when it is called again, and
`FILE.refused.ndjson`, for each event that was refused the number of its record and why. The service recognises events that it has
stored already, so nothing is stored twice even if the first of these files is lost.
"""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from app.errors import AuditError, Fatal
from app.events.canonical import canonical, parse
from app.export.file import MalformedRecord, RecordReader

PATH = "/api/v1/audit/import"
_TIMEOUT_SECONDS = 60.0
_PAUSES_SECONDS = (0.5, 1, 2, 4, 8, 15, 30, 30, 30)
_PORTION_BYTES_MAX = 4 * 1024 * 1024
_NOT_READABLE = frozenset({400, 413, 422})  # of a portion as a whole: one of its events is the cause
_MEMBERS = (
    *("event_id", "event_timestamp", "event_type", "event_category", "event_action", "event_outcome", "correlation_id"),
    *(
        "actor_type",
        "actor_id",
        "actor_ip",
        "resource_type",
        "resource_id",
        "parent_event_id",
        "namespace",
        "cluster_id",
    ),
    *("duration_ms", "error_code", "error_message", "retention_days", "is_sensitive", "event_data"),
)
"""Members of an exported event that a posted one has under the same name."""

Record = tuple[int, bytes]
"""Its number in the file, from 1, and the event in canonical form."""


@dataclass
class Progress:
    """How far the import of one file has come; stored beside it after each portion."""

    import_id: str
    records: int = 0
    """Read, and either stored or refused."""
    stored: int = 0
    refused: int = 0
    file: str = ""
    """Size and time of change of the file: another one under its name is imported from the beginning."""


class FileImport:
    """The import of one file."""

    def __init__(self, client: httpx.Client, file: Path) -> None:
        self._client = client
        self._file = file
        self._state = file.with_name(file.name + ".import.json")
        self._report = file.with_name(file.name + ".refused.ndjson")
        status = file.stat()
        self._progress = Progress(str(uuid4()), file=f"{status.st_size} {status.st_mtime_ns}")
        with suppress(FileNotFoundError):
            earlier = Progress(**json.loads(self._state.read_text()))
            if earlier.file == self._progress.file:
                self._progress = earlier
            else:
                self._state.unlink()

    def run(self, portion_max: int) -> int:
        """Send what is not sent yet. Returns how many events were refused."""
        if not self._state.exists():
            self._report.unlink(missing_ok=True)
        portion: list[Record] = []
        size = 0
        for number, event in self._records():
            if number <= self._progress.records:
                continue
            if isinstance(event, str):
                self._refuse(number, {"detail": event})
                continue
            portion.append((number, event))
            size += len(event)
            if len(portion) >= portion_max or size >= _PORTION_BYTES_MAX:
                self._send_and_store(portion)
                portion, size = [], 0
        if portion:
            self._send_and_store(portion)
        self._state.unlink(missing_ok=True)
        progress = self._progress
        where = f" ({self._report})" if progress.refused else ""
        sys.stdout.write(f"{self._file}: {progress.stored} events stored, {progress.refused} refused{where}\n")
        return progress.refused

    def _records(self) -> Iterator[tuple[int, bytes | str]]:
        """The number of each record that should be an event, and the event, or why it cannot be sent."""
        with self._file.open("rb") as opened:
            reader = RecordReader(opened)
            for number, record in enumerate(reader, 1):
                if record.strip() and not reader.is_manifest(record) and not reader.is_header(record):
                    yield number, _event(reader, record)

    def _send_and_store(self, portion: list[Record]) -> None:
        self._send(portion)
        self._progress.records = portion[-1][0]
        self._store_progress()
        if sys.stderr.isatty():
            sys.stderr.write(f"{self._file}: {self._progress.stored} stored, {self._progress.refused} refused\r")

    def _send(self, portion: list[Record]) -> None:
        """Send events. What the service cannot read as a whole is halved, until the event that is the cause is alone."""
        answer = self._post(b"[" + b",".join(event for _, event in portion) + b"]")
        if answer.status_code == 207:
            for (number, _), verdict in zip(portion, answer.json()["items"], strict=True):
                if verdict["status"] == 201:
                    self._progress.stored += 1
                else:
                    self._refuse(number, {name: value for name, value in verdict.items() if name != "index"})
        elif answer.status_code not in _NOT_READABLE:
            raise Fatal(f"{self._file}: the service answered {answer.status_code}: {answer.text[:200].strip()}")
        elif len(portion) == 1:
            self._refuse(portion[0][0], {"detail": answer.text[:1000].strip()})
        else:
            middle = len(portion) // 2
            self._send(portion[:middle])
            self._send(portion[middle:])

    def _post(self, body: bytes) -> httpx.Response:
        """The answer of the service. Fatal when it cannot take the events for minutes."""
        headers = {"Content-Type": "application/json", "Import-Id": self._progress.import_id}
        problem = ""
        for pause in (*_PAUSES_SECONDS, 0.0):
            try:
                answer = self._client.post(PATH, content=body, headers=headers, timeout=_TIMEOUT_SECONDS)
            except httpx.TransportError as error:
                problem = str(error) or type(error).__name__
            else:
                if answer.status_code < 500 and answer.status_code != 429:
                    return answer
                problem = f"it answered {answer.status_code}"
            time.sleep(pause)
        raise Fatal(f"{self._file}: the service cannot take events ({problem}); call again to continue.")

    def _refuse(self, number: int, reasons: dict[str, Any]) -> None:
        with self._report.open("a") as report:
            report.write(json.dumps({"record": number} | reasons) + "\n")
        self._progress.refused += 1

    def _store_progress(self) -> None:
        new = self._state.with_name(self._state.name + ".new")
        new.write_text(json.dumps(asdict(self._progress)))
        new.replace(self._state)


def _event(reader: RecordReader, record: bytes) -> bytes | str:
    """The event of a record as it is posted, in canonical form, or why it cannot be sent."""
    try:
        if reader.form == "csv":
            return _posted(reader.event(record))
        document = parse(record.strip())
        value = document.value
        if isinstance(value, dict) and "log_index" in value and "event_version" in value:
            return _posted(reader.event(record))
        return canonical(value, plain=document.plain)
    except (MalformedRecord, AuditError) as error:
        return str(error)


def _posted(exported: dict[str, Any]) -> bytes | str:
    """An exported event as it would be posted."""
    if exported["redacted"]:
        return "redacted: an event of which members are masked is not imported"
    item = {name: exported[name] for name in _MEMBERS if exported[name] is not None}
    item |= {"version": exported["event_version"], "severity": exported["severity"]}
    if exported["parent_event_date"] is not None:
        item["parent_event_date"] = f"{exported['parent_event_date']}T00:00:00Z"
    return canonical(item)
