-- Counts by cluster and namespace, and counts of every log of the database (docs/decisions/0051). All counts are made anew.

-- Up to which position of each log events have been counted, and the flush that ends there, by its position and its transaction. In a
-- closed log that has been counted whole, the position is the last one that a bigint has.
CREATE TABLE rollup_logs (
    log_id smallint PRIMARY KEY,
    position bigint NOT NULL,
    tail bigint,
    tail_xmin text
);

-- Each log, and whether that flush is still in it, or nothing is counted; NULL if the log has no counts, false if the counts have no log.
-- The flush is found as a value: with EXISTS Postgres may read all flushes.
CREATE VIEW rollup_log_progress AS
SELECT coalesce(l.log_id, r.log_id) AS log_id, r.position, r.log_id IS NOT NULL AND l.log_id IS NOT NULL AND (r.tail IS NULL OR (
        SELECT f.xmin::text = r.tail_xmin FROM log_flushes f WHERE f.log_id = r.log_id AND f.first_index = r.tail
    ) IS TRUE) AS is_same_log
FROM logs l FULL JOIN rollup_logs r ON r.log_id = l.log_id;

-- The release before this one can count neither: its worker finds the roll-up in use by somebody else, and its lists count rows.
DELETE FROM rollups;
CREATE OR REPLACE VIEW rollup_progress AS SELECT 0::smallint AS log_id, 0::bigint AS position, false AS is_same_log;
DELETE FROM rollup_months;
DELETE FROM rollup_counts;
DELETE FROM rollup_changes;

-- The log to which `building` belongs; those before it are counted.
ALTER TABLE rollup_months ADD COLUMN building_log smallint NOT NULL DEFAULT 0;

-- As rollup_counts, by what many namespaces leave few enough of.
CREATE TABLE rollup_scopes (
    span text NOT NULL,
    start timestamptz NOT NULL,
    month oid NOT NULL,
    cluster_id varchar(255),
    namespace varchar(253),
    event_outcome varchar(20) NOT NULL,
    is_self_event boolean NOT NULL,
    events bigint NOT NULL,
    UNIQUE NULLS NOT DISTINCT (span, start, month, cluster_id, namespace, event_outcome, is_self_event)
) WITH (fillfactor = 80);

ALTER TABLE rollup_changes ADD COLUMN cluster_id varchar(255), ADD COLUMN namespace varchar(253), ADD COLUMN log_id smallint;

CREATE OR REPLACE FUNCTION audit_events_record_change() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF TG_WHEN = 'AFTER' AND OLD.log_index >= 0 THEN
        INSERT INTO rollup_changes (month, log_id, log_index, event_timestamp, event_type, event_category, event_outcome, severity,
            cluster_id, namespace, events)
        VALUES (TG_RELID, OLD.log_id, OLD.log_index, OLD.event_timestamp, OLD.event_type, OLD.event_category, OLD.event_outcome,
            OLD.severity, OLD.cluster_id, OLD.namespace, -1);
    END IF;
    IF TG_OP = 'UPDATE' AND NEW.log_index >= 0 THEN
        INSERT INTO rollup_changes (month, log_id, log_index, event_timestamp, event_type, event_category, event_outcome, severity,
            cluster_id, namespace, events)
        SELECT coalesce(m.month, TG_RELID), NEW.log_id, NEW.log_index, NEW.event_timestamp, NEW.event_type, NEW.event_category,
            NEW.event_outcome, NEW.severity, NEW.cluster_id, NEW.namespace, 1
        FROM (SELECT) one LEFT JOIN rollup_tables m
            ON TG_WHEN = 'BEFORE' AND m.first_day = date_trunc('month', NEW.event_date::timestamp);
    END IF;
    RETURN NEW;
END
$$;
DROP TRIGGER record_changed ON audit_events;
CREATE TRIGGER record_changed
    AFTER UPDATE OF log_id, log_index, event_timestamp, event_type, event_category, event_outcome, severity, cluster_id, namespace
    ON audit_events FOR EACH ROW
    WHEN (
        (OLD.log_index >= 0 OR NEW.log_index >= 0)
        AND (OLD.log_id, OLD.log_index, OLD.event_timestamp, OLD.event_type, OLD.event_category, OLD.event_outcome, OLD.severity,
                OLD.cluster_id, OLD.namespace)
            IS DISTINCT FROM
            (NEW.log_id, NEW.log_index, NEW.event_timestamp, NEW.event_type, NEW.event_category, NEW.event_outcome, NEW.severity,
                NEW.cluster_id, NEW.namespace)
    )
    EXECUTE FUNCTION audit_events_record_change();
ALTER TABLE audit_events ENABLE ALWAYS TRIGGER record_changed;

CREATE OR REPLACE FUNCTION log_flushes_record_loss() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    UPDATE rollup_logs SET tail_xmin = NULL;
    RETURN NULL;
END
$$;

-- The rows of later logs among those at the same positions of the first one. Where there is no second log nobody needs it:
-- `datastorage log continue` makes it too.
DO $$
DECLARE
    owner regrole := (SELECT relowner FROM pg_class WHERE oid = 'audit_events'::regclass);
    named text;
BEGIN
    IF EXISTS (SELECT FROM logs WHERE log_id > 0) THEN
        CREATE INDEX audit_events_later_logs ON audit_events (log_id, log_index) WHERE log_id > 0;
    END IF;
    FOREACH named IN ARRAY ARRAY['audit_events_record_change()', 'log_flushes_record_loss()'] LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', named, current_schema());
    END LOOP;
    EXECUTE format('GRANT ALL ON rollup_logs, rollup_log_progress, rollup_scopes TO %s', owner);
END
$$;
