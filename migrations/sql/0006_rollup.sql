-- Counts of sealed events, made by a worker that follows the log (docs/decisions/0036). All of it is derived from the rows and can
-- be made again: deleting the rows of rollup_months is enough.

-- Up to which position of a log events have been counted, and the flush that ends there, by its position and its transaction.
CREATE TABLE rollups (
    log_id smallint PRIMARY KEY,
    position bigint NOT NULL,
    tail bigint,
    tail_xmin text
);
INSERT INTO rollups VALUES (0, 0);

-- Each roll-up, and whether that flush is still in the log. It is another one when the end of the log was removed, also if
-- something else was written there since.
CREATE VIEW rollup_progress AS
SELECT r.log_id, r.position, r.position = 0 OR EXISTS (
    SELECT FROM log_flushes f WHERE f.log_id = r.log_id AND f.first_index = r.tail AND f.xmin::text = r.tail_xmin
) AS is_same_log
FROM rollups r;

-- The monthly tables that have counts. `building` is the position up to which one is counted that is counted anew; NULL means
-- up to the roll-up's position.
CREATE TABLE rollup_months (
    month oid PRIMARY KEY,
    first_day date NOT NULL,
    identity text NOT NULL,
    building bigint
);

-- Counts by hours, days and months (`span` is h, d or m) of event_timestamp in UTC. Only `events` is ever updated, and no index
-- has it: with room in the page such an update writes no index.
CREATE TABLE rollup_counts (
    span text NOT NULL,
    start timestamptz NOT NULL,
    month oid NOT NULL,
    event_type varchar(100) NOT NULL,
    event_category varchar(50) NOT NULL,
    event_outcome varchar(20) NOT NULL,
    severity varchar(20),
    events bigint NOT NULL,
    UNIQUE NULLS NOT DISTINCT (span, start, month, event_type, event_category, event_outcome, severity)
) WITH (fillfactor = 80);

-- Sealed rows that were deleted or changed: -1 for what one was, 1 for what it is now. A month's counts are its rows at positions
-- that are counted, less the visible changes at these positions.
CREATE TABLE rollup_changes (
    month oid NOT NULL,
    log_index bigint NOT NULL,
    event_timestamp timestamptz NOT NULL,
    event_type varchar(100) NOT NULL,
    event_category varchar(50) NOT NULL,
    event_outcome varchar(20) NOT NULL,
    severity varchar(20),
    events smallint NOT NULL
);

-- Its rows are told where they are: a trigger for statements would miss those that name a month's table. Runs as its owner, since
-- whoever may delete a row need not have rights here. A row that moves to another month is deleted there, inserted here, and
-- changed nowhere: what it is now is recorded before.
CREATE FUNCTION audit_events_record_change() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF TG_WHEN = 'AFTER' AND OLD.log_index >= 0 THEN
        INSERT INTO rollup_changes VALUES (TG_RELID, OLD.log_index, OLD.event_timestamp, OLD.event_type, OLD.event_category,
            OLD.event_outcome, OLD.severity, -1);
    END IF;
    IF TG_OP = 'UPDATE' AND NEW.log_index >= 0 THEN
        INSERT INTO rollup_changes
        SELECT coalesce(m.month, TG_RELID), NEW.log_index, NEW.event_timestamp, NEW.event_type, NEW.event_category,
            NEW.event_outcome, NEW.severity, 1
        FROM (SELECT) one LEFT JOIN rollup_tables m
            ON TG_WHEN = 'BEFORE' AND m.first_day = date_trunc('month', NEW.event_date::timestamp);
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER record_deleted AFTER DELETE ON audit_events FOR EACH ROW
    WHEN (OLD.log_index >= 0)
    EXECUTE FUNCTION audit_events_record_change();
CREATE TRIGGER record_changed
    AFTER UPDATE OF log_index, event_timestamp, event_type, event_category, event_outcome, severity ON audit_events FOR EACH ROW
    WHEN (
        (OLD.log_index >= 0 OR NEW.log_index >= 0)
        AND (OLD.log_index, OLD.event_timestamp, OLD.event_type, OLD.event_category, OLD.event_outcome, OLD.severity)
            IS DISTINCT FROM
            (NEW.log_index, NEW.event_timestamp, NEW.event_type, NEW.event_category, NEW.event_outcome, NEW.severity)
    )
    EXECUTE FUNCTION audit_events_record_change();
CREATE TRIGGER record_moved BEFORE UPDATE OF event_date ON audit_events FOR EACH ROW
    WHEN (
        NEW.log_index >= 0
        AND date_trunc('month', OLD.event_date::timestamp) <> date_trunc('month', NEW.event_date::timestamp)
    )
    EXECUTE FUNCTION audit_events_record_change();
-- Also in a session whose ordinary triggers are off.
ALTER TABLE audit_events ENABLE ALWAYS TRIGGER record_deleted;
ALTER TABLE audit_events ENABLE ALWAYS TRIGGER record_changed;
ALTER TABLE audit_events ENABLE ALWAYS TRIGGER record_moved;

-- The attached monthly tables, and what each is known by. The identity is another one after a TRUNCATE, after a table was detached
-- and attached again, and after a trigger was switched off for however short a time; it is NULL while something of it is missing.
CREATE VIEW rollup_tables AS
SELECT c.oid AS month,
    CASE WHEN c.relname ~ '^audit_events_[0-9]{4}_[0-9]{2}$' THEN to_date(right(c.relname, 7), 'YYYY_MM') END AS first_day,
    CASE WHEN c.relname ~ '^audit_events_[0-9]{4}_[0-9]{2}$' AND t.triggers = 3
        THEN concat_ws(' ', c.relfilenode, t.identity) END AS identity
FROM pg_inherits i
JOIN pg_class c ON c.oid = i.inhrelid
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE tgenabled = 'A') AS triggers,
        string_agg(concat_ws(':', oid, xmin, tgenabled), ' ' ORDER BY tgname) AS identity
    FROM pg_trigger
    WHERE tgrelid = c.oid AND tgname IN ('record_deleted', 'record_changed', 'record_moved')
) t
WHERE i.inhparent = 'audit_events'::regclass AND NOT i.inhdetachpending;

-- As before; and a new month, since it is empty, has all its counts.
CREATE OR REPLACE FUNCTION ensure_partitions(first_day date, last_day date) RETURNS integer
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
        INSERT INTO rollup_months
        SELECT t.month, t.first_day, t.identity FROM rollup_tables t
        WHERE t.month = to_regclass(partition) AND t.identity IS NOT NULL;
        made := made + 1;
    END LOOP;
    RETURN made;
END
$$;

-- Positions are given again when flushes are lost that lie before others (docs/decisions/0034): what was counted there is not what is
-- there then. No flush is deleted or changed but by somebody who damages the log. Inserting one fires nothing.
CREATE FUNCTION log_flushes_record_loss() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    UPDATE rollups SET tail_xmin = NULL;
    RETURN NULL;
END
$$;
CREATE TRIGGER record_loss AFTER DELETE OR UPDATE OR TRUNCATE ON log_flushes
    FOR EACH STATEMENT EXECUTE FUNCTION log_flushes_record_loss();
ALTER TABLE log_flushes ENABLE ALWAYS TRIGGER record_loss;

-- No table of a caller's may stand in for the real ones, and nobody else may hang what runs as its owner on a table of his own, if only
-- a temporary one. Whoever migrates may be another role than the owner of the events, as which ensure_partitions() runs: months have
-- to be made before roles.sql is run again.
DO $$
DECLARE
    owner regrole := (SELECT relowner FROM pg_class WHERE oid = 'audit_events'::regclass);
    object text;
BEGIN
    EXECUTE format('ALTER FUNCTION ensure_partitions(date, date) SET search_path = %I, pg_temp', current_schema());
    FOREACH object IN ARRAY ARRAY['audit_events_record_change()', 'log_flushes_record_loss()'] LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', object, current_schema());
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', object);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %s', object, owner);
    END LOOP;
    EXECUTE format('GRANT ALL ON rollups, rollup_progress, rollup_months, rollup_counts, rollup_changes, rollup_tables TO %s', owner);
END
$$;

-- The oldest release that may write to this schema, by the last migration that it knows. A later migration that it would write wrongly
-- after raises it.
CREATE TABLE schema_min_writer (revision text NOT NULL);
INSERT INTO schema_min_writer VALUES ('0005_pre_verify');
