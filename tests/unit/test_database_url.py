"""URLs of databases: what each parameter means, what is refused and in which words, and that no password is in them."""

import random
import socket
import ssl
import string
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from app import cli
from app.database_url import parse
from app.errors import Fatal
from tests.certificates import Authority

HOST = "postgresql://u:p@h/d"


def refusal(url: str, **environment: str) -> str:
    with pytest.raises(Fatal) as refused:
        parse(url, environment)
    return refused.value.detail


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (HOST, {"hosts": (("h", 5432),), "user": "u", "password": "p", "database": "d", "sslmode": "prefer"}),
        ("postgres://u@h", {"user": "u", "password": None, "database": None}),
        ("postgresql+asyncpg://u:p@h:6/d", {"hosts": (("h", 6),), "user": "u"}),
        ("postgresql+asyncpg://u@h/d?ssl=require", {"sslmode": "require"}),
        ("postgresql://u@h/d?ssl=true", {"sslmode": "require"}),
        ("postgresql://u:%40%2F%23%3A@h/d%2Fe", {"password": "@/#:", "database": "d/e"}),
        ("postgresql://u:a:b@h/d", {"password": "a:b"}),
        ("postgresql://u@a,b:6/d", {"hosts": (("a", 5432), ("b", 6))}),
        ("postgresql://u@/d?host=a,b&port=6,7", {"hosts": (("a", 6), ("b", 7))}),
        ("postgresql://u@/d?host=a,b&port=6", {"hosts": (("a", 6), ("b", 6))}),
        ("postgresql://u@[::1]:6,[::2]/d", {"hosts": (("::1", 6), ("::2", 5432))}),
        ("postgresql://u@%2Fvar%2Frun/d", {"hosts": (("/var/run", 5432),)}),
        ("postgresql:///d?host=/tmp&port=6&user=u&password=a%2Bb+c", {"hosts": (("/tmp", 6),), "password": "a+b+c"}),
        (
            f"{HOST}?application_name=x&options=-c%20jit%3Don",
            {"startup": {"application_name": "x", "options": "-c jit=on"}},
        ),
        (HOST, {"startup": {"application_name": "datastorage"}}),
        (f"{HOST}?connect_timeout=1", {"connect_seconds": 2}),  # as libpq has it
        (f"{HOST}?connect_timeout=0", {"connect_seconds": 0}),
        (f"{HOST}?connect_timeout=7", {"connect_seconds": 7}),
        (HOST, {"connect_seconds": None}),
        (
            f"{HOST}?target_session_attrs=read-write&load_balance_hosts=random",
            {"session": "read-write", "shuffled": True},
        ),
        (HOST, {"socket_options": ((socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),)}),
        (f"{HOST}?keepalives=0", {"socket_options": ()}),
        (
            f"{HOST}?keepalives=0&tcp_user_timeout=9&keepalives_count=3",
            {
                "socket_options": (
                    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
                    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 9),
                )
            },
        ),
        (f"{HOST}?sslmode=disable", {"context": None}),
        (f"{HOST}?sslrootcert=system", {"sslmode": "verify-full"}),
        (f"{HOST}?sslnegotiation=direct&sslmode=require", {"direct_tls": True}),
        (f"{HOST}?channel_binding=prefer&gssencmode=disable&krbsrvname=pg", {"kerberos": {"krbsrvname": "pg"}}),
    ],
)
def test_meaning(url: str, expected: dict[str, Any]) -> None:
    """A parameter means something else than to libpq."""
    target = parse(url, {})
    assert {name: getattr(target, name) for name in expected} == expected


def test_variables_of_libpq() -> None:
    """They are ignored, or win against the URL; HOME is asked."""
    environment = {"PGHOST": "other", "PGPORT": "7", "PGUSER": "v", "PGPASSWORD": "w", "PGSSLMODE": "disable"}
    target = parse("postgresql://u@/d", environment)
    assert (target.hosts, target.user, target.password, target.sslmode) == ((("other", 7),), "u", "w", "disable")
    assert parse(HOST, environment).password == "p"
    assert parse("postgresql://u@h/d", {"HOME": "/root"}).passfile == "/dev/null/none"
    assert ": PGPASSFILE: cannot read /nowhere/pass" in refusal(HOST, PGPASSFILE="/nowhere/pass")
    assert "PGSERVICE: this service's driver cannot" in refusal(HOST, PGSERVICE="x")
    assert "sslmode of the database's URL: expected" in refusal(f"{HOST}?sslmode=on", PGSSLMODE="require")
    assert "sslrootcert of the database's URL: verify-ca needs" in refusal(HOST, PGSSLMODE="verify-ca")


@pytest.mark.parametrize(
    ("parameters", "verify", "names"),
    [
        ("sslmode=allow", ssl.CERT_NONE, False),
        ("sslmode=require", ssl.CERT_NONE, False),
        ("sslmode=require&sslrootcert={ca}", ssl.CERT_REQUIRED, False),
        ("sslmode=verify-ca&sslrootcert={ca}", ssl.CERT_REQUIRED, False),
        ("sslmode=verify-full", ssl.CERT_REQUIRED, True),
        ("sslmode=verify-full&sslrootcert=system", ssl.CERT_REQUIRED, True),
        ("sslmode=verify-full&sslrootcert={ca}&sslcert={ca}&sslkey={key}", ssl.CERT_REQUIRED, True),
        ("sslmode=prefer&sslrootcert=/nowhere", ssl.CERT_NONE, False),
    ],
)
def test_tls(parameters: str, verify: ssl.VerifyMode, names: bool, tmp_path: Path) -> None:
    """A mode verifies less than its name promises, or the system's certificates count where a file is named."""
    Authority(tmp_path).write_pair(tmp_path, "client")
    files = {"ca": tmp_path / "tls.crt", "key": tmp_path / "tls.key"}
    context = parse(f"{HOST}?{parameters.format(**files)}", {}).context
    assert context is not None
    assert (context.verify_mode, context.check_hostname) == (verify, names)
    if "{ca}" in parameters and verify:
        assert context.cert_store_stats()["x509"] == 1


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        (
            "sslmode=verify-full&sslrootcert=/nowhere/ca.pem",
            "sslrootcert of the database's URL: cannot read /nowhere/ca.pem: No such",
        ),
        ("sslcert=/nowhere/c.pem", "sslcert of the database's URL: cannot read /nowhere/c.pem"),
        (
            "sslmode=verify-ca&sslrootcert=/etc/hostname",
            "sslrootcert of the database's URL: /etc/hostname has no certificate",
        ),
        ("sslmode=verify-ca&sslrootcert=system", "sslrootcert of the database's URL: system needs sslmode=verify-full"),
        ("sslmode=verify-ca", "sslrootcert of the database's URL: verify-ca needs one"),
        ("passfile=/nowhere/pass", "passfile of the database's URL: cannot read /nowhere/pass"),
        (
            "channel_binding=require",
            "channel_binding of the database's URL: this service's driver cannot do that, except disable or",
        ),
        ("gssencmode=require", "gssencmode of the database's URL: this service's driver cannot"),
        ("require_auth=scram-sha-256", "require_auth of the database's URL: this service's driver cannot"),
        ("service=x", "service of the database's URL: this service's driver cannot"),
        ("sslmode=on", "sslmode of the database's URL: expected one of disable, allow, prefer"),
        ("sslnegotiation=direct", "sslnegotiation of the database's URL: direct needs TLS"),
        ("target_session_attrs=master", "target_session_attrs of the database's URL: expected one of any"),
        ("connect_timeout=soon", "connect_timeout of the database's URL: expected a whole number"),
        ("port=1,2,3", "port of the database's URL: expected one, or one for each host"),
        ("ssl_min_protocol_version=SSLv3", "ssl_min_protocol_version of the database's URL: expected one of TLSv1"),
        (
            "search_path=x",
            "search_path of the database's URL: there is no such parameter; a setting of the server is set by options",
        ),
    ],
)
def test_refused_by_name(parameters: str, words: str) -> None:
    """What cannot be done is ignored, or refused in words that do not name it."""
    assert words in refusal(f"{HOST}?{parameters}")


def test_no_account(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an account in passwd a URL without a user ends in a traceback."""

    def none() -> str:
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.setattr("getpass.getuser", none)
    assert "user of the database's URL: there is none" in refusal("postgresql://h/d")


@pytest.mark.parametrize(
    "form", ["postgresql://user:{}@host/db", "postgresql://host/db?user=u&password={}&sslmode=disable"]
)
def test_no_piece_of_a_password_in_a_message(form: str) -> None:
    """A password that was not percent-encoded cuts the URL at one of its characters, and the rest is printed as a host or a name."""
    draw = random.Random(7)
    pieces = ["Secr", "et1", "Wort", "77", "%", "%zz", "%2F", "=", *string.punctuation, *string.punctuation]
    for _ in range(1_500):
        password = "".join(draw.choice(pieces) for _ in range(draw.randint(1, 9)))
        message = ""
        try:
            target = parse(form.format(password), {})
        except Fatal as error:
            message = error.detail
        else:
            assert target.hosts == (("host", 5432),), password  # else a message about the connection would name a piece
            assert target.password is not None
        assert not any(piece in message for piece in ("Secr", "et1", "Wort", "77")), (password, message)
        assert parse(form.format(quote(password, "")), {}).password == password


@pytest.mark.parametrize(
    "command",
    [
        ["migrate"],
        ["verify"],
        ["retention", "plan"],
        ["retention", "run"],
        ["erase", "--actor", "a", "--reason", "r", "--by", "b"],
        ["spool", "replay", "."],
    ],
    ids=" ".join,
)
def test_no_command_prints_a_password(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One command reads URLs by code of its own, prints a piece of the password, or does not say which server has failed."""
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spool.sqlite3").touch()
    for login, words in (("u:Secr/et#1", "with percent-encoding for characters"), ("u:hunter2", "127.0.0.1:1: ")):
        monkeypatch.setenv("DATASTORAGE_DATABASE_URL", f"postgresql://{login}@127.0.0.1:1/d")
        monkeypatch.setattr("sys.argv", ["datastorage", *command])
        assert cli.main() in {1, 2}
        printed = "".join(capfd.readouterr())
        assert words in printed
        assert not any(piece in printed for piece in ("Secr", "et#1", "hunter2", "Traceback"))
