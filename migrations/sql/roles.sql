-- Roles for an installation that wants more than one. Run it with psql as a superuser, or as the tables' owner if that one may
-- create roles, after every `datastorage migrate`: it can be run again. Then give the two that log in a password:
--
--   datastorage_service    DATASTORAGE_DATABASE_URL   reads and writes events; cannot change or delete one, nor own, drop or
--                                                     truncate a table, nor switch off a trigger
--   datastorage_retention  DATASTORAGE_RETENTION_URL  purges and erases, as a member of the owner: only for `datastorage
--                                                     retention`, `datastorage erase` and `datastorage archive`
--   datastorage_owner      nobody logs in with it     owns the tables, if a superuser would otherwise
DO $$
DECLARE
    role text;
    owner text;
    object text;
BEGIN
    FOREACH role IN ARRAY ARRAY['datastorage_service', 'datastorage_retention'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
            EXECUTE format('CREATE ROLE %I LOGIN', role);
        END IF;
    END LOOP;

    -- What a superuser owns would be run and changed with a superuser's rights.
    SELECT rolname INTO owner FROM pg_class JOIN pg_roles r ON r.oid = relowner
    WHERE pg_class.oid = 'audit_events'::regclass AND NOT rolsuper;
    IF owner IS NULL THEN
        owner := 'datastorage_owner';
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = owner) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', owner);
        END IF;
        EXECUTE format('GRANT USAGE, CREATE ON SCHEMA %I TO %I', current_schema(), owner);
    END IF;
    FOR object IN
        SELECT format('TABLE %s', oid::regclass) FROM pg_class
        WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p', 'v')
        UNION ALL
        SELECT format('FUNCTION %s', oid::regprocedure) FROM pg_proc
        WHERE pronamespace = current_schema()::regnamespace AND prokind = 'f'
        UNION ALL
        SELECT format('TYPE %s', 'flush_row'::regtype)
    LOOP
        EXECUTE format('ALTER %s OWNER TO %I', object, owner);
    END LOOP;
    EXECUTE format('GRANT %I TO datastorage_retention', owner);

    EXECUTE format('GRANT USAGE ON SCHEMA %I TO datastorage_service', current_schema());
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA %I TO datastorage_service', current_schema());
    EXECUTE format('GRANT USAGE ON ALL SEQUENCES IN SCHEMA %I TO datastorage_service', current_schema());
    GRANT EXECUTE ON FUNCTION ensure_partitions(date, date), write_policy(uuid) TO datastorage_service;
    -- A month is reached through its parent only.
    FOR object IN SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'audit_events'::regclass LOOP
        EXECUTE format('REVOKE ALL ON %s FROM datastorage_service', object);
    END LOOP;
    REVOKE UPDATE, DELETE ON audit_events, log_flushes, notification_audit FROM datastorage_service;
    GRANT UPDATE (legal_hold, legal_hold_reason, legal_hold_placed_by, legal_hold_placed_at)
        ON audit_events TO datastorage_service;
    REVOKE DELETE ON chain_heads, holds, adoptions, log_timestamps FROM datastorage_service;
    REVOKE INSERT, UPDATE, DELETE ON logs, alembic_version, schema_min_writer, audit_retention_policies, retention_operations,
        iceberg_tables, iceberg_namespace_properties, archive_attempts FROM datastorage_service;
END
$$;
