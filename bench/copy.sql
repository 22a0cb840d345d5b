-- name: tables
-- Two tables like audit_events, partitioned as it is: one with the key only, one with all of its indexes. No triggers.
DO $$
DECLARE
    partition record;
    copy text;
BEGIN
    CREATE TABLE audit_events_bench_key (LIKE audit_events INCLUDING ALL EXCLUDING INDEXES) PARTITION BY RANGE (event_date);
    ALTER TABLE audit_events_bench_key ADD PRIMARY KEY (event_id, event_date, correlation_id);
    CREATE TABLE audit_events_bench_indexed (LIKE audit_events INCLUDING ALL) PARTITION BY RANGE (event_date);
    FOREACH copy IN ARRAY ARRAY['audit_events_bench_key', 'audit_events_bench_indexed'] LOOP
        FOR partition IN
            SELECT c.relname AS name, pg_get_expr(c.relpartbound, c.oid) AS bound
            FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
            WHERE i.inhparent = 'audit_events'::regclass
        LOOP
            EXECUTE format('CREATE TABLE %I PARTITION OF %I %s', copy || '_' || partition.name, copy, partition.bound);
        END LOOP;
    END LOOP;
END
$$

-- name: size
-- Rows that the service has stored.
SELECT count(*) FROM audit_events

-- name: analyze
-- Statistics as autovacuum would have made them; and nothing is left for it to do while queries are measured.
VACUUM ANALYZE audit_events
