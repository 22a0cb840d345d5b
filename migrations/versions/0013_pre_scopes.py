"""Counts by cluster and namespace, and of every log."""

from pathlib import Path

from alembic import op

revision = "0013_pre_scopes"
down_revision = "0012_pre_filters"
branch_labels = None
depends_on = None

SCRIPT = Path(__file__).parent.parent / "sql" / "0013_scopes.sql"


def upgrade() -> None:
    """Quick: a worker makes all counts anew, and until then lists count rows. Writing waits while a trigger is made, and in a database
    with a second log while an index is, for which all tables are read once.
    """
    driver = op.get_bind().connection.dbapi_connection
    assert driver is not None, "migrations run on a live connection"
    # The driver's own call: it takes several statements at once, and no colon in them is a parameter.
    driver.run_async(lambda postgres: postgres.execute(SCRIPT.read_text("utf-8")))
