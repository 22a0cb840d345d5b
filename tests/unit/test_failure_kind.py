"""The kind of failure that an error of the driver means."""

import asyncpg
import pytest

from app.db import FailureKind, failure_kind


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.InternalClientError("cannot switch to state 12; another operation (11) is in progress"),
        asyncpg.InterfaceError("connection is closed"),
        asyncpg.AdminShutdownError("terminating connection due to administrator command"),
        asyncpg.DiskFullError("could not extend file"),
        ConnectionResetError(),
    ],
)
def test_a_server_that_ends_is_away(error: Exception) -> None:
    """A flush that meets a server in the act of stopping is answered 500 rather than spooled."""
    assert failure_kind(error) is FailureKind.AWAY
