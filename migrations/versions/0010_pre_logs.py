"""A log can be closed after a loss, and the next one be opened."""

from pathlib import Path

from alembic import op

revision = "0010_pre_logs"
down_revision = "0009_pre_timestamps"
branch_labels = None
depends_on = None

SCRIPT = Path(__file__).parent.parent / "sql" / "0010_logs.sql"


def upgrade() -> None:
    """Quick: columns with a constant default, and functions."""
    driver = op.get_bind().connection.dbapi_connection
    assert driver is not None, "migrations run on a live connection"
    # The driver's own call: it takes several statements at once, and no colon in them is a parameter.
    driver.run_async(lambda postgres: postgres.execute(SCRIPT.read_text("utf-8")))
