"""Digests of notifications: the salt of each, and where the log has it."""

from pathlib import Path

from alembic import op

revision = "0007_pre_notification"
down_revision = "0006_pre_rollup"
branch_labels = None
depends_on = None

SCRIPT = Path(__file__).parent.parent / "sql" / "0007_notification.sql"


def upgrade() -> None:
    """Quick: the columns are added without a rewrite of the table."""
    driver = op.get_bind().connection.dbapi_connection
    assert driver is not None, "migrations run on a live connection"
    # The driver's own call: it takes several statements at once, and no colon in them is a parameter.
    driver.run_async(lambda postgres: postgres.execute(SCRIPT.read_text("utf-8")))
