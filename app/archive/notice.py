"""What stays of a part that has expired: a signed notice, for a Postgres that is of an earlier time and only finds files missing."""

from collections.abc import Iterable, Sequence
from typing import Any

import orjson

from app.archive.part_files import MANIFEST_NAME
from app.archive.storage import Storage
from app.events.canonical import loads_strict
from app.export.manifest import STATEMENT_TYPE, open_statement, sign_statement, signer_of
from app.tlog.keys import SigningKey
from app.tlog.note import PublicKey

NOTICE_NAME = "expired.json"
_PREDICATE_TYPE = "https://kubernaut.ai/datastorage/audit-archive-expiry/v1"


def signed_notice(payload: dict[str, Any], log: str, key: SigningKey) -> bytes:
    """What the log's event says of an expiry (`payload`), signed as the part's manifest was; `log` is the name of the part's log."""
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": MANIFEST_NAME, "digest": {"sha256": payload["manifest_sha256"]}}],
        "predicateType": _PREDICATE_TYPE,
        "predicate": payload | {"log": log},
    }
    return sign_statement(orjson.dumps(statement), key)


def read_notices(storage: Storage, names: Iterable[str], keys: Sequence[PublicKey]) -> dict[str, str]:
    """By the digest of a part's manifest, what the signed notices among these files say. Others count for nothing."""
    notices = {}
    for name in names:
        if name.endswith(f"/{NOTICE_NAME}"):
            try:
                statement, signatures = open_statement(loads_strict(storage.read(name)))
                document = loads_strict(statement)
                said = document["predicate"]
                if document["predicateType"] == _PREDICATE_TYPE and signer_of(
                    statement, signatures, said["log"], keys, name
                ):
                    notices[said["manifest_sha256"]] = (
                        f"{name}, signed with the log's key, says that it has expired, by the rules as of {said['cutoff']}"
                    )
            except (ValueError, TypeError, LookupError, FileNotFoundError):
                continue
    return notices
