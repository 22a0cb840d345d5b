"""Counts of events that follow the log."""

from pathlib import Path

from alembic import op

revision = "0006_pre_rollup"
down_revision = "0005_pre_verify"
branch_labels = None
depends_on = None

SCRIPT = Path(__file__).parent.parent / "sql" / "0006_rollup.sql"


def upgrade() -> None:
    """Quick: the tables are new and empty, and a worker fills them. Writing waits while the triggers are made."""
    driver = op.get_bind().connection.dbapi_connection
    assert driver is not None, "migrations run on a live connection"
    # The driver's own call: it takes several statements at once, and no colon in them is a parameter.
    driver.run_async(lambda postgres: postgres.execute(SCRIPT.read_text("utf-8")))
