"""Raw COPY of the rows that the service would write, as its writer sends them: what Postgres can do at most.

Rows are made beforehand by the service's own code. They go in flushes of the writer's largest size, a COPY and a commit
each, over one connection with the writer's codecs. (The service itself mostly commits smaller flushes.)
"""

import re
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import orjson
from asyncpg import Connection, Record

from app.events import canonical
from app.ingest.accept import Acceptance, Event, draft, fix, single_id
from app.ingest.link import Head, link
from app.ingest.store import _CONSTANTS, COPY_COLUMNS
from app.settings import Settings
