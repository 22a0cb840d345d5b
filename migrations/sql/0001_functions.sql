-- The advisory lock of a correlation, for programs that write by the platform's older rules: the first eight bytes of
-- the SHA-256 of its UTF-8, as a signed number.
CREATE FUNCTION audit_event_lock_id(correlation_id text) RETURNS bigint
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT ('x' || encode(substr(sha256(convert_to(correlation_id, 'UTF8')), 1, 8), 'hex'))::bit(64)::bigint
$$;

-- Whether a flush won the compare-and-set on the log. One that won must have written all its chain heads: raising
-- here takes back everything that the statement wrote.
CREATE FUNCTION flush_guard(won bigint, heads_written bigint, heads_expected bigint) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    IF won = 1 AND heads_written IS DISTINCT FROM heads_expected THEN
        RAISE EXCEPTION 'flush wrote % chain heads of %', heads_written, heads_expected USING ERRCODE = 'DS001';
    END IF;
    RETURN won = 1;
END
$$;

-- Makes the monthly partitions that are missing between two days, and answers how many it made. A new table is made
-- beside the parent and attached, which lets reading and writing go on; it is empty, so that attaching scans nothing.
-- Runs as its owner: the role of the service need not own the table.
CREATE FUNCTION ensure_partitions(first_day date, last_day date) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET lock_timeout = '2s' AS $$
DECLARE
    month timestamp;
    partition text;
    made integer := 0;
BEGIN
    IF last_day - first_day > 7320 THEN
        RAISE EXCEPTION 'more than 20 years of partitions asked for: % to %', first_day, last_day
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM pg_advisory_xact_lock(audit_event_lock_id('datastorage:partitions'));
    FOR month IN
        SELECT generate_series(date_trunc('month', first_day::timestamp), last_day::timestamp, interval '1 month')
    LOOP
        -- With its schema: a temporary table of the caller's must not be taken for it.
        partition := format('%I.%I', current_schema(), 'audit_events_' || to_char(month, 'YYYY_MM'));
        CONTINUE WHEN EXISTS (
            SELECT FROM pg_inherits
            WHERE inhparent = 'audit_events'::regclass AND inhrelid = to_regclass(partition) AND NOT inhdetachpending
        );
        IF to_regclass(partition) IS NOT NULL THEN
            RAISE EXCEPTION 'table % exists but is no partition: a retention run was interrupted and has to finish', partition
                USING ERRCODE = 'object_not_in_prerequisite_state';
        END IF;
        EXECUTE format(
            'CREATE TABLE %s (LIKE audit_events INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE INCLUDING COMPRESSION)',
            partition
        );
        EXECUTE format(
            'ALTER TABLE audit_events ATTACH PARTITION %s FOR VALUES FROM (%L) TO (%L)',
            partition, to_char(month, 'YYYY-MM-DD'), to_char(month + interval '1 month', 'YYYY-MM-DD')
        );
        made := made + 1;
    END LOOP;
    RETURN made;
END
$$;
REVOKE EXECUTE ON FUNCTION ensure_partitions(date, date) FROM PUBLIC;
