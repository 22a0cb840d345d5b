"""The certificate by which the API is served. A changed pair of files is used from the next connection on."""

import logging
import ssl
import time
from pathlib import Path

from app import metrics
from app.errors import Fatal
from app.settings import TLS_PAIR

_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_LOOK_AGAIN_SECONDS = 1.0

log = logging.getLogger(__name__)


class Certificate:
    """tls.crt and tls.key of a directory, looked at again at most once a second, when somebody connects.

    A pair that is no good, such as one of which only one file has changed yet, leaves the old one in use.
    """

    def __init__(self, directory: Path, min_version: str) -> None:
        self._paths = [directory / name for name in TLS_PAIR]
        self._min_version = _VERSIONS[min_version]
        try:
            self._seen = self._signature()
            self._current = self._load()
        except OSError as error:  # ssl.SSLError is one
            raise Fatal(f"Cannot serve by {' and '.join(map(str, self._paths))}: {error}") from None
        self._looked = time.monotonic()

    def context(self) -> ssl.SSLContext:
        """A context whose connections each get the pair as it is when they begin."""
        context = self._load()
        context.sni_callback = self._choose
        return context

    def _choose(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        del name, context
        if time.monotonic() - self._looked >= _LOOK_AGAIN_SECONDS:
            self._look_again()
        connection.context = self._current

    def _look_again(self) -> None:
        self._looked = time.monotonic()
        try:
            seen = self._signature()
            if seen == self._seen:
                return
            self._current = self._load()
        except OSError as error:
            metrics.AUTH_FAILURES.labels("tls").inc()
            log.warning("the certificate stays as it was", extra={"error": str(error)})
        else:
            self._seen = seen
            log.info("certificate read again")

    def _signature(self) -> list[tuple[int, int, int]]:
        return [(s.st_ino, s.st_mtime_ns, s.st_size) for s in (path.stat() for path in self._paths)]

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = self._min_version
        context.load_cert_chain(self._paths[0], self._paths[1])
        return context
