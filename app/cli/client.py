"""The service that a command asks: where it is, with which token, and what it answers. HTTP only; nothing of the service is imported."""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote

from app.bookmark import HEADER as BOOKMARK
from app.bookmark import NOW
from app.cli import output
from app.errors import Fatal, Usage
from app.masking import masked
from app.terminal import visible

if TYPE_CHECKING:
    import ssl

    import httpx

_TIMEOUT_SECONDS = 60.0
_LONG_SECONDS = 300.0
"""For an answer of many proofs."""
_COVERED_SECONDS_MAX = 60.0
_PAUSE_SECONDS_MAX = 10.0
_DEFAULT_PORT = "8080"
_USAGE = frozenset({400, 414, 422})
"""Answers that say that an option or a value does not fit."""

Parameters = Mapping[str, str | Sequence[str]]


class NotThere(Fatal):
    """The service has nothing of this id."""


def add_service(parser: argparse.ArgumentParser, *, role: str = "") -> None:
    """The options that say which service, and who asks; Service.of() reads them."""
    options = parser.add_argument_group("the service")
    options.add_argument(
        "--url", help=f"else DATASTORAGE_URL, else http://127.0.0.1 at DATASTORAGE_PORT (or {_DEFAULT_PORT})"
    )
    secret = options.add_mutually_exclusive_group()
    owner = f"; its owner needs the role {role}" if role else ""
    secret.add_argument("--token", help=f"sent as a bearer token, else DATASTORAGE_TOKEN{owner}")
    secret.add_argument("--token-file", type=Path, metavar="FILE", help="that holds it, else DATASTORAGE_TOKEN_FILE")
    options.add_argument(
        "--ca-file",
        type=Path,
        metavar="FILE",
        help="PEM of the certificates to trust for https, of authorities or the service's own, else DATASTORAGE_CA_FILE",
    )


@dataclass(frozen=True)
class Service:
    """A service, and the token that it is asked with. Requests raise Fatal, or Usage for what it says does not fit."""

    url: str
    """With a scheme, without a slash at the end."""
    token: str | None = field(repr=False)
    ca_file: Path | None = None
    """PEM of the certificates that are trusted, instead of the system's."""

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> "Service":
        """The service that options and variables name. Usage or Fatal when one of them cannot be used."""
        return cls(_url(arguments.url), _token(arguments.token, arguments.token_file), _ca_file(arguments.ca_file))

    @property
    def shown_url(self) -> str:
        """Without user and password."""
        return visible(masked(self.url))

    @property
    def headers(self) -> dict[str, str]:
        """The token, and that a standby may answer which has what the primary has now."""
        authorization = {} if self.token is None else {"Authorization": f"Bearer {self.token}"}
        return {BOOKMARK: NOW} | authorization

    @cached_property
    def trusted(self) -> "ssl.SSLContext | bool":
        """As httpx's `verify`. Fatal if the certificates to trust cannot be read."""
        # To read the certificates of authorities takes longer than the request; only https needs them.
        if not self.url.lower().startswith("https:"):
            return False
        if self.ca_file is None:
            return True
        import ssl

        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:
            raise Fatal(f"Cannot read the certificates in {self.ca_file}: {error}") from None
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # also one that is no authority's
        return context

    @cached_property
    def http(self) -> "httpx.Client":
        """The connection; it ends with the process."""
        _leave_out_command_line()
        import httpx

        try:
            return httpx.Client(base_url=self.url, headers=self.headers, timeout=_TIMEOUT_SECONDS, verify=self.trusted)
        except (httpx.InvalidURL, ValueError) as error:
            raise Usage(f"{self.shown_url} is not the URL of a service: {visible(str(error))}") from None

    def get(self, path: str, parameters: Parameters | None = None, doing: str = "") -> "httpx.Response":
        """`doing` is what a terminal shows meanwhile."""
        return self.ask("GET", path, doing, params=parameters)

    def json(self, path: str, parameters: Parameters | None = None, doing: str = "") -> Any:
        """The answer's JSON document."""
        return self.decoded(self.get(path, parameters, doing))

    def send(self, method: str, path: str, body: Any) -> Any:
        """The JSON answer to a request with a JSON body."""
        return self.decoded(self.ask(method, path, json=body))

    def get_once_covered(self, path: str, parameters: Parameters) -> "httpx.Response":
        """The answer. An event that no checkpoint covers yet is waited for, some seconds at most."""
        end = time.monotonic() + _COVERED_SECONDS_MAX
        while True:
            with self.errors():
                answer = self.http.get(path, params=parameters, timeout=_LONG_SECONDS)
            if answer.is_success:
                return answer
            if answer.status_code != 503 or time.monotonic() > end:
                raise refusal(answer)
            time.sleep(pause_seconds(answer.headers.get("retry-after", "")))

    def fetch(self, path: str, parameters: Parameters, file: BinaryIO) -> None:
        """Write a long answer to a file."""
        with self.errors(), self.http.stream("GET", path, params=parameters, timeout=_LONG_SECONDS) as answer:
            if not answer.is_success:
                answer.read()
                raise refusal(answer)
            file.writelines(answer.iter_bytes())

    def ask(self, method: str, path: str, doing: str = "", **content: Any) -> "httpx.Response":
        """The answer to one request, which is a success."""
        http = self.http  # imported before it is said that somebody is asked: a Ctrl-C can get lost among imports
        with output.progress(doing or f"asking {self.shown_url} ..."), self.errors():
            answer = http.request(method, path, **content)
        if not answer.is_success:
            raise refusal(answer)
        return answer

    def decoded(self, answer: "httpx.Response") -> Any:
        """The JSON object of an answer. Fatal if it is none, and later for a member that it should have."""
        url = self.shown_url
        try:
            found = answer.json(object_hook=lambda members: _Object(members, url))
        except ValueError:
            found = None
        if not isinstance(found, _Object):
            raise _stranger(url)
        return found

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Around requests: Fatal, with the URL, when nobody answers."""
        _leave_out_command_line()
        import httpx

        try:
            yield
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise Usage(f"{self.shown_url} is not the URL of a service: {visible(str(error))}") from None
        except httpx.TimeoutException:
            raise Fatal(f"The service at {self.shown_url} does not answer in time") from None
        except httpx.HTTPError as error:
            reason = visible(masked(str(error) or type(error).__name__))
            raise Fatal(f"no service answers at {self.shown_url} ({reason})") from None


class _Object(dict[str, Any]):
    """A JSON object of an answer from `url`. Whoever answers without a member that a DataStorage always sends is none: Fatal."""

    def __init__(self, members: dict[str, Any], url: str) -> None:
        super().__init__(members)
        self._url = url

    def __missing__(self, name: str) -> Any:
        raise _stranger(self._url)


def _stranger(url: str) -> Fatal:
    return Fatal(f"{url} has answered with something else: is it a DataStorage?")


def pause_seconds(retry_after: str) -> float:
    """How long to wait before the next request, as the header of an answer says, within reason."""
    return min(float(retry_after), _PAUSE_SECONDS_MAX) if retry_after.isdecimal() else 1.0


def _leave_out_command_line() -> None:
    """httpx imports the libraries of a command line of its own, if they are there, which takes as long as the rest of it."""
    sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]  # with None the import fails, which it expects


def refusal(answer: "httpx.Response") -> Fatal:
    """What to raise for an answer that is not a success: the service's own words."""
    text = problem(answer)
    if answer.status_code in {401, 403}:
        why = "" if answer.status_code == 401 else ", as the role of who asks does not suffice"
        return Fatal(
            f"{text} (the service answered {answer.status_code}{why}; --token or DATASTORAGE_TOKEN says who asks)"
        )
    if answer.status_code == 404:
        return NotThere(text)
    return Usage(text) if answer.status_code in _USAGE else Fatal(text)


def problem(answer: "httpx.Response") -> str:
    """What the service says is wrong, with the fields that do not fit."""
    try:
        document = answer.json()
        fields = document.get("field_errors") or {}
        detail = str(document["detail"])
        named = "; ".join(f"{name.lstrip('/')}: {text}" for name, text in fields.items() if text not in detail)
    except (ValueError, LookupError, TypeError, AttributeError):
        return f"the service answered {answer.status_code}: {visible(answer.text[:200].strip())}"
    return visible(f"{detail} ({named})" if named else detail)


def segment(text: str) -> str:
    """`text` as one segment of a path."""
    return quote(text, safe="")


def to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _url(given: str | None) -> str:
    url = given or os.environ.get("DATASTORAGE_URL") or f"127.0.0.1:{_port()}"
    if "://" not in url:
        url = f"http://{url}"
    scheme = url.partition("://")[0].lower()
    if scheme not in {"http", "https"} or not url.isprintable() or " " in url:
        raise Usage(f"{visible(masked(url))} is not the URL of a service, such as https://datastorage.example:8080")
    return url.rstrip("/")


def _port() -> str:
    port = os.environ.get("DATASTORAGE_PORT") or _DEFAULT_PORT
    if "://" in port:  # what Kubernetes sets for a Service named datastorage
        port = _DEFAULT_PORT
    if not port.isdecimal():
        raise Usage(f"DATASTORAGE_PORT is {visible(port)!r}, which is not a port")
    return port


def _ca_file(given: Path | None) -> Path | None:
    name = os.environ.get("DATASTORAGE_CA_FILE")
    return given or (Path(name) if name else None)


def _token(given: str | None, file: Path | None) -> str | None:
    if given is None and file is None:
        given, name = os.environ.get("DATASTORAGE_TOKEN"), os.environ.get("DATASTORAGE_TOKEN_FILE")
        file = Path(name) if name and not given else None
    if file is not None:
        try:
            given = file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise Fatal(f"Cannot read the token in {file}: {error}") from None
    token = (given or "").strip()
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise Usage("the token has characters that no token has")
    return token or None
