"""The destination `s3`: portions as objects of a bucket, each with a manifest (stream/objects.py). Needs the extra `s3`.

An object is stored before its manifest, and nothing is overwritten: what has a manifest is whole, and stays as it is.
"""

import asyncio
import gzip
import logging
import re
from datetime import timedelta
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import S3Store

from app.errors import Fatal
from app.stream.destination import Delivery, NotDelivered
from app.stream.formats.lines import format_line
from app.stream.objects import Part, is_of, manifest, manifest_key, object_body, object_key, parts, test_key
from app.stream.s3_sink import S3Sink
from app.watched_file import WatchedFiles

if TYPE_CHECKING:  # they are not there at run time
    from obstore.store import ClientConfig, S3Config

_STATUS = re.compile(r"status code: (\d{3}[A-Za-z ]*)")
_CODE = re.compile(r"<Code>([A-Za-z]{1,60})</Code>")
_GZIP, _JSON = "application/gzip", "application/json"

log = logging.getLogger(__name__)


class S3:
    """A bucket."""

    def __init__(self, sink: S3Sink) -> None:
        self._sink = sink
        self._store: WatchedFiles[S3Store] | None = None

    async def deliver(self, delivery: Delivery) -> None:
        """Return when the store has every object of the portion, and the manifest of each."""
        store = await asyncio.to_thread(self._current_store)
        try:
            if delivery.is_test:
                line = format_line(delivery.items[0], self._sink.format, delivery.log)
                await self._put(store, test_key(delivery), gzip.compress(line, mtime=0), _GZIP)
                return
            for part in parts(delivery):
                await self._put_part(store, part, delivery)
        except (BaseError, FileNotFoundError) as error:
            raise NotDelivered(_reason(error)) from None

    async def close(self) -> None:
        """Forget the store; the next portion opens it anew."""
        self._store = None

    async def _put_part(self, store: S3Store, part: Part, delivery: Delivery) -> None:
        """Store an object, then its manifest, which is of what is stored."""
        key = object_key(part, delivery)
        body = await asyncio.to_thread(object_body, part, delivery, self._sink.format)
        if not await self._put(store, key, body, _GZIP):
            body = await self._get(store, key)  # of an earlier try, unless somebody else has stored it
            if not await asyncio.to_thread(is_of, part, delivery, self._sink.format, body):
                raise NotDelivered(f"{key} is stored already, and is not this portion: nothing is overwritten")
        content, key = manifest(part, delivery, key, body, self._sink.format), manifest_key(part, delivery)
        if not await self._put(store, key, content, _JSON) and await self._get(store, key) != content:
            raise NotDelivered(f"{key} is stored already, and is not of this portion: nothing is overwritten")

    async def _get(self, store: S3Store, key: str) -> bytes:
        stored = await obstore.get_async(store, self._sink.prefix + key)
        return bytes(await stored.bytes_async())

    async def _put(self, store: S3Store, key: str, body: bytes, media_type: str) -> bool:
        """Store an object, unless there is one already: whether there was none."""
        try:
            await obstore.put_async(
                store, self._sink.prefix + key, body, mode="create", attributes={"Content-Type": media_type}
            )
        except AlreadyExistsError:
            return False
        return True

    def _current_store(self) -> S3Store:
        """The store, with the credentials and certificates that the files have now."""
        sink = self._sink
        files = [file for file in (sink.access_key_file, sink.secret_key_file, sink.ca_file) if file is not None]
        try:
            if self._store is None:
                self._store = WatchedFiles(files, self._open, changed=self._log_change, failed=self._log_failure)
            return self._store.value()
        except OSError as error:
            raise NotDelivered(f"access_key_file, secret_key_file or ca_file cannot be read: {error}") from None
        except Fatal as error:
            raise NotDelivered(error.detail) from None

    def _open(self) -> S3Store:
        sink = self._sink
        timeout = timedelta(milliseconds=sink.timeout_ms)
        options: ClientConfig = {"allow_http": (sink.endpoint or "").startswith("http://"), "timeout": timeout}
        if sink.ca_file is not None:
            options["root_certificate"] = sink.ca_file.read_bytes()
        config: S3Config = {"region": sink.region, "checksum_algorithm": "sha256"}
        if sink.endpoint is not None:
            config["endpoint"] = sink.endpoint.rstrip("/")
        if sink.access_key_file is not None and sink.secret_key_file is not None:
            config["access_key_id"] = sink.access_key_file.read_text("utf-8").strip()
            config["secret_access_key"] = sink.secret_key_file.read_text("utf-8").strip()
        try:  # the deliverer tries again, and says so
            return S3Store(sink.bucket, config=config, client_options=options, retry_config={"max_retries": 0})
        except (BaseError, ValueError) as error:
            raise Fatal(f"the store cannot be used: {_reason(error)}") from None

    def _log_change(self, _: S3Store) -> None:
        log.info("the credentials of a bucket have changed", extra={"sink": self._sink.name})

    def _log_failure(self, error: Exception) -> None:
        extra = {"sink": self._sink.name, "error": getattr(error, "detail", str(error))}
        log.warning("the changed credentials of a bucket cannot be used; those from before are", extra=extra)


def _reason(error: Exception) -> str:
    """What the store has answered, in few words: the library's text has whole requests."""
    text = str(error)
    if status := _STATUS.search(text):
        code = _CODE.search(text)
        return f"the store has answered {status[1].strip()}" + (f" ({code[1]})" if code else "")
    if "timed out" in text or "TimedOut" in text:
        return "no answer in time"
    if "redirect" in text:
        return "the store redirects to elsewhere: region has to be that of the bucket"
    for words in ("tcp connect error", "dns error", "certificate", "connection closed", "Connection reset"):
        if words in text:
            return f"the store cannot be reached: {words}"
    return f"the store could not be used ({type(error).__name__})"
