"""Runs migrations on the connection that app.schema hands over; it holds the lock that keeps replicas apart."""

from alembic import context
from sqlalchemy import Connection, text

connection: Connection = context.config.attributes["connection"]
context.configure(connection=connection)
with context.begin_transaction():
    # A migration that has to wait for a lock makes everybody behind it wait too: give up, and be run again.
    connection.execute(text("SET LOCAL lock_timeout = '5s'"))
    connection.execute(text("SET LOCAL statement_timeout = '5min'"))
    context.run_migrations()
