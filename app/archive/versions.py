"""What a bucket with versions still has of files that were deleted: pyarrow neither lists nor deletes them.

Requests are signed as AWS Signature Version 4 says, with the credentials of the settings. Without these nothing is looked at.
"""

import hashlib
import hmac
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import NamedTuple
from urllib.parse import quote, urlsplit
from xml.etree import ElementTree as ET

from app.archive.storage import Storage

_SECONDS = 30.0
_EMPTY = hashlib.sha256(b"").hexdigest()
_HAS_NO_VERSIONS = {405, 501}


class FilesStay(OSError):
    """The store does not delete a version, for example since it is locked."""


class _Version(NamedTuple):
    key: str
    version_id: str


def delete_versions(storage: Storage, folders: Sequence[str], is_wanted: Callable[[str], bool]) -> None:
    """Delete all versions of the files of folders whose names are wanted. FilesStay, after all that can be deleted, if some cannot."""
    if "access_key" not in storage.options:
        return
    bucket, _, base = storage.path().partition("/")
    start = f"{base}/" if base else ""
    client = _Client(storage, bucket)
    refused = [
        f"{version.key}: {answer}"
        for folder in folders
        for version in list(client.versions(f"{start}{folder}/"))
        if is_wanted(version.key.removeprefix(start)) and (answer := client.delete(version)) is not None
    ]
    if refused:
        raise FilesStay(f"the bucket keeps {len(refused)} version(s), first {refused[0]}")


class _Client:
    def __init__(self, storage: Storage, bucket: str) -> None:
        self._access_key = storage.options["access_key"]
        self._secret_key = storage.options["secret_key"]
        self._region = storage.options["region"]
        endpoint = storage.options.get("endpoint_override") or f"s3.{self._region}.amazonaws.com"
        self._endpoint = urlsplit(endpoint if "://" in endpoint else f"https://{endpoint}")
        self._path = f"/{bucket}"

    def versions(self, prefix: str) -> Iterator[_Version]:
        """The versions of all keys with a prefix, and what marks that a key was deleted."""
        query = {"versions": "", "prefix": prefix}
        while True:
            status, body = self._request("GET", self._path, query)
            if status in _HAS_NO_VERSIONS:
                return
            if status != 200:
                raise FilesStay(f"the bucket does not list its versions: {_said(status, body)}")
            page = ET.fromstring(body)  # noqa: S314 -- expat bounds what entities expand to, and the store has the archive anyway
            for one in page:
                if one.tag.rpartition("}")[2] in {"Version", "DeleteMarker"}:
                    yield _Version(_text(one, "Key"), _text(one, "VersionId"))
            if _text(page, "IsTruncated") != "true":
                return
            query |= {"key-marker": _text(page, "NextKeyMarker")}
            query |= {"version-id-marker": _text(page, "NextVersionIdMarker")}

    def delete(self, version: _Version) -> str | None:
        """Delete a version; what the store says if it does not."""
        path = f"{self._path}/{quote(version.key, safe='/-_.~')}"
        status, body = self._request("DELETE", path, {"versionId": version.version_id})
        return None if status in {200, 204, 404} else _said(status, body)

    def _request(self, method: str, path: str, query: dict[str, str]) -> tuple[int, bytes]:
        of_query = "&".join(f"{quote(name, safe='-_.~')}={quote(query[name], safe='-_.~')}" for name in sorted(query))
        kind = HTTPConnection if self._endpoint.scheme == "http" else HTTPSConnection
        with closing(kind(self._endpoint.netloc, timeout=_SECONDS)) as connection:
            try:
                connection.request(method, f"{path}?{of_query}", headers=self._signed(method, path, of_query))
                response = connection.getresponse()
                return response.status, response.read()
            except HTTPException as error:
                raise OSError(f"the bucket's versions cannot be had: {error!r}") from error

    def _signed(self, method: str, path: str, query: str) -> dict[str, str]:
        now = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
        headers = {"host": self._endpoint.netloc, "x-amz-content-sha256": _EMPTY, "x-amz-date": now}
        names = ";".join(headers)
        lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
        canonical = f"{method}\n{path}\n{query}\n{lines}\n{names}\n{_EMPTY}"
        scope = f"{now[:8]}/{self._region}/s3/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        key = f"AWS4{self._secret_key}".encode()
        for part in scope.split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        signature = hmac.digest(key, text.encode(), "sha256").hex()
        credential = f"Credential={self._access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
        return headers | {"authorization": f"AWS4-HMAC-SHA256 {credential}"}


def _text(element: ET.Element, name: str) -> str:
    """The text of a child, whatever its namespace."""
    return next((child.text or "" for child in element if child.tag.rpartition("}")[2] == name), "")


def _said(status: int, body: bytes) -> str:
    return f"{status} {body[:300].decode('utf-8', 'replace')}"
