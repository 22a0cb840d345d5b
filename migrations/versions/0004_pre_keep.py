"""Holds as records, triggers on every member of the record, erasure, bounds of retention."""

from pathlib import Path

from alembic import op

revision = "0004_pre_keep"
down_revision = "0003_pre_tlog"
branch_labels = None
depends_on = None

SCRIPT = Path(__file__).parent.parent / "sql" / "0004_keep.sql"


def upgrade() -> None:
    """Reads the table once, for the index of held rows; writing waits meanwhile."""
    driver = op.get_bind().connection.dbapi_connection
    assert driver is not None, "migrations run on a live connection"
    # The driver's own call: it takes several statements at once, and no colon in them is a parameter.
    driver.run_async(lambda postgres: postgres.execute(SCRIPT.read_text("utf-8")))
