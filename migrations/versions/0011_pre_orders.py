"""Holds and retention policies as the log records them: what differs in the tables is not followed."""

from pathlib import Path

from alembic import op

revision = "0011_pre_orders"
down_revision = "0010_pre_logs"
branch_labels = None
depends_on = None

SCRIPT = Path(__file__).parent.parent / "sql" / "0011_orders.sql"


def upgrade() -> None:
    """Quick: functions are replaced, and one small table is made. No event is read."""
    driver = op.get_bind().connection.dbapi_connection
    assert driver is not None, "migrations run on a live connection"
    # The driver's own call: it takes several statements at once, and no colon in them is a parameter.
    driver.run_async(lambda postgres: postgres.execute(SCRIPT.read_text("utf-8")))
