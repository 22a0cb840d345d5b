"""Counts by one member of events alone, which histograms read."""

from pathlib import Path

from alembic import op

revision = "0019_pre_marginals"
down_revision = "0018_pre_quick_deletes"
branch_labels = None
depends_on = None

SCRIPT = Path(__file__).parent.parent / "sql" / "0019_marginals.sql"


def upgrade() -> None:
    """Quick: what was counted is added up, a second or two for ten million events. Nobody counts meanwhile; readers and writers go on."""
    driver = op.get_bind().connection.dbapi_connection
    assert driver is not None, "migrations run on a live connection"
    # The driver's own call: it takes several statements at once, and no colon in them is a parameter.
    driver.run_async(lambda postgres: postgres.execute(SCRIPT.read_text("utf-8")))
