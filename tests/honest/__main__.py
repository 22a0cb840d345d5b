"""`python -m tests.honest --hours 24`: honest traffic raises no alarm. Prints what happened; exit code 1 if something was wrong."""

import argparse
import asyncio
import sys

from tests import databases
from tests.honest.run import run

parser = argparse.ArgumentParser(prog="python -m tests.honest", description=__doc__)
parser.add_argument("--hours", type=float, default=1.0)
hours = parser.parse_args().hours
with databases.server() as server:
    url = asyncio.run(databases.create(server))
    try:
        outcome = run(server, url, hours)
    finally:
        asyncio.run(databases.drop(server, url))
sys.stdout.write("\n".join([*outcome.loss, outcome.verification, str(outcome.acts), *outcome.alarms, ""]))
missing = {"purged", "erased"} - {word for word in ("purged", "erased") if outcome.number(f"{word}: ([0-9,]+)")}
sys.exit(bool(outcome.alarms or missing))
