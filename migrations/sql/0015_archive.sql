-- The archive (docs/decisions/0065): the catalog of its table, as Java's JdbcCatalog and pyiceberg have it, and what a run has begun.
CREATE TABLE iceberg_tables (
    catalog_name varchar(255) NOT NULL,
    table_namespace varchar(255) NOT NULL,
    table_name varchar(255) NOT NULL,
    metadata_location varchar(1000),
    previous_metadata_location varchar(1000),
    iceberg_type varchar(5),
    PRIMARY KEY (catalog_name, table_namespace, table_name)
);

CREATE TABLE iceberg_namespace_properties (
    catalog_name varchar(255) NOT NULL,
    namespace varchar(255) NOT NULL,
    property_key varchar(255) NOT NULL,
    property_value varchar(1000),
    PRIMARY KEY (catalog_name, namespace, property_key)
);

-- A part that is being written. Its row goes in the transaction that records the part; where it stays, the run ended before, and the
-- next one deletes what it has written.
CREATE TABLE archive_attempts (
    archive_id uuid PRIMARY KEY,
    location text NOT NULL,
    began_at timestamptz NOT NULL DEFAULT now()
);

-- As before; and what the log records of the archive has no end.
CREATE OR REPLACE FUNCTION is_over(
    moment timestamptz, happened_at timestamptz, kind text, event_days integer, policy audit_retention_policies,
    floor_days integer, ceiling_days integer
) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT happened_at < moment - make_interval(days => LEAST(
        coalesce(policy.ceiling_days, ceiling_days),
        GREATEST(coalesce(policy.floor_days, floor_days), event_days, policy.retention_days)
    )) AND kind NOT IN (
        'datastorage.event.erased', 'datastorage.retention.restored',
        'datastorage.hold.placed', 'datastorage.hold.released', 'datastorage.hold.adopted',
        'datastorage.policy.set', 'datastorage.policy.removed',
        'datastorage.finding.recorded', 'datastorage.finding.acknowledged', 'datastorage.log.continued',
        'datastorage.archive.stored'
    )
$$;

DO $$
DECLARE
    owner regrole := (SELECT relowner FROM pg_class WHERE oid = 'audit_events'::regclass);
BEGIN
    EXECUTE format('GRANT ALL ON iceberg_tables, iceberg_namespace_properties, archive_attempts TO %s', owner);
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'datastorage_service') THEN
        GRANT SELECT ON iceberg_tables, iceberg_namespace_properties, archive_attempts TO datastorage_service;
    END IF;
END
$$;
