"""Tiles of the log, its checkpoints, and who signs them."""

from pathlib import Path

from alembic import op

revision = "0003_pre_tlog"
down_revision = "0002_pre_story"
branch_labels = None
depends_on = None

SCRIPT = Path(__file__).parent.parent / "sql" / "0003_tlog.sql"


def upgrade() -> None:
    """Quick: the tables are new and empty."""
    driver = op.get_bind().connection.dbapi_connection
    assert driver is not None, "migrations run on a live connection"
    # The driver's own call: it takes several statements at once, and no colon in them is a parameter.
    driver.run_async(lambda postgres: postgres.execute(SCRIPT.read_text("utf-8")))
