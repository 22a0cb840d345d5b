"""Findings are never purged."""

from pathlib import Path

from alembic import op

revision = "0008_pre_finding"
down_revision = "0007_pre_notification"
branch_labels = None
depends_on = None

SCRIPT = Path(__file__).parent.parent / "sql" / "0008_finding.sql"


def upgrade() -> None:
    """Quick: a function is replaced."""
    driver = op.get_bind().connection.dbapi_connection
    assert driver is not None, "migrations run on a live connection"
    # The driver's own call: it takes several statements at once, and no colon in them is a parameter.
    driver.run_async(lambda postgres: postgres.execute(SCRIPT.read_text("utf-8")))
