"""Events, the log, chain heads, claims, notifications and retention: tables, triggers, functions and first rows."""

from pathlib import Path
from uuid import uuid4

import sqlalchemy as sa
from alembic import context, op

revision = "0001_pre_foundation"
down_revision = None
branch_labels = None
depends_on = None

SQL = Path(__file__).parent.parent / "sql"
STEPS = ("tables", "functions", "triggers", "rows")


def upgrade() -> None:
    """One transaction. The log's name is part of every hash: it is written here and never again."""
    bind = op.get_bind()
    driver = bind.connection.dbapi_connection
    assert driver is not None, "migrations run on a live connection"
    for step in STEPS:
        script = (SQL / f"0001_{step}.sql").read_text("utf-8")
        # The driver's own call: it takes several statements at once, and no colon in them is a parameter.
        driver.run_async(lambda postgres, script=script: postgres.execute(script))
    name = context.config.attributes.get("log_name") or f"datastorage.local/{uuid4()}"
    bind.execute(sa.text("INSERT INTO logs (log_id, name) VALUES (0, :name)"), {"name": name})
