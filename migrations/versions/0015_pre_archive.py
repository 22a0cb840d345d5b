"""The catalog of the archive, and what a run of it has begun."""

from pathlib import Path

from alembic import op

revision = "0015_pre_archive"
down_revision = "0014_pre_sinks"
branch_labels = None
depends_on = None

SCRIPT = Path(__file__).parent.parent / "sql" / "0015_archive.sql"


def upgrade() -> None:
    """Quick: the tables are new and empty."""
    driver = op.get_bind().connection.dbapi_connection
    assert driver is not None, "migrations run on a live connection"
    # The driver's own call: it takes several statements at once, and no colon in them is a parameter.
    driver.run_async(lambda postgres: postgres.execute(SCRIPT.read_text("utf-8")))
