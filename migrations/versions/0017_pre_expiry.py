"""What the log records of parts of the archive that have expired, or whose files are locked, is never purged."""

from pathlib import Path

from alembic import op

revision = "0017_pre_expiry"
down_revision = "0016_pre_continue"
branch_labels = None
depends_on = None

SCRIPT = Path(__file__).parent.parent / "sql" / "0017_expiry.sql"


def upgrade() -> None:
    """Quick: one function is replaced."""
    driver = op.get_bind().connection.dbapi_connection
    assert driver is not None, "migrations run on a live connection"
    # The driver's own call: it takes several statements at once, and no colon in them is a parameter.
    driver.run_async(lambda postgres: postgres.execute(SCRIPT.read_text("utf-8")))
