"""Timestamps of checkpoints."""

from pathlib import Path

from alembic import op

revision = "0009_pre_timestamps"
down_revision = "0008_pre_finding"
branch_labels = None
depends_on = None

SCRIPT = Path(__file__).parent.parent / "sql" / "0009_timestamps.sql"


def upgrade() -> None:
    """Quick: the table is new and empty."""
    driver = op.get_bind().connection.dbapi_connection
    assert driver is not None, "migrations run on a live connection"
    # The driver's own call: it takes several statements at once, and no colon in them is a parameter.
    driver.run_async(lambda postgres: postgres.execute(SCRIPT.read_text("utf-8")))
