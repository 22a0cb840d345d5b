"""The file of tokens: a YAML list of names, roles and SHA-256 digests. The tokens themselves are stored nowhere."""

import hashlib
import json
import logging
import os
import secrets
from collections.abc import Callable
from datetime import UTC, date, datetime, time
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import yaml

from app import metrics
from app.auth.identity import ROLES, Identity, identity_with_roles, is_usable_name
from app.errors import Fatal, Usage
from app.watched_file import WatchedFiles

_MEMBERS = {"name", "role", "sha256", "expires"}

log = logging.getLogger(__name__)


class TokenFile:
    """The tokens of the file, reloaded when it changes.

    While a changed file cannot be read, the tokens of the last readable one are valid; the log and a metric report it.
    """

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        try:
            self._identities = WatchedFiles(
                [path], lambda: read_tokens(path), changed=_log_change, failed=partial(_log_failure, path), clock=clock
            )
        except OSError as error:
            raise _unreadable(path, error) from None

    def find(self, digest: bytes) -> Identity | None:
        """The owner of the token with this SHA-256 digest; None if there is none."""
        return self._identities.value().get(digest)


def _log_change(identities: dict[bytes, Identity]) -> None:
    log.info("tokens reloaded", extra={"tokens": len(identities)})


def _log_failure(path: Path, error: Exception) -> None:
    if isinstance(error, OSError):
        error = _unreadable(path, error)
    metrics.AUTH_FAILURES.labels("tokens").inc()
    log.error("the changed tokens cannot be read, so the last ones stay valid", extra={"reason": str(error)})


def _unreadable(path: Path, error: OSError) -> Fatal:
    return Fatal(f"Cannot read the tokens of {path}: {error.strerror}")


def read_tokens(path: Path) -> dict[bytes, Identity]:
    """The identities of the file at `path`, by digest. Fatal names the entry that is not valid, but never shows its content."""
    try:
        entries = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise Fatal(f"Cannot read the tokens of {path}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise Fatal(f"The tokens of {path} are not YAML{where}.") from None
    if not isinstance(entries or [], list):
        raise Fatal(f"The tokens of {path} have to be a YAML list; `datastorage token create` writes its entries.")
    identities: dict[bytes, Identity] = {}
    for number, entry in enumerate(entries or [], 1):
        try:
            digest, identity = _identity(entry)
        except ValueError as error:
            raise Fatal(f"Entry {number} of the tokens of {path}: {error}") from None
        if digest in identities:
            raise Fatal(f"Entry {number} of the tokens of {path}: another entry has the same sha256")
        identities[digest] = identity
    return identities


def _identity(entry: Any) -> tuple[bytes, Identity]:
    if not isinstance(entry, dict) or not _MEMBERS >= set(entry) >= _MEMBERS - {"expires"}:
        raise ValueError("expected a map of name, role and sha256, perhaps with expires")
    if not is_usable_name(entry["name"]):
        raise ValueError("name: expected 1 to 255 printable characters; put it in quotes")
    if entry["role"] not in ROLES:
        raise ValueError(f"role: expected one of {', '.join(ROLES)}")
    digest = entry["sha256"]
    if not isinstance(digest, str) or len(digest) != 64:
        raise ValueError("sha256: expected 64 hexadecimal digits in quotes")
    expires = _unix_time(entry.get("expires"))
    return bytes.fromhex(digest), identity_with_roles(
        entry["name"], frozenset({entry["role"]}), person=False, expires=expires
    )


def _unix_time(value: object) -> float:
    """The Unix time of a YAML date or time. Without a zone it is UTC; a date means its first second."""
    if value is None:
        return inf
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime.combine(value, time())
    if not isinstance(value, datetime):
        raise ValueError("expires: expected a date or a time such as 2027-01-31 or 2027-01-31T12:00:00Z")  # noqa: TRY004 -- as the others
    return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()


def create_token(name: str, role: str, expires: str | None) -> tuple[str, str]:
    """A new token, and its entry for the file: one line of YAML. Fatal when the entry would not be valid."""
    token = "dst_" + secrets.token_urlsafe(32)
    entry = {"name": name, "role": role, "sha256": hashlib.sha256(token.encode()).hexdigest()}
    # Not in quotes: a time in quotes would be text to YAML.
    line = "- " + json.dumps(entry, ensure_ascii=False)[:-1] + (f', "expires": {expires}' if expires else "") + "}\n"
    try:
        [made] = yaml.safe_load(line)
        _identity(made)
    except (ValueError, yaml.YAMLError) as error:
        raise Usage(f"Cannot create this token: {error}") from None
    return token, line


def append_entry(path: Path, line: str) -> None:
    """Append an entry to the file at `path`, which is created if it does not exist. Fatal, with nothing written, if it is not valid."""
    try:
        text = path.read_text("utf-8") if path.exists() else ""
        if text:
            read_tokens(path)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a", encoding="utf-8") as file:
            file.write(line if not text or text.endswith("\n") else "\n" + line)
    except OSError as error:
        raise Fatal(f"Cannot write to {path}: {error.strerror}") from None
