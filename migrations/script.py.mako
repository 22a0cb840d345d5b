"""${message}"""

from alembic import op

revision = "${up_revision}"
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Say here what the migration guarantees, and whether it runs before (pre) or after (post) the new code."""
    ${upgrades if upgrades else "op.execute('')"}
