"""The log of a test's database."""

from app.events.log import Log

FIRST_LOG = Log(0, "test.example/datastorage")
