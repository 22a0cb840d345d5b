"""Connections by a database's URL: TLS as sslmode has it, several hosts, socket options, and whose words an error has."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from app.database_url import CannotConnect, connect, reason
from tests.certificates import Authority
from tests.databases import name_of
from tests.pgbouncer import needs_pgbouncer, pgbouncer
from tests.proxy import proxy


async def tls_used(url: str) -> bool:
    connection: Any = await connect(url, seconds=5)
    try:
        assert await connection.fetchval("SELECT 1") == 1
        return connection._transport.get_extra_info("ssl_object") is not None
    finally:
        await connection.close()


@needs_pgbouncer
async def test_tls(database_url: str, tmp_path: Path) -> None:
    """A mode encrypts or verifies less than it says, or does not work with a certificate that is right."""
    authority = Authority(tmp_path)
    authority.write_pair(tmp_path, "server")
    tls: dict[str, Any] = {"listen_addr": "127.0.0.1,127.0.0.2"}
    tls |= {"client_tls_key_file": "tls.key", "client_tls_cert_file": "tls.crt", "client_tls_ca_file": "ca.crt"}
    ca = f"sslrootcert={authority.path}"
    with pgbouncer(database_url, files=tmp_path, client_tls_sslmode="require", **tls) as pooler:
        address = pooler.url.partition("?")[0]
        for works in (
            "",
            "?sslmode=prefer",
            "?sslmode=allow",
            "?sslmode=require",
            f"?sslmode=require&{ca}",
            f"?sslmode=verify-full&{ca}",
        ):
            assert await tls_used(address + works), works
        for fails in ("?sslmode=verify-full", "?sslrootcert=system"):
            with pytest.raises(CannotConnect, match=r"127\.0\.0\.1:\d+: .*certificate verify failed"):
                await tls_used(address + fails)
        with pytest.raises((CannotConnect, asyncpg.PostgresError), match="SSL required"):
            await tls_used(address + "?sslmode=disable")
        other_name = address.replace("127.0.0.1", "127.0.0.2")
        assert await tls_used(f"{other_name}?sslmode=verify-ca&{ca}")
        with pytest.raises(CannotConnect, match=r"IP address mismatch"):
            await tls_used(f"{other_name}?sslmode=verify-full&{ca}")
    with pgbouncer(database_url, files=tmp_path, client_tls_sslmode="verify-full", **tls) as pooler:
        address = pooler.url.partition("?")[0]
        pair = f"sslcert={tmp_path / 'tls.crt'}&sslkey={tmp_path / 'tls.key'}"
        assert await tls_used(f"{address}?sslmode=verify-full&{ca}&{pair}")
        with pytest.raises((OSError, asyncpg.PostgresError, asyncpg.InterfaceError)):
            await tls_used(f"{address}?sslmode=verify-full&{ca}")
    with pgbouncer(database_url) as pooler:
        address = pooler.url.partition("?")[0]
        assert not await tls_used(address)
        with pytest.raises(CannotConnect, match="rejected SSL upgrade"):
            await tls_used(address + "?sslmode=require")


async def test_several_hosts(database_url: str) -> None:
    """One host that is away, or that does not answer, is the end of the search; or a server of the wrong kind is used."""
    async with proxy(database_url) as one, proxy(database_url) as two:
        url = (
            two.url.replace("@", f"@127.0.0.1:1,{one.url.partition('@')[2].partition('/')[0]},") + "&connect_timeout=2"
        )
        one.silent = True
        connection = await connect(url, seconds=60)
        await connection.close()
        two.silent = True
        with pytest.raises(CannotConnect) as failed:
            await connect(url, seconds=60)
        assert str(failed.value).startswith("127.0.0.1:1: ")
        assert str(failed.value).count("no answer within 2 s") == 2
        two.silent = False
        with pytest.raises(CannotConnect, match="None of the hosts match the target attribute"):
            await connect(two.url + "&target_session_attrs=standby", seconds=60)
        for any_of in ("primary", "read-write", "prefer-standby"):
            await (await connect(f"{two.url}&target_session_attrs={any_of}", seconds=60)).close()


async def test_host_that_answers_nothing(database_url: str) -> None:
    """A frozen host, first in the URL, hides the one that has taken over for as long as a connection may take."""
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        async with proxy(database_url) as between, asyncio.timeout(60):
            address = f"127.0.0.1:{frozen.getsockname()[1]},{between.url.partition('://')[2].rpartition('@')[2]}"
            login = between.url.partition("://")[2].rpartition("@")[0]
            connection = await connect(f"postgresql://{login + '@' if login else ''}{address}", seconds=600)
            assert await connection.fetchval("SELECT 1") == 1
            await connection.close()


async def test_parameters_reach_the_server_and_the_socket(database_url: str) -> None:
    """application_name, options or keepalives of the URL are lost."""
    async with proxy(database_url) as between:
        url = f"{between.url}&application_name=mine&options=-c%20geqo%3Doff&keepalives_idle=7&tcp_user_timeout=9000"
        connection: Any = await connect(url, seconds=60, session={"jit": "off"})
        try:
            settings = [await connection.fetchval(f"SHOW {name}") for name in ("application_name", "geqo", "jit")]
            assert settings == ["mine", "off", "off"]
            sock = connection._transport.get_extra_info("socket")
            options = ((socket.SOL_SOCKET, socket.SO_KEEPALIVE), (6, socket.TCP_KEEPIDLE), (6, socket.TCP_USER_TIMEOUT))
            assert [sock.getsockopt(*option) for option in options] == [1, 7, 9000]
        finally:
            await connection.close()


async def test_words_of_the_server(database_url: str) -> None:
    """A wrong role or database is told as if the server were away, or without saying which server."""
    async with proxy(database_url) as between:
        place = between.url.partition("@")[2].partition("/")[0]
        for url, words in (
            (
                between.url.replace(name_of(database_url), "nothing"),
                'database "nothing" does not exist',
            ),
            (f"postgresql://nobody@{place}/postgres?sslmode=disable", '"nobody"'),
        ):
            with pytest.raises(asyncpg.PostgresError) as failed:
                await connect(url, seconds=60)
            assert reason(failed.value).startswith(f"{place}: ")
            assert words in reason(failed.value)
