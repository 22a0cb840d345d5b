"""Indexes of the remediation story: assessments, workflows created for a resource, notifications."""

from pathlib import Path

from alembic import op

revision = "0002_pre_story"
down_revision = "0001_pre_foundation"
branch_labels = None
depends_on = None

SCRIPT = Path(__file__).parent.parent / "sql" / "0002_story.sql"


def upgrade() -> None:
    """Writing waits while an index is built over what is stored; on a table of any size, migrate in a quiet hour."""
    driver = op.get_bind().connection.dbapi_connection
    assert driver is not None, "migrations run on a live connection"
    # The driver's own call: it takes several statements at once, and no colon in them is a parameter.
    driver.run_async(lambda postgres: postgres.execute(SCRIPT.read_text("utf-8")))
