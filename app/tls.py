"""The certificate that the API is served with. A changed pair of files is used from the next connection on."""

import logging
import ssl
from pathlib import Path

from app import metrics
from app.config_file import TLS_PAIR
from app.errors import Fatal
from app.watched_file import WatchedFiles

_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}

log = logging.getLogger(__name__)


class Certificate:
    """tls.crt and tls.key of a directory. While they are not a pair, for example because only one of them has been replaced
    yet, the last pair stays in use.
    """

    def __init__(self, directory: Path, min_version: str) -> None:
        self._pair = [directory / name for name in TLS_PAIR]
        self._min_version = _VERSIONS[min_version]
        try:
            self._current = WatchedFiles(self._pair, self._load, changed=_log_change, failed=_log_failure)
        except OSError as error:  # ssl.SSLError is one
            raise Fatal(f"Cannot serve with {' and '.join(map(str, self._pair))}: {error}") from None

    def context(self) -> ssl.SSLContext:
        """A context in which each connection gets the pair that is valid when it begins."""
        context = self._load()
        context.sni_callback = self._choose
        return context

    def _choose(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        del name, context
        connection.context = self._current.value()

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = self._min_version
        context.load_cert_chain(self._pair[0], self._pair[1])
        return context


def _log_change(_: ssl.SSLContext) -> None:
    log.info("certificate reloaded")


def _log_failure(error: Exception) -> None:
    metrics.AUTH_FAILURES.labels("tls").inc()
    log.warning("the changed certificate cannot be used, so the last one stays in use", extra={"error": str(error)})
