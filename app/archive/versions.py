"""Versions and locks of a bucket: what it still has of files that were deleted, and legal holds on files. pyarrow knows neither.

Requests are signed as AWS Signature Version 4 says, with the credentials of the settings. Without these nothing is looked at.
"""

import hashlib
import hmac
from base64 import b64encode
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
_HAS_NO_LOCK = {404, 405, 501}


class FilesStay(OSError):
    """The store does not do with a version what it is asked to: for example to delete one that is locked."""


class _Version(NamedTuple):
    key: str
    version_id: str
    is_marker: bool
    """Whether it says that the key was deleted."""


def delete_versions(storage: Storage, folders: Sequence[str], is_wanted: Callable[[str], bool]) -> None:
    """Delete all versions of the files of folders whose names are wanted. FilesStay, after all that can be deleted, if some cannot."""
    if (bucket := Bucket.of(storage)) is None:
        return
    refused = [
        f"{version.key}: {answer}"
        for folder in folders
        for version in bucket.versions_in(folder)
        if is_wanted(bucket.name_of(version)) and (answer := bucket.delete(version)) is not None
    ]
    if refused:
        raise FilesStay(f"the bucket keeps {len(refused)} version(s), first {refused[0]}")


class Bucket:
    """The bucket of an archive."""

    def __init__(self, storage: Storage) -> None:
        bucket, _, base = storage.path().partition("/")
        self._start = f"{base}/" if base else ""
        self._access_key = storage.options["access_key"]
        self._secret_key = storage.options["secret_key"]
        self._region = storage.options["region"]
        endpoint = storage.options.get("endpoint_override") or f"s3.{self._region}.amazonaws.com"
        self._endpoint = urlsplit(endpoint if "://" in endpoint else f"https://{endpoint}")
        self._path = f"/{bucket}"

    @classmethod
    def of(cls, storage: Storage) -> "Bucket | None":
        """None for a directory, and without credentials in the settings."""
        return cls(storage) if "access_key" in storage.options else None

    def name_of(self, version: _Version) -> str:
        """The path in the archive."""
        return version.key.removeprefix(self._start)

    def versions_in(self, folder: str) -> list[_Version]:
        """The versions of the files of a folder of the archive."""
        return list(self.versions(f"{self._start}{folder}/"))

    def has_object_lock(self) -> bool:
        """Whether versions can be locked. FilesStay if the store does not say."""
        status, body = self._request("GET", self._path, {"object-lock": ""})
        if status in _HAS_NO_LOCK:
            return False
        if status != 200:
            raise FilesStay(f"whether the bucket has object lock, it does not say: {_said(status, body)}")
        return b"<ObjectLockEnabled>Enabled<" in body

    def set_legal_holds(self, folder: str, *, is_on: bool) -> None:
        """Have all versions of the files of a folder under legal hold, or none. FilesStay, after all that can be, if some cannot."""
        versions = [one for one in self.versions_in(folder) if not one.is_marker]
        if is_on and not versions:
            raise FilesStay("it has no files")
        status = b"ON" if is_on else b"OFF"
        body = b'<LegalHold xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Status>%s</Status></LegalHold>' % status
        refused = []
        for one in versions:
            answer = self._request("PUT", self._path_of(one), {"legal-hold": "", "versionId": one.version_id}, body)
            if answer[0] != 200:
                refused.append(f"{one.key}: {_said(*answer)}")
        if refused:
            raise FilesStay(f"the bucket refuses {len(refused)} legal hold(s), first {refused[0]}")

    def unlocked(self, folder: str) -> list[str]:
        """The files of a folder, by their paths in the archive, of which some version is under no legal hold. FilesStay if the store does not say."""
        found = set()
        for one in self.versions_in(folder):
            if one.is_marker:
                continue
            query = {"legal-hold": "", "versionId": one.version_id}
            status, body = self._request("GET", self._path_of(one), query)
            if status not in {200, 404}:
                raise FilesStay(f"whether {one.key} is locked, the bucket does not say: {_said(status, body)}")
            if b"<Status>ON<" not in body:
                found.add(self.name_of(one))
        return sorted(found)

    def _path_of(self, version: _Version) -> str:
        return f"{self._path}/{quote(version.key, safe='/-_.~')}"

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
                if (kind := one.tag.rpartition("}")[2]) in {"Version", "DeleteMarker"}:
                    yield _Version(_text(one, "Key"), _text(one, "VersionId"), kind == "DeleteMarker")
            if _text(page, "IsTruncated") != "true":
                return
            query |= {"key-marker": _text(page, "NextKeyMarker")}
            query |= {"version-id-marker": _text(page, "NextVersionIdMarker")}

    def delete(self, version: _Version) -> str | None:
        """Delete a version; what the store says if it does not."""
        status, body = self._request("DELETE", self._path_of(version), {"versionId": version.version_id})
        return None if status in {200, 204, 404} else _said(status, body)

    def _request(self, method: str, path: str, query: dict[str, str], sent: bytes = b"") -> tuple[int, bytes]:
        of_query = "&".join(f"{quote(name, safe='-_.~')}={quote(query[name], safe='-_.~')}" for name in sorted(query))
        kind = HTTPConnection if self._endpoint.scheme == "http" else HTTPSConnection
        with closing(kind(self._endpoint.netloc, timeout=_SECONDS)) as connection:
            try:
                headers = self._signed(method, path, of_query, hashlib.sha256(sent).hexdigest())
                if sent:
                    headers["content-md5"] = b64encode(hashlib.md5(sent, usedforsecurity=False).digest()).decode()
                connection.request(method, f"{path}?{of_query}", sent or None, headers)
                response = connection.getresponse()
                return response.status, response.read()
            except HTTPException as error:
                raise OSError(f"the bucket's versions cannot be had: {error!r}") from error

    def _signed(self, method: str, path: str, query: str, digest: str = _EMPTY) -> dict[str, str]:
        now = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
        headers = {"host": self._endpoint.netloc, "x-amz-content-sha256": digest, "x-amz-date": now}
        names = ";".join(headers)
        lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
        canonical = f"{method}\n{path}\n{query}\n{lines}\n{names}\n{digest}"
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
