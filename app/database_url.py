"""The database's URL, read as libpq reads one, and connections by it. Every part of the service and every command uses this.

What the driver cannot do is refused by name. No message contains what could be a piece of a password: a URL in which a character
of the password may have ended the user's part too early is refused without a word of it.
"""

import asyncio
import getpass
import math
import os
import random
import re
import socket
import ssl
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import asyncpg

from app.errors import Fatal

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]
else:
    Connection = asyncpg.Connection  # generic for type checkers only

_EXPECTED = (
    "expected postgresql://user:password@host/database?sslmode=verify-full, with percent-encoding for characters that have a "
    "meaning in URLs."
)
_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_TLS_VERSIONS = {name: ssl.TLSVersion[name.replace(".", "_")] for name in ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")}
_VARIABLES = {
    "host": "PGHOST",
    "port": "PGPORT",
    "dbname": "PGDATABASE",
    "user": "PGUSER",
    "password": "PGPASSWORD",
    "passfile": "PGPASSFILE",
    "sslmode": "PGSSLMODE",
    "sslnegotiation": "PGSSLNEGOTIATION",
    "sslrootcert": "PGSSLROOTCERT",
    "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY",
    "sslcrl": "PGSSLCRL",
    "ssl_min_protocol_version": "PGSSLMINPROTOCOLVERSION",
    "ssl_max_protocol_version": "PGSSLMAXPROTOCOLVERSION",
    "connect_timeout": "PGCONNECT_TIMEOUT",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
    "load_balance_hosts": "PGLOADBALANCEHOSTS",
    "application_name": "PGAPPNAME",
    "options": "PGOPTIONS",
    "krbsrvname": "PGKRBSRVNAME",
    "channel_binding": "PGCHANNELBINDING",
    "gssencmode": "PGGSSENCMODE",
    "require_auth": "PGREQUIREAUTH",
    "requirepeer": "PGREQUIREPEER",
    "hostaddr": "PGHOSTADDR",
    "service": "PGSERVICE",
    "sslcertmode": "PGSSLCERTMODE",
}
"""The variables of libpq, which count where the URL does not have the parameter. Nothing is read from HOME."""
_WITHOUT_VARIABLE = {
    "client_encoding",
    *("sslpassword", "fallback_application_name", "keepalives", "keepalives_idle", "keepalives_interval"),
    *("keepalives_count", "tcp_user_timeout", "replication", "sslcompression", "sslsni", "sslcrldir", "gsslib"),
    *("gssdelegation", "sslkeylogfile", "min_protocol_version", "max_protocol_version", "scram_client_key"),
    *("scram_server_key", "oauth_issuer", "oauth_client_id", "oauth_client_secret", "oauth_scope"),
}
_PARAMETERS = _VARIABLES.keys() | _WITHOUT_VARIABLE
_NOT_IN_DRIVER = {
    "channel_binding": ("disable", "prefer"),
    "gssencmode": ("disable", "prefer"),
    "sslcertmode": ("allow",),
    "replication": ("false", "off", "no", "0"),
    "sslcompression": ("0",),
    "sslsni": ("1",),
    "gssdelegation": ("0",),
    "client_encoding": ("auto", "utf8", "UTF8", "utf-8", "UTF-8"),
    **dict.fromkeys(("require_auth", "requirepeer", "hostaddr", "service", "sslcrldir", "sslkeylogfile"), ()),
    **dict.fromkeys(("min_protocol_version", "max_protocol_version", "scram_client_key", "scram_server_key"), ()),
    **dict.fromkeys(("oauth_issuer", "oauth_client_id", "oauth_client_secret", "oauth_scope"), ()),
}
"""What the driver cannot do, with the values that ask for nothing."""
_SOCKET_OPTIONS = {
    "keepalives_idle": (socket.IPPROTO_TCP, getattr(socket, "TCP_KEEPIDLE", None)),  # macOS has another name for it
    "keepalives_interval": (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
    "keepalives_count": (socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
    "tcp_user_timeout": (socket.IPPROTO_TCP, getattr(socket, "TCP_USER_TIMEOUT", None)),
}
_SESSIONS = ("any", "read-write", "read-only", "primary", "standby", "prefer-standby")
_DEFAULT_HOSTS = ["/run/postgresql", "/var/run/postgresql", "/tmp", "localhost"]  # noqa: S108  # Postgres's own socket
_NO_FILE = "/dev/null/none"  # keeps the driver from looking into HOME
_CONNECT_SECONDS_MIN = 2
_SECOND_SESSION_SECONDS = 1.0
_NEXT_HOST_SECONDS = 0.25
_POOLING_KNOWN_SECONDS = 60.0

_session_pooling_seen: dict[tuple[str, int, str | None], float] = {}
"""When a pooler was last seen to give sessions, by monotonic time."""


_TLS_MAY_BE_WHY = (
    *(ConnectionError, ssl.SSLError),
    *(asyncpg.InvalidAuthorizationSpecificationError, asyncpg.ProtocolViolationError),  # Postgres; PgBouncer
)


class CannotConnect(ConnectionError):
    """No host could be connected to; the text says why for each of them, with host and port. `__cause__` is the last failure."""


def reason(error: BaseException) -> str:
    """What the server or the network has answered, with host and port where they are known."""
    words = str(error) or repr(error)
    return ": ".join([*getattr(error, "__notes__", ())[:1], words])


class TransactionPooling(Fatal):
    """The database's URL leads to a pooler that gives each transaction another session (transaction pooling): settings and prepared statements would be lost. Use a pool in session mode, or the server itself."""


@dataclass(frozen=True, slots=True)
class DatabaseUrl:
    """Where to connect, and how."""

    hosts: tuple[tuple[str, int], ...]
    user: str
    password: str | None = field(repr=False)
    database: str | None
    passfile: str
    sslmode: str
    context: ssl.SSLContext | None
    """None for sslmode=disable."""
    direct_tls: bool
    session: str
    """target_session_attrs"""
    shuffled: bool
    connect_seconds: float | None
    """connect_timeout; 0 for none, None if it is not in the URL."""
    startup: Mapping[str, str]
    """Parameters of the startup message: application_name, and options if they are set."""
    socket_options: tuple[tuple[int, int, int], ...]
    kerberos: Mapping[str, Any]


def parse(url: str, environment: Mapping[str, str] | None = None) -> DatabaseUrl:
    """Read a URL, and the variables of libpq. Raises Fatal with what is wrong."""
    environment = os.environ if environment is None else environment
    own = dict(_parameters(*_split(url)))
    variables = {name: environment[v] for name, v in _VARIABLES.items() if environment.get(v)}
    try:
        return _target(variables | own)
    except _BadParameter as error:
        if error.name in own or error.name not in variables:
            raise
        raise Fatal(f"Invalid configuration: {_VARIABLES[error.name]}: {error.reason}.") from None


def _target(given: Mapping[str, str]) -> DatabaseUrl:
    _refuse_what_the_driver_cannot(given)
    mode = given.get("sslmode") or ("verify-full" if given.get("sslrootcert") == "system" else "prefer")
    _require(mode in _MODES, "sslmode", f"expected one of {', '.join(_MODES)}")
    direct = given.get("sslnegotiation", "postgres")
    _require(direct in {"postgres", "direct"}, "sslnegotiation", "expected postgres or direct")
    _require(
        direct == "postgres" or _MODES.index(mode) >= _MODES.index("require"), "sslnegotiation", "direct needs TLS"
    )
    session = given.get("target_session_attrs", "any")
    _require(session in _SESSIONS, "target_session_attrs", f"expected one of {', '.join(_SESSIONS)}")
    balance = given.get("load_balance_hosts", "disable")
    _require(balance in {"disable", "random"}, "load_balance_hosts", "expected disable or random")
    name = given.get("application_name") or given.get("fallback_application_name") or "datastorage"
    timeout = _number(given, "connect_timeout")
    if passfile := given.get("passfile"):
        _readable("passfile", passfile)
    return DatabaseUrl(
        hosts=tuple(_hosts(given)),
        user=given.get("user") or _account(),
        password=given.get("password"),
        database=given.get("dbname"),
        passfile=passfile or _NO_FILE,
        sslmode=mode,
        context=None if mode == "disable" else _context(mode, given),
        direct_tls=direct == "direct",
        session=session,
        shuffled=balance == "random",
        connect_seconds=timeout and max(timeout, _CONNECT_SECONDS_MIN if timeout > 0 else 0),
        startup={"application_name": name} | ({"options": given["options"]} if given.get("options") else {}),
        socket_options=tuple(_socket_options(given)),
        kerberos={n: given[n] for n in ("krbsrvname", "gsslib") if given.get(n)},
    )


def ignore_variables() -> None:
    """For a server of the service's own: what the environment says is meant for others."""
    for variable in _VARIABLES.values():
        os.environ.pop(variable, None)


def _split(url: str) -> tuple[str, str, str]:
    """(netloc, path, query) of a URL in which every character that separates its parts means that.

    An @ that is not the end of the user's part, or a #, is a password's character that was not encoded.
    """
    scheme, _, rest = url.partition("://")
    netloc = re.split("[/?]", rest, maxsplit=1)[0]
    path, _, query = rest.removeprefix(netloc).partition("?")
    valid = (
        scheme.partition("+")[0] in {"postgresql", "postgres"}  # SQLAlchemy names its driver after a plus
        and "#" not in url
        and url.count("@") == netloc.count("@") <= 1
        and url.isprintable()
        and " " not in url
    )
    if not valid:
        raise _invalid()
    return netloc, path, query


def _invalid() -> Fatal:
    return Fatal(f"Invalid configuration: the database's URL is not valid: {_EXPECTED}")


class _BadParameter(Fatal):
    """A parameter of the URL, or the variable that counts instead, cannot be used."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"Invalid configuration: {name} of the database's URL: {reason}.")
        self.name, self.reason = name, reason


def _require(condition: object, name: str, reason: str) -> None:
    if not condition:
        raise _BadParameter(name, reason)


def _parameters(netloc: str, path: str, query: str) -> Iterator[tuple[str, str]]:
    """The parameters of a URL, by libpq's names; the last one of a name counts, and an empty one is none."""
    login, _, place = netloc.rpartition("@")
    user, _, password = login.partition(":")
    hosts, ports = [], []
    for one in place.split(","):
        host, port = _host_and_port(one)
        hosts.append(host)
        ports.append(port)
    values = {"user": user, "password": password, "dbname": path.removeprefix("/")}
    values["host"] = ",".join(hosts) if any(hosts) else ""
    values["port"] = ",".join(ports) if any(ports) else ""
    yield from ((name, _decoded(value)) for name, value in values.items() if value)
    after_password = False
    for pair in query.split("&") if query else ():
        name, equals, value = pair.partition("=")
        name = {"database": "dbname", "ssl": "sslmode"}.get(name, name)
        if not equals or (after_password and name not in _PARAMETERS):
            raise _invalid()  # it may be the rest of a password
        _require(
            name in _PARAMETERS,
            name,
            "there is no such parameter; a setting of the server is set by options=-c%20name=value",
        )
        if name == "sslmode" and value == "true":  # as JDBC has it
            value = "require"
        if value:
            yield name, _decoded(value)
        after_password = after_password or "password" in name


def _host_and_port(text: str) -> tuple[str, str]:
    if text.startswith("["):
        host, closed, port = text[1:].partition("]")
        valid = closed and (not port or port.startswith(":"))
        port = port[1:]
    else:
        host, _, port = text.partition(":")
        valid = True
    if not valid or (port and not port.isdecimal()):
        raise _invalid()  # what stands there may be a password
    return host, port


def _decoded(text: str) -> str:
    """Without percent-encoding. What is not one, or not UTF-8, is refused rather than left as it is."""
    try:
        if any(not _is_hex(piece[:2]) for piece in text.split("%")[1:]):
            raise _invalid()
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise _invalid() from None


def _is_hex(text: str) -> bool:
    return len(text) == 2 and all(character in "0123456789abcdefABCDEF" for character in text)


def _refuse_what_the_driver_cannot(given: Mapping[str, str]) -> None:
    for name in given:
        if name in _NOT_IN_DRIVER:
            allowed = _NOT_IN_DRIVER[name]
            hint = f", except {' or '.join(allowed)}" if allowed else ""
            _require(given[name] in allowed, name, f"this service's driver cannot do that{hint}")


def _hosts(given: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    hosts = given["host"].split(",") if given.get("host") else _DEFAULT_HOSTS
    ports = given.get("port", "").split(",")
    _require(len(ports) in {1, len(hosts)}, "port", "expected one, or one for each host")
    for host, port in zip(hosts, ports * len(hosts) if len(ports) == 1 else ports, strict=True):
        _require(
            not port or (port.isdecimal() and 0 < int(port) < 1 << 16), "port", "expected a number from 1 to 65535"
        )
        yield host or _DEFAULT_HOSTS[-1], int(port or 5432)


def _account() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        _require(None, "user", "there is none, and this process has no account whose name could be used")
    raise AssertionError  # _require has raised


def _number(given: Mapping[str, str], name: str) -> int | None:
    text = given.get(name)
    try:
        return None if text is None else max(0, int(text))
    except ValueError:
        _require(None, name, "expected a whole number")
    raise AssertionError  # _require has raised


def _socket_options(given: Mapping[str, str]) -> Iterator[tuple[int, int, int]]:
    if _number(given, "keepalives") != 0:
        yield socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1
    for name, (level, option) in _SOCKET_OPTIONS.items():
        if (value := _number(given, name)) and option is not None:
            yield level, option, value


def _context(mode: str, given: Mapping[str, str]) -> ssl.SSLContext:
    """TLS as sslmode and the files of `given` have it. As in libpq, sslmode=require with an sslrootcert is verify-ca."""
    root = given.get("sslrootcert", "")
    verify = mode.startswith("verify") or (mode == "require" and root != "")
    _require(root != "system" or mode == "verify-full", "sslrootcert", "system needs sslmode=verify-full")
    _require(root or mode != "verify-ca", "sslrootcert", "verify-ca needs one: public authorities sign for every name")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = mode == "verify-full"
    context.verify_mode = ssl.CERT_REQUIRED if verify else ssl.CERT_NONE
    if verify and root in {"", "system"}:
        context.set_default_verify_paths()
    elif verify:
        _load(context, "sslrootcert", root)
    if verify and (crl := given.get("sslcrl")):
        _load(context, "sslcrl", crl)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
    if certificate := given.get("sslcert"):
        key = given.get("sslkey")
        _readable("sslcert", certificate)
        if key:
            _readable("sslkey", key)
        try:
            context.load_cert_chain(certificate, key, lambda: given.get("sslpassword", ""))
        except ssl.SSLError:
            _require(None, "sslcert", f"{certificate} and its key are not a pair in PEM, or sslpassword is wrong")
    for name, default in (("ssl_min_protocol_version", "TLSv1.2"), ("ssl_max_protocol_version", "TLSv1.3")):
        version = given.get(name, default)
        _require(version in _TLS_VERSIONS, name, f"expected one of {', '.join(_TLS_VERSIONS)}")
        setattr(context, name[4:7] + "imum_version", _TLS_VERSIONS[version])
    context.set_alpn_protocols(["postgresql"])
    return context


def _load(context: ssl.SSLContext, name: str, path: str) -> None:
    _readable(name, path)
    try:
        context.load_verify_locations(path)
    except ssl.SSLError:
        _require(None, name, f"{path} has no certificate or revocation list in PEM")


def _readable(name: str, path: str) -> None:
    try:
        Path(path).open("rb").close()
    except OSError as error:
        _require(None, name, f"cannot read {path}: {error.strerror}")


async def connect(
    url: str,
    *,
    seconds: float,
    command_seconds: float | None = None,
    session: Mapping[str, str] | None = None,
    cancels: bool = True,
) -> Connection:
    """One connection, with the server's settings `session` set after the start: a pooler refuses parameters that it does not know.

    Hosts are tried in turn, each for the URL's connect_timeout, else for `seconds`; behind one that has not answered for a quarter
    of a second the next one is tried beside it, since a frozen host answers nothing. The first that fits counts. Raises Fatal for a URL
    that is not valid and for transaction pooling, CannotConnect, or what the server answers about user, password or database.
    """
    target = parse(url)
    limit = seconds if target.connect_seconds is None else target.connect_seconds or None
    hosts = list(target.hosts)
    if target.shuffled:
        random.shuffle(hosts)
    failures: dict[str, str] = {}
    last: Exception | None = None
    for wanted in ("standby", "any") if target.session == "prefer-standby" else (target.session,):
        attempts = [_Attempt(target, host, port, wanted, limit, command_seconds, cancels) for host, port in hosts]
        async for attempt, opened in _in_turn(attempts, session or {}):
            where = f"{attempt.host}:{attempt.port}"
            try:
                return opened.result()
            except TimeoutError as error:
                failures[where], last = f"no answer within {limit:g} s" if limit else str(error), error
            except (OSError, asyncpg.CannotConnectNowError, asyncpg.TargetServerAttributeNotMatched) as error:
                failures[where], last = str(error) or repr(error), error
            except asyncpg.PostgresError as error:
                error.add_note(where)
                raise
    raise CannotConnect("; ".join(f"{where}: {reason}" for where, reason in failures.items())) from last


async def _in_turn(
    attempts: "Sequence[_Attempt]", session: Mapping[str, str]
) -> "AsyncGenerator[tuple[_Attempt, asyncio.Task[Connection]]]":
    """Each attempt with its task once that has ended. The next one begins when all before have ended, or a while after the last began."""
    running: dict[asyncio.Task[Connection], _Attempt] = {}
    waiting = list(attempts)
    try:
        while waiting or running:
            if waiting:
                one = waiting.pop(0)
                running[asyncio.create_task(_open(one, session))] = one
            ended: set[asyncio.Task[Connection]] = set()
            while running and not ended:
                seconds = _NEXT_HOST_SECONDS if waiting else None
                ended, _ = await asyncio.wait(running, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
                if waiting and not ended:
                    break
            for task in ended:
                yield running.pop(task), task
    finally:
        for task in running:
            task.cancel()
            task.add_done_callback(_close_late)


def _close_late(task: "asyncio.Task[Connection]") -> None:
    """Nobody waits for this connection any more."""
    if not task.cancelled() and task.exception() is None:
        task.result().terminate()


@dataclass(frozen=True, slots=True)
class _Attempt:
    target: DatabaseUrl
    host: str
    port: int
    wanted: str
    """target_session_attrs"""
    limit: float | None
    """Seconds."""
    command_seconds: float | None
    cancels: bool

    async def connect(self) -> Connection:
        """With TLS, without it, or first one and then the other, as sslmode has it."""
        target, first = self.target, None
        tls: ssl.SSLContext | bool = target.context or False
        orders = {"allow": (False, tls), "prefer": (tls, False)}
        order = (False,) if self.host.startswith("/") or not tls else orders.get(target.sslmode, (tls,))
        for context in order:
            try:
                return await self._connect(context)
            except _TLS_MAY_BE_WHY as error:
                known = isinstance(error, ConnectionRefusedError | asyncpg.InvalidPasswordError)
                if known or context is order[-1]:
                    raise error from first
                first = error
        raise AssertionError  # the last one returns or raises

    async def _connect(self, tls: ssl.SSLContext | bool) -> Connection:
        target = self.target
        arguments: dict[str, Any] = {
            "user": target.user,
            "password": target.password,
            "passfile": target.passfile,
            "database": target.database,
            "ssl": tls,
            "direct_tls": target.direct_tls and tls is not False,
            "target_session_attrs": self.wanted,
            "timeout": self.limit,
            "command_timeout": self.command_seconds,
            "server_settings": dict(target.startup),
            "connection_class": asyncpg.Connection if self.cancels else _NeverCancelling,
        }
        connection: Connection = await asyncpg.connect(host=self.host, port=self.port, **arguments, **target.kerberos)
        return connection


class _NeverCancelling(Connection):
    """A connection that is closed where the driver would send a cancel request: at its own timeout, or when its caller is cancelled.

    A COMMIT that waits for a standby goes on waiting in the server then, and what it has written is not seen before.
    """

    __slots__ = ()

    def _cancel_current_command(self, waiter: "asyncio.Future[None]", cancel_waiter: object = None) -> None:
        del cancel_waiter
        asyncio.get_running_loop().call_soon(self.terminate)
        if not waiter.done():
            waiter.set_result(None)


async def _open(attempt: _Attempt, session: Mapping[str, str]) -> Connection:
    connection = await attempt.connect()
    try:
        _set_socket_options(connection, attempt.target.socket_options)
        async with asyncio.timeout(attempt.limit):
            if await _begin_session(connection, session) != connection.get_server_pid():
                await _refuse_transaction_pooling(attempt, connection)
    except (asyncpg.DuplicatePreparedStatementError, asyncpg.InvalidSQLStatementNameError):
        connection.terminate()
        raise TransactionPooling from None
    except BaseException:
        connection.terminate()
        raise
    return connection


def _set_socket_options(connection: Connection, options: tuple[tuple[int, int, int], ...]) -> None:
    driver: Any = connection
    sock = driver._transport.get_extra_info("socket")  # noqa: SLF001  # the driver has no parameters for them
    if sock.family in {socket.AF_INET, socket.AF_INET6}:
        for option in options:
            sock.setsockopt(*option)


async def _begin_session(connection: Connection, session: Mapping[str, str]) -> int:
    """Set the server's settings; the process id of the server's session."""
    settings = "".join(f", set_config({_literal(name)}, {_literal(value)}, false)" for name, value in session.items())
    pid: int = await connection.fetchval(f"SELECT pg_backend_pid(){settings}")  # names and values of ours
    return pid


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


async def _refuse_transaction_pooling(attempt: _Attempt, connection: Connection) -> None:
    """Raise TransactionPooling if another client gets the session that `connection` has used, or takes it away.

    Where the pool has no second session to give, the other client waits, and that is a pool in session mode too.
    """
    pooler = attempt.host, attempt.port, attempt.target.database
    if monotonic() - _session_pooling_seen.get(pooler, -math.inf) < _POOLING_KNOWN_SECONDS:
        return
    pid = await connection.fetchval("SELECT pg_backend_pid()")
    other = await attempt.connect()
    try:
        async with asyncio.timeout(_SECOND_SESSION_SECONDS):
            await other.execute("BEGIN")
            taken = await other.fetchval("SELECT pg_backend_pid()") == pid
        if taken or await connection.fetchval("SELECT pg_backend_pid()") != pid:
            raise TransactionPooling
    except TimeoutError:
        pass
    except asyncpg.PostgresConnectionError as error:
        if "statement pooling" in str(error):  # PgBouncer has ended the session that wanted a transaction
            raise TransactionPooling from None
        raise
    finally:
        other.terminate()
    _session_pooling_seen[pooler] = monotonic()
