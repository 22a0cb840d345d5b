"""An auditor's ten questions, asked of the archive by Spark and DuckDB: python -m tests.spark.check DIRECTORY [--remediations N], of check.sh.

Each answer has to be that of the API, from Postgres, to the row; after an erasure that has reached the archive too. The user by whom
both read the catalog may read nothing else. Prints a table; exit code 1 if an answer is another one. DIRECTORY contains `venv` and `jars`.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from pyiceberg.catalog.sql import SqlCatalog
from sqlalchemy.engine import URL

from app.embedded import EmbeddedPostgres
from app.settings import Settings
from tests.archive.archived import PEM, problems, settings_of
from tests.archive.audited import archive_all, erase_some, post_story
from tests.archive.questions import Answer, Rows, answers_of_api, answers_of_duckdb, view_and_questions
from tests.databases import connected, scratch
from tests.sealed import LOG
from tests.services import ROOT, free_port, spawn, stop, wait_until_ready
from tests.spark.cluster import local_cluster

_USER, _PASSWORD = "auditor", "not-to-be-logged-7f3a"


class SparkEnded(Exception):
    """The session ended before it answered."""


@dataclass(frozen=True)
class Engines:
    """What is asked, and where it finds the archive."""

    settings: Settings
    tools: Path
    master: str
    port: int
    parameters: Mapping[str, Any]

    def by_spark(self, session: "subprocess.Popen[str]") -> dict[int, Answer]:
        """The answers of the cluster."""
        questions = view_and_questions(self.parameters)[1]
        asked = [(one.number, one.sql, dict(one.parameters)) for one in questions]
        assert session.stdin is not None
        assert session.stdout is not None
        session.stdin.write(json.dumps(asked, default=str) + "\n")
        session.stdin.flush()
        line = session.stdout.readline()
        if not line:
            raise SparkEnded
        found = json.loads(line)
        print(f"Spark {found['version']}, tasks by executor: {found['tasks']}", flush=True)
        assert len([count for count in found["tasks"].values() if count]) > 1, "one worker did all"
        return {number: Answer(seconds, [tuple(row) for row in rows]) for number, seconds, rows in found["answers"]}

    @contextmanager
    def session(self, directory: Path) -> Iterator["subprocess.Popen[str]"]:
        """A session of the cluster, of the role that may read the catalog."""
        settings = {
            "master": self.master,
            "jars": ",".join(map(str, sorted((self.tools / "jars").glob("*.jar")))),
            "host": "127.0.0.1",
            "port": self.port,
            "database": "datastorage",
            "user": _USER,
            "password": _PASSWORD,
            "warehouse": self.settings.archive_url,
            "view": view_and_questions(self.parameters)[0],
        }
        environment = os.environ | {"TZ": "UTC", "SPARK_LOCAL_IP": "127.0.0.1", "SPARK_LOCAL_DIRS": str(directory)}
        log = directory / "session.log"
        with (
            log.open("wb") as output,
            subprocess.Popen(
                [self.tools / "venv" / "bin" / "python", ROOT / "tests" / "spark" / "ask.py"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=environment,
                text=True,
            ) as process,
        ):
            assert process.stdin is not None
            process.stdin.write(json.dumps(settings) + "\n")
            process.stdin.flush()
            try:
                yield process
            except SparkEnded:
                raise SystemExit(f"Spark has failed:\n{log.read_text()[-5000:]}") from None

    def by_duckdb(self) -> dict[int, Answer]:
        """The answers from the files that the catalog's table has."""
        url = URL.create("postgresql+psycopg2", _USER, _PASSWORD, "127.0.0.1", self.port, "datastorage")
        catalog = SqlCatalog("datastorage", uri=url.render_as_string(hide_password=False), init_catalog_tables="false")
        try:
            tasks = catalog.load_table("audit.events").scan().plan_files()
            return answers_of_duckdb([task.file.file_path.removeprefix("file://") for task in tasks], self.parameters)
        finally:
            catalog.engine.dispose()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.spark.check", description=__doc__)
    parser.add_argument("tools", type=Path, metavar="DIRECTORY")
    parser.add_argument("--remediations", type=int, default=300, help="in each of three months")
    options = parser.parse_args()
    [pyspark] = (options.tools / "venv").glob("lib/python3*/site-packages/pyspark")
    port = free_port()
    with (
        tempfile.TemporaryDirectory(prefix="datastorage-spark-") as name,
        scratch() as data,
        EmbeddedPostgres.start(data, tcp_port=port, durable=False) as postgres,
    ):
        directory = Path(name)
        (directory / "key.pem").write_text(PEM)
        settings = settings_of(postgres.url, directory)
        service = spawn(
            {"database_url": postgres.url, "unsafe_database": True, "migrate": True, "processes": 1}
            | {"checkpoint_key_file": directory / "key.pem", "log_name": LOG},
            directory / "service",
        )
        try:
            wait_until_ready(service)
            with httpx.Client(base_url=service.url, timeout=120) as api, local_cluster(pyspark, directory) as master:
                parameters = post_story(api, options.remediations)
                engines = Engines(settings, options.tools, master, port, parameters)
                differ = compare(engines, api, directory)
        finally:
            stop([service])
        seen = [path for path in directory.rglob("*") if path.is_file() and _PASSWORD.encode() in path.read_bytes()]
        print(f"files with the password: {seen}; answers that differ: {differ}")
    return 1 if differ or seen else 0


def compare(engines: Engines, api: httpx.Client, directory: Path) -> int:
    """Ask before and after an erasure, Spark in one session; how many answers are not the API's."""
    settings = engines.settings
    known = answers_of_api(api, engines.parameters)
    asyncio.run(erase_some(settings, known[8][0][0]))
    known = answers_of_api(api, engines.parameters)
    done = asyncio.run(archive_all(settings))
    asyncio.run(_let_read(settings))
    print(f"archived: {sum(part.events for part in done.parts)} events in {len(done.parts)} parts", flush=True)
    with engines.session(directory) as session:
        differ = show(engines, known, engines.by_spark(session), engines.by_duckdb())
        return differ + _after_erasure(engines, api, known, session)


def _after_erasure(
    engines: Engines, api: httpx.Client, known: Mapping[int, Rows], session: "subprocess.Popen[str]"
) -> int:
    settings = engines.settings
    asyncio.run(erase_some(settings, known[9][0][0], known[4][0][0], known[3][0][0]))
    known = answers_of_api(api, engines.parameters)
    done = asyncio.run(archive_all(settings))
    print(f"\nafter an erasure; parts that were written again: {len(done.rewritten)}", flush=True)
    differ = show(engines, known, engines.by_spark(session), engines.by_duckdb())
    assert asyncio.run(problems(settings)) == []
    return differ


async def _let_read(settings: Settings) -> None:
    """A role that can read the catalog, and nothing else."""
    assert settings.database_url is not None
    async with connected(settings.database_url.get_secret_value()) as connection:
        await connection.execute(f"CREATE ROLE {_USER} LOGIN PASSWORD '{_PASSWORD}'")
        await connection.execute(f"GRANT SELECT ON iceberg_tables, iceberg_namespace_properties TO {_USER}")


def show(
    engines: Engines, known: Mapping[int, Rows], by_spark: Mapping[int, Answer], by_duckdb: Mapping[int, Answer]
) -> int:
    """Print the table; how many answers are not as `known`."""
    titles = {one.number: one.title for one in view_and_questions(engines.parameters)[1]}
    differ = 0
    print("| question | rows | Spark, s | DuckDB, s | equal |\n|---|---|---|---|---|")
    for number, rows in known.items():
        answers = (by_spark[number], by_duckdb[number])
        equal = [answer.rows == rows for answer in answers]
        differ += equal.count(False)
        verdict = "yes" if all(equal) else f"Spark: {equal[0]}, DuckDB: {equal[1]}"
        seconds = " | ".join(f"{answer.seconds:.2f}" for answer in answers)
        print(f"| {number}. {titles[number]} | {len(rows)} | {seconds} | {verdict} |", flush=True)
        for answer in answers:
            print(*list(zip(answer.rows, rows, strict=False))[:2] if answer.rows != rows else (), sep="\n", end="")
    return differ


if __name__ == "__main__":
    sys.exit(main())
