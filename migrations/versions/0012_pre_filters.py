"""Indexes by actor and by resource."""

from pathlib import Path

from alembic import op

revision = "0012_pre_filters"
down_revision = "0011_pre_orders"
branch_labels = None
depends_on = None

SCRIPT = Path(__file__).parent.parent / "sql" / "0012_filters.sql"


def upgrade() -> None:
    """As long as two indexes over all events take, while nobody writes: docs/operations.md says how to build them beforehand."""
    driver = op.get_bind().connection.dbapi_connection
    assert driver is not None, "migrations run on a live connection"
    # The driver's own call: it takes several statements at once, and no colon in them is a parameter.
    driver.run_async(lambda postgres: postgres.execute(SCRIPT.read_text("utf-8")))
