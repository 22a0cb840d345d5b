"""Run by the Python that has PySpark: one session of a cluster, which answers questions as long as some come on stdin, in lines of JSON.

In: a line with master, jars, host, port, database, user, password, warehouse and view; then lines of questions, each a list of
[number, sql, parameters], with times as RFC 3339. Out: for each of these a line with version, tasks by executor since the session began,
and answers as [number, seconds, rows].
"""

import json
import sys
import time
from datetime import UTC, date, datetime
from typing import Any

from pyspark.sql import SparkSession

_CATALOG = "spark.sql.catalog.datastorage"


def main() -> None:
    asked = json.loads(sys.stdin.readline())
    spark = connect(asked)
    try:
        spark.sql("CREATE TEMPORARY VIEW archived_events AS SELECT * FROM datastorage.audit.events")
        spark.sql(asked["view"])
        for line in sys.stdin:
            spark.sql("REFRESH TABLE datastorage.audit.events")  # a run of the archive may have replaced the files
            answers = [answer(spark, *question) for question in json.loads(line)]
            print(json.dumps({"version": spark.version, "tasks": tasks(spark), "answers": answers}), flush=True)
    finally:
        spark.stop()


def connect(asked: dict[str, Any]) -> SparkSession:
    settings = {
        "spark.jars": asked["jars"],
        "spark.driver.host": "127.0.0.1",
        "spark.driver.memory": "512m",
        "spark.executor.memory": "512m",
        "spark.executor.cores": "1",
        "spark.scheduler.minRegisteredResourcesRatio": "1.0",  # nothing begins before both workers have an executor
        "spark.sql.adaptive.enabled": "false",  # it would give all of so few rows to one of them
        "spark.sql.shuffle.partitions": "4",
        "spark.sql.session.timeZone": "UTC",
        "spark.ui.enabled": "false",
        _CATALOG: "org.apache.iceberg.spark.SparkCatalog",
        f"{_CATALOG}.type": "jdbc",
        f"{_CATALOG}.uri": f"jdbc:postgresql://{asked['host']}:{asked['port']}/{asked['database']}",
        f"{_CATALOG}.warehouse": asked["warehouse"],
    }
    builder = SparkSession.builder.master(asked["master"]).appName("questions")
    for name, value in settings.items():
        builder = builder.config(name, value)
    spark = builder.getOrCreate()
    # Not among the settings above, which are options of a command line.
    spark.conf.set(f"{_CATALOG}.jdbc.user", asked["user"])
    spark.conf.set(f"{_CATALOG}.jdbc.password", asked["password"])
    return spark


def answer(spark: SparkSession, number: int, sql: str, parameters: dict[str, str]) -> list[Any]:
    times = {name: datetime.fromisoformat(parameters[name]) for name in {"since", "until"} & parameters.keys()}
    started = time.perf_counter()
    rows = spark.sql(sql, args={**parameters, **times}).collect()
    seconds = time.perf_counter() - started
    return [number, seconds, [[plain(value) for value in row] for row in rows]]


def plain(value: Any) -> Any:
    """A value as JSON has it. PySpark gives times without a zone, in that of this process, which is UTC."""
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return value.isoformat() if isinstance(value, date) else value


def tasks(spark: SparkSession) -> dict[str, int]:
    """How many tasks each executor has done."""
    executors = spark.sparkContext._jsc.sc().statusStore().executorList(False)
    found = [executors.apply(number) for number in range(executors.size())]
    return {one.id(): one.completedTasks() for one in found if one.id() != "driver"}


main()
