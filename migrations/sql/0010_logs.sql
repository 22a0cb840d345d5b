-- A log can be closed, and the next one be opened in the same database (docs/decisions/0038).
ALTER TABLE logs ADD COLUMN closed_at timestamptz;

-- The log in which a hold was placed or released; what older releases write is of log 0.
ALTER TABLE holds ADD COLUMN placed_log smallint NOT NULL DEFAULT 0, ADD COLUMN released_log smallint NOT NULL DEFAULT 0;
CREATE INDEX holds_placed_in ON holds (placed_log, placed_index);
CREATE INDEX holds_released_in ON holds (released_log, released_index);

-- As before; and the event has to stand in the log that the hold names.
CREATE OR REPLACE FUNCTION holds_check() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    place bigint := CASE TG_OP WHEN 'INSERT' THEN NEW.placed_index ELSE NEW.released_index END;
    in_log smallint := CASE TG_OP WHEN 'INSERT' THEN NEW.placed_log ELSE NEW.released_log END;
    kind text := CASE TG_OP WHEN 'INSERT' THEN 'datastorage.hold.placed' ELSE 'datastorage.hold.released' END;
BEGIN
    IF TG_OP = 'DELETE' THEN
        RAISE EXCEPTION 'SOC2: the hold % is history and stays', OLD.hold_id USING ERRCODE = 'check_violation';
    ELSIF TG_OP = 'UPDATE' AND (
        OLD.released_at IS NOT NULL
        OR to_jsonb(OLD) - '{release_reason,released_by,released_at,released_index,released_log}'::text[]
            <> to_jsonb(NEW) - '{release_reason,released_by,released_at,released_index,released_log}'::text[]
    ) THEN
        RAISE EXCEPTION 'SOC2: of the hold % only its release can be written, once', OLD.hold_id
            USING ERRCODE = 'check_violation';
    ELSIF NOT EXISTS (
        SELECT FROM audit_events
        WHERE log_index = place AND log_id = in_log AND (
            (event_type = kind AND event_data->>'hold_id' = NEW.hold_id::text)
            OR (event_type = 'datastorage.hold.placed' AND event_data->>'replaces' = NEW.hold_id::text)
        )
    ) THEN
        RAISE EXCEPTION 'SOC2: the hold % is placed and released by an event of the log only', NEW.hold_id
            USING ERRCODE = 'check_violation', HINT = 'Use POST and DELETE /api/v1/audit/legal-hold.';
    END IF;
    RETURN NEW;
END
$$;

-- As the function of eight arguments: positions are those of one log, and all rows of the logs before it count as before them.
CREATE FUNCTION events_under(
    correlation text, actor text, kind text, resource text, moment_from timestamptz, moment_to timestamptz,
    in_log smallint, first_index bigint, end_index bigint
) RETURNS TABLE (event_id uuid, event_date date, correlation_id varchar)
LANGUAGE plpgsql STABLE SET plan_cache_mode = force_custom_plan AS $$
BEGIN
    IF first_index IS NOT NULL THEN
        RETURN QUERY SELECT e.event_id, e.event_date, e.correlation_id FROM audit_events e
        WHERE e.log_index >= first_index AND e.log_index < end_index AND e.log_id = in_log AND (
            e.correlation_id = correlation OR e.actor_id = actor OR (e.resource_type = kind AND e.resource_id = resource)
            OR e.event_timestamp BETWEEN moment_from AND moment_to
        );
    ELSIF correlation IS NOT NULL THEN
        RETURN QUERY SELECT e.event_id, e.event_date, e.correlation_id FROM audit_events e
        WHERE e.correlation_id = correlation AND (e.log_index < end_index OR e.log_id < in_log OR e.log_index IS NULL);
    ELSIF moment_from IS NOT NULL THEN
        RETURN QUERY SELECT e.event_id, e.event_date, e.correlation_id FROM audit_events e
        WHERE e.event_timestamp BETWEEN moment_from AND moment_to
            AND (e.log_index < end_index OR e.log_id < in_log OR e.log_index IS NULL);
    ELSE
        RETURN QUERY SELECT e.event_id, e.event_date, e.correlation_id FROM audit_events e
        WHERE (e.actor_id = actor OR (e.resource_type = kind AND e.resource_id = resource))
            AND (e.log_index < end_index OR e.log_id < in_log OR e.log_index IS NULL);
    END IF;
END
$$;

-- As before; and the first event of a log, which says how it continues the one before, is never over.
CREATE OR REPLACE FUNCTION is_over(
    moment timestamptz, happened_at timestamptz, kind text, event_days integer, policy audit_retention_policies,
    floor_days integer, ceiling_days integer
) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT happened_at < moment - make_interval(days => LEAST(
        coalesce(policy.ceiling_days, ceiling_days),
        GREATEST(coalesce(policy.floor_days, floor_days), event_days, policy.retention_days)
    )) AND kind NOT IN (
        'datastorage.event.erased', 'datastorage.retention.restored', 'datastorage.log.continued',
        'datastorage.finding.recorded', 'datastorage.finding.acknowledged'
    )
$$;

-- The closed log takes no more flushes. The trigger is made when the first log is closed, so that until then no flush pays for it.
CREATE FUNCTION log_flushes_refuse_closed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'log % is closed: it was continued by log %', NEW.log_id, NEW.log_id + 1
        USING ERRCODE = 'DS002', HINT = 'The service reads the current log and writes there.';
END
$$;

-- Closes a log and opens the next one, in the transaction that writes its first event. Nobody writes to log_flushes from here to its end.
CREATE FUNCTION open_next_log(closed smallint, name text, revision text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    LOCK TABLE log_flushes IN SHARE ROW EXCLUSIVE MODE;
    DROP TRIGGER IF EXISTS refuse_closed ON log_flushes;
    EXECUTE format('CREATE TRIGGER refuse_closed BEFORE INSERT ON log_flushes FOR EACH ROW WHEN (NEW.log_id <= %s) '
        'EXECUTE FUNCTION log_flushes_refuse_closed()', closed);
    ALTER TABLE log_flushes ENABLE ALWAYS TRIGGER refuse_closed;
    UPDATE logs SET closed_at = now() WHERE log_id = closed;
    INSERT INTO logs (log_id, name) VALUES (closed + 1, name);
    INSERT INTO log_flushes (log_id, first_index, count, leaves) VALUES (closed + 1, -1, 1, '');
    INSERT INTO log_signers (log_id) VALUES (closed + 1);
    INSERT INTO verifier (log_id, position) VALUES (closed + 1, 0);
    UPDATE schema_min_writer SET revision = open_next_log.revision WHERE schema_min_writer.revision < open_next_log.revision;
END
$$;
REVOKE EXECUTE ON FUNCTION open_next_log(smallint, text, text) FROM PUBLIC;

-- No table of a caller's may stand in for the real ones.
DO $$
DECLARE
    named text;
BEGIN
    FOREACH named IN ARRAY ARRAY['holds_check()', 'log_flushes_refuse_closed()', 'open_next_log(smallint, text, text)',
        'events_under(text, text, text, text, timestamptz, timestamptz, smallint, bigint, bigint)']
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', named, current_schema());
    END LOOP;
END
$$;
