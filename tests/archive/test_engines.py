"""Others read the archive: pyiceberg by its own catalog, pyarrow the files that it lists, and anything the Parquet files."""

from pathlib import Path

import duckdb
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyiceberg.catalog.sql import SqlCatalog
from sqlalchemy.engine import make_url

from app.archive import run
from tests.archive.archived import ALL, NOW, OLD, OLDER, Connection, fill, folder_of, parts_of, settings_of


async def test_others_read_it(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """The catalog is not one that others know, or they see other rows than the API shows."""
    await fill(connection)
    settings = settings_of(database_url, tmp_path)
    await run.run(settings, NOW, ALL)
    url = make_url(database_url).set(drivername="postgresql+psycopg2")
    catalog = SqlCatalog("datastorage", uri=url.render_as_string(hide_password=False), init_catalog_tables="false")
    try:
        assert catalog.list_tables("audit") == [("audit", "events")]
        table = catalog.load_table("audit.events")
        assert table.scan().to_arrow().num_rows == 600
        wanted = f"correlation_id = 'rr-{OLD:%m}-1' and event_timestamp >= '{OLD.isoformat()}'"
        found = table.scan(row_filter=wanted).to_arrow()
        known = await connection.fetch(
            "SELECT event_id, actor_id, duration_ms FROM audit_events WHERE correlation_id = $1 AND event_timestamp >= $2"
            " ORDER BY event_timestamp, log_index",
            *(f"rr-{OLD:%m}-1", OLD),
        )
        assert found.select(["event_id", "actor_id", "duration_ms"]).to_pylist() == [dict(row) for row in known]
        assert len(known) > 100
        listed = [task.file.file_path.removeprefix("file://") for task in table.scan(row_filter=wanted).plan_files()]
    finally:
        catalog.engine.dispose()
    assert listed == [
        f"{folder_of((await parts_of(settings))[1])}/events-0.parquet"
    ]  # the other month's is not looked at
    assert ds.dataset(listed).count_rows(ds.field("correlation_id") == f"rr-{OLD:%m}-1") == 150


async def test_duckdb_reads_it(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """DuckDB counts other events, or answers an auditor's question otherwise than Postgres does."""
    await fill(connection)
    settings = settings_of(database_url, tmp_path)
    await run.run(settings, NOW, ALL)
    files = [f"{folder_of(part)}/events-0.parquet" for part in await parts_of(settings)]
    question = (
        "SELECT correlation_id, {address} AS address, count(*), {microseconds}, sum(CAST(event_data->>'b' AS double precision))"
        " FROM {events} WHERE severity = 'info' OR severity IS NULL GROUP BY 1, 2"
    )
    of_postgres = question.format(
        address="host(actor_ip)",
        microseconds="CAST(extract(epoch FROM min(event_timestamp)) * 1000000 AS bigint)",
        events=f"(SELECT * FROM audit_events WHERE correlation_id SIMILAR TO 'rr-({OLD:%m}|{OLDER:%m})-_') archived",
    )
    of_duckdb = question.format(
        address="actor_ip", microseconds="epoch_us(min(event_timestamp))", events="read_parquet($files)"
    )
    known = {tuple(row) for row in await connection.fetch(of_postgres)}
    with duckdb.connect() as engine:
        found = engine.execute(of_duckdb, {"files": files}).fetchall()
    assert len(found) == 12
    assert set(found) == known


async def test_statistics(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """One correlation reads all of a month; or files carry the longest payloads once more, as statistics."""
    await fill(connection)
    settings = settings_of(database_url, tmp_path)
    await run.run(settings, NOW, ALL)
    group = pq.read_metadata(folder_of((await parts_of(settings))[0]) / "events-0.parquet").row_group(0)
    columns = {group.column(number).path_in_schema: group.column(number) for number in range(group.num_columns)}
    without = {name for name, column in columns.items() if column.statistics is None}
    assert without == {
        *("error_message", "previous_event_hash", "payload_salt", "payload_commitment", "event_metadata", "event_data")
    }
    assert columns["correlation_id"].statistics.min < columns["correlation_id"].statistics.max
    assert {column.compression for column in columns.values()} == {"ZSTD"}
    assert [one.column_index for one in group.sorting_columns] == [10, 4, 1]
