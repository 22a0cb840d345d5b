"""A delete looks for the hold of a row only while there are holds."""

from pathlib import Path

from alembic import op

revision = "0018_pre_quick_deletes"
down_revision = "0017_pre_expiry"
branch_labels = None
depends_on = None

SCRIPT = Path(__file__).parent.parent / "sql" / "0018_quick_deletes.sql"


def upgrade() -> None:
    """Quick: one function is replaced."""
    driver = op.get_bind().connection.dbapi_connection
    assert driver is not None, "migrations run on a live connection"
    # The driver's own call: it takes several statements at once, and no colon in them is a parameter.
    driver.run_async(lambda postgres: postgres.execute(SCRIPT.read_text("utf-8")))
