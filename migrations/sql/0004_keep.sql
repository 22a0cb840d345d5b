-- A hold is a record: exactly one selector, history after its release. It is placed and released in one transaction with
-- an event of the log, whose position it names; for readers that position is also the version of all holds.
CREATE TABLE holds (
    hold_id uuid PRIMARY KEY,
    correlation_id varchar(255),
    actor_id varchar(255),
    resource_type varchar(100),
    resource_id varchar(255),
    time_from timestamptz,
    time_to timestamptz,
    reason text NOT NULL,
    placed_by text NOT NULL,
    placed_at timestamptz NOT NULL,
    placed_index bigint NOT NULL,
    release_reason text,
    released_by text,
    released_at timestamptz,
    released_index bigint,
    CHECK (num_nonnulls(correlation_id, actor_id, resource_id, time_from) = 1),
    CHECK ((resource_type IS NULL) = (resource_id IS NULL) AND (time_from IS NULL) = (time_to IS NULL)),
    CHECK (num_nulls(release_reason, released_by, released_at, released_index) IN (0, 4))
);
CREATE UNIQUE INDEX holds_correlation ON holds (correlation_id) WHERE released_at IS NULL;
CREATE UNIQUE INDEX holds_actor ON holds (actor_id) WHERE released_at IS NULL;
CREATE UNIQUE INDEX holds_resource ON holds (resource_id, resource_type) WHERE released_at IS NULL;
CREATE INDEX holds_time ON holds (time_from) WHERE released_at IS NULL AND time_from IS NOT NULL;
CREATE INDEX holds_placed ON holds (placed_index);
CREATE INDEX holds_released ON holds (released_index);

-- The active hold that an event falls under, whatever its row says. Where there are several, the row shows the correlation's.
CREATE FUNCTION hold_of(correlation text, actor text, kind text, resource text, moment timestamptz) RETURNS uuid
LANGUAGE sql STABLE AS $$
    SELECT hold_id FROM holds
    WHERE released_at IS NULL AND (
        correlation_id = correlation OR actor_id = actor OR (resource_id = resource AND resource_type = kind)
        OR moment BETWEEN time_from AND time_to
    )
    ORDER BY correlation_id IS NULL, placed_index LIMIT 1
$$;

-- Keys of the events that a selector fits, and that stand in the log before end_index: from first_index on, or all of them and
-- the unsealed ones too. Each selector has a plan of its own.
CREATE FUNCTION events_under(
    correlation text, actor text, kind text, resource text, moment_from timestamptz, moment_to timestamptz,
    first_index bigint, end_index bigint
) RETURNS TABLE (event_id uuid, event_date date, correlation_id varchar)
LANGUAGE plpgsql STABLE SET plan_cache_mode = force_custom_plan AS $$
BEGIN
    IF first_index IS NOT NULL THEN
        RETURN QUERY SELECT e.event_id, e.event_date, e.correlation_id FROM audit_events e
        WHERE e.log_index >= first_index AND e.log_index < end_index AND (
            e.correlation_id = correlation OR e.actor_id = actor OR (e.resource_type = kind AND e.resource_id = resource)
            OR e.event_timestamp BETWEEN moment_from AND moment_to
        );
    ELSIF correlation IS NOT NULL THEN
        RETURN QUERY SELECT e.event_id, e.event_date, e.correlation_id FROM audit_events e
        WHERE e.correlation_id = correlation AND (e.log_index < end_index OR e.log_index IS NULL);
    ELSIF moment_from IS NOT NULL THEN
        RETURN QUERY SELECT e.event_id, e.event_date, e.correlation_id FROM audit_events e
        WHERE e.event_timestamp BETWEEN moment_from AND moment_to AND (e.log_index < end_index OR e.log_index IS NULL);
    ELSE
        RETURN QUERY SELECT e.event_id, e.event_date, e.correlation_id FROM audit_events e
        WHERE (e.actor_id = actor OR (e.resource_type = kind AND e.resource_id = resource))
            AND (e.log_index < end_index OR e.log_index IS NULL);
    END IF;
END
$$;

-- Nothing but the log places or releases a hold: the event has to stand there already, in this transaction.
CREATE FUNCTION holds_check() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    place bigint := CASE TG_OP WHEN 'INSERT' THEN NEW.placed_index ELSE NEW.released_index END;
    kind text := CASE TG_OP WHEN 'INSERT' THEN 'datastorage.hold.placed' ELSE 'datastorage.hold.released' END;
BEGIN
    IF TG_OP = 'DELETE' THEN
        RAISE EXCEPTION 'SOC2: the hold % is history and stays', OLD.hold_id USING ERRCODE = 'check_violation';
    ELSIF TG_OP = 'UPDATE' AND (
        OLD.released_at IS NOT NULL
        OR to_jsonb(OLD) - '{release_reason,released_by,released_at,released_index}'::text[]
            <> to_jsonb(NEW) - '{release_reason,released_by,released_at,released_index}'::text[]
    ) THEN
        RAISE EXCEPTION 'SOC2: of the hold % only its release can be written, once', OLD.hold_id
            USING ERRCODE = 'check_violation';
    ELSIF NOT EXISTS (
        SELECT FROM audit_events
        WHERE log_index = place AND (
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
CREATE TRIGGER only_by_the_log BEFORE INSERT OR UPDATE OR DELETE ON holds FOR EACH ROW EXECUTE FUNCTION holds_check();

-- Rows under hold, for those who list, release and purge. No other row has an entry, so that no write pays.
CREATE INDEX audit_events_held ON audit_events (correlation_id) WHERE legal_hold;

-- A row is held by what it says, or by a hold that it falls under although nobody marked it: inserted by SQL since.
CREATE OR REPLACE FUNCTION audit_events_refuse_delete_held() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.legal_hold
        OR hold_of(OLD.correlation_id, OLD.actor_id, OLD.resource_type, OLD.resource_id, OLD.event_timestamp) IS NOT NULL
    THEN
        RAISE EXCEPTION 'Cannot delete audit event with legal hold: event_id=%, correlation_id=%',
            OLD.event_id, OLD.correlation_id
            USING ERRCODE = 'foreign_key_violation', HINT = 'Release the legal hold first.';
    END IF;
    RETURN OLD;
END
$$;
DROP TRIGGER refuse_delete_held ON audit_events;
CREATE TRIGGER refuse_delete_held BEFORE DELETE ON audit_events FOR EACH ROW
    EXECUTE FUNCTION audit_events_refuse_delete_held();

-- The session variable releases what SQL placed. What a hold of the log covers stays held until the log releases it.
CREATE OR REPLACE FUNCTION audit_events_refuse_drop_hold() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('kubernaut.legal_hold_release', true) IS DISTINCT FROM 'authorized'
        OR hold_of(OLD.correlation_id, OLD.actor_id, OLD.resource_type, OLD.resource_id, OLD.event_timestamp) IS NOT NULL
    THEN
        RAISE EXCEPTION 'Cannot drop the legal hold of audit event % (correlation_id=%): SOC2 requires an authorized release',
            OLD.event_id, OLD.correlation_id
            USING ERRCODE = 'check_violation', HINT = 'Release it with DELETE /api/v1/audit/legal-hold/{correlation_id}.';
    END IF;
    RETURN NEW;
END
$$;
DROP TRIGGER refuse_drop_hold ON audit_events;
CREATE TRIGGER refuse_drop_hold BEFORE UPDATE ON audit_events FOR EACH ROW
    WHEN (OLD.legal_hold AND NEW.legal_hold IS NOT TRUE)
    EXECUTE FUNCTION audit_events_refuse_drop_hold();

-- Every member of the record and of the commitment. Those that the platform's own triggers do not guard are guarded on
-- sealed rows only. Erasure passes: it runs as the table's owner, and leaves the record as it is.
CREATE OR REPLACE FUNCTION audit_events_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    erasable text[] := '{event_data,event_metadata,actor_id,actor_ip,resource_id,resource_name,error_message,payload_salt,payload_commitment}';
    mutable text[] := '{event_date,event_hash,previous_event_hash,retention_days,hash_algorithm,legal_hold,legal_hold_reason,legal_hold_placed_by,legal_hold_placed_at}';
    theirs text[] := '{event_data,event_type,event_outcome,actor_id,actor_type,correlation_id,event_action,resource_type,resource_id,event_category}';
    changed text[];
BEGIN
    SELECT array_agg(old_member.key) INTO changed
    FROM jsonb_each(to_jsonb(OLD)) AS old_member JOIN jsonb_each(to_jsonb(NEW)) AS new_member USING (key)
    WHERE old_member.value IS DISTINCT FROM new_member.value
        AND (old_member.key = ANY(theirs) OR (OLD.log_index IS NOT NULL AND old_member.key <> ALL(mutable)));
    IF changed IS NULL OR (
        current_setting('datastorage.erasure', true) = OLD.event_id::text
        AND current_user = (SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = TG_RELID)
        AND changed <@ erasable AND OLD.payload_commitment IS NULL AND NEW.payload_commitment IS NOT NULL
    ) THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'AU-9: % of audit event % cannot be modified', array_to_string(changed, ', '), OLD.event_id
        USING ERRCODE = 'check_violation';
END
$$;
DROP TRIGGER refuse_change ON audit_events;
CREATE TRIGGER refuse_change BEFORE UPDATE ON audit_events FOR EACH ROW
    WHEN (
        (NEW.event_type, NEW.event_outcome, NEW.actor_id, NEW.actor_type, NEW.correlation_id)
            IS DISTINCT FROM (OLD.event_type, OLD.event_outcome, OLD.actor_id, OLD.actor_type, OLD.correlation_id)
        OR (NEW.event_action, NEW.resource_type, NEW.resource_id, NEW.event_category)
            IS DISTINCT FROM (OLD.event_action, OLD.resource_type, OLD.resource_id, OLD.event_category)
        OR NEW.event_data IS DISTINCT FROM OLD.event_data
        OR (OLD.log_index IS NOT NULL AND (
            (NEW.event_id, NEW.event_version, NEW.event_timestamp, NEW.recorded_at, NEW.log_id, NEW.log_index, NEW.chain_index)
                IS DISTINCT FROM
                (OLD.event_id, OLD.event_version, OLD.event_timestamp, OLD.recorded_at, OLD.log_id, OLD.log_index, OLD.chain_index)
            OR (NEW.parent_event_id, NEW.parent_event_date, NEW.namespace, NEW.cluster_id, NEW.severity, NEW.duration_ms)
                IS DISTINCT FROM
                (OLD.parent_event_id, OLD.parent_event_date, OLD.namespace, OLD.cluster_id, OLD.severity, OLD.duration_ms)
            OR (NEW.error_code, NEW.is_sensitive, NEW.trace_id, NEW.span_id, NEW.actor_ip, NEW.resource_name)
                IS DISTINCT FROM (OLD.error_code, OLD.is_sensitive, OLD.trace_id, OLD.span_id, OLD.actor_ip, OLD.resource_name)
            OR (NEW.error_message, NEW.event_metadata, NEW.payload_salt, NEW.payload_commitment)
                IS DISTINCT FROM (OLD.error_message, OLD.event_metadata, OLD.payload_salt, OLD.payload_commitment)
        ))
    )
    EXECUTE FUNCTION audit_events_refuse_change();

-- Erases what the events with these ids say of people: event_data becomes payloads[i], payload_commitment commitments[i].
-- Answers which were erased; a held event fails all of them. Runs as its owner, since nobody else may.
CREATE FUNCTION erase_events(ids uuid[], payloads jsonb[], commitments bytea[]) RETURNS SETOF uuid
LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    event record;
BEGIN
    FOR event IN
        SELECT e.event_id, e.event_date, e.correlation_id, e.legal_hold, w.payload, w.commitment,
            hold_of(e.correlation_id, e.actor_id, e.resource_type, e.resource_id, e.event_timestamp) AS hold_id
        FROM unnest(ids, payloads, commitments) AS w(event_id, payload, commitment)
        JOIN audit_events e ON e.event_id = w.event_id AND e.log_index IS NOT NULL AND e.payload_commitment IS NULL
        ORDER BY e.log_index FOR UPDATE OF e
    LOOP
        IF event.legal_hold OR event.hold_id IS NOT NULL THEN
            RAISE EXCEPTION 'Cannot erase audit event with legal hold: event_id=%, correlation_id=%',
                event.event_id, event.correlation_id
                USING ERRCODE = 'foreign_key_violation', HINT = 'Release the legal hold first.';
        END IF;
        PERFORM set_config('datastorage.erasure', event.event_id::text, true);
        UPDATE audit_events e
        SET event_data = event.payload, payload_commitment = event.commitment, actor_id = 'erased', resource_id = 'erased',
            actor_ip = NULL, resource_name = NULL, error_message = NULL, event_metadata = NULL, payload_salt = NULL
        WHERE (e.event_id, e.event_date, e.correlation_id) = (event.event_id, event.event_date, event.correlation_id);
        RETURN NEXT event.event_id;
    END LOOP;
    PERFORM set_config('datastorage.erasure', '', true);
END
$$;
REVOKE EXECUTE ON FUNCTION erase_events(uuid[], jsonb[], bytea[]) FROM PUBLIC;

-- Bounds of the days that events of a category are kept; NULL takes the service's settings.
ALTER TABLE audit_retention_policies ADD COLUMN floor_days integer, ADD COLUMN ceiling_days integer;

-- Whether the days are over for which an event is kept. Evidence of purges and erasures has no end; of purges, since a later
-- purge repeats what it removes, the bulk does.
CREATE FUNCTION is_over(
    moment timestamptz, happened_at timestamptz, kind text, event_days integer, policy audit_retention_policies,
    floor_days integer, ceiling_days integer
) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT happened_at < moment - make_interval(days => LEAST(
        coalesce(policy.ceiling_days, ceiling_days),
        GREATEST(coalesce(policy.floor_days, floor_days), event_days, policy.retention_days)
    )) AND kind NOT IN ('datastorage.event.erased', 'datastorage.retention.restored')
$$;

-- What a month's table holds at a moment: rows, those among them that are unsealed, held, or not over; and the positions of all.
CREATE FUNCTION month_contents(month regclass, moment timestamptz, floor_days integer, ceiling_days integer)
RETURNS TABLE (total bigint, unsealed bigint, held bigint, young bigint, positions int8multirange)
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN QUERY EXECUTE format($query$
        SELECT count(*), count(*) FILTER (WHERE log_index IS NULL), count(*) FILTER (WHERE is_held),
            count(*) FILTER (WHERE NOT is_held AND over IS NOT TRUE),
            coalesce(range_agg(int8range(log_index, log_index + 1)) FILTER (WHERE log_index IS NOT NULL), '{}')
        FROM (
            SELECT e.log_index,
                e.legal_hold IS TRUE OR ($4 AND hold_of(
                    e.correlation_id, e.actor_id, e.resource_type, e.resource_id, e.event_timestamp) IS NOT NULL) AS is_held,
                is_over($1, e.event_timestamp, e.event_type, e.retention_days, p, $2, $3) AS over
            FROM %s e LEFT JOIN audit_retention_policies p ON p.event_category = e.event_category
        ) rows
    $query$, month)
    USING moment, floor_days, ceiling_days, EXISTS (SELECT FROM holds WHERE released_at IS NULL);
END
$$;

-- The next rows of a month's table that may be purged, in the order of the log behind `behind`; unsealed ones when that is
-- NULL. One that others name as their parent has to wait for them.
CREATE FUNCTION due_events(
    month regclass, moment timestamptz, floor_days integer, ceiling_days integer, behind bigint, rows_max integer
) RETURNS TABLE (event_id uuid, event_date date, correlation_id varchar, log_index bigint, purged text)
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN QUERY EXECUTE format($query$
        SELECT e.event_id, e.event_date, e.correlation_id, e.log_index,
            CASE WHEN e.event_type = 'datastorage.retention.purged' AND NOT EXISTS (
                SELECT FROM audit_events r
                WHERE r.event_type = 'datastorage.retention.restored'
                    AND r.event_data->>'operation_id' = e.event_data->>'operation_id'
            ) THEN e.event_data->>'positions' END
        FROM %s e LEFT JOIN audit_retention_policies p ON p.event_category = e.event_category
        WHERE %s AND e.legal_hold IS NOT TRUE
            AND is_over($1, e.event_timestamp, e.event_type, e.retention_days, p, $2, $3)
            AND ($6 OR hold_of(e.correlation_id, e.actor_id, e.resource_type, e.resource_id, e.event_timestamp) IS NULL)
            AND NOT EXISTS (SELECT FROM audit_events c WHERE c.parent_event_id = e.event_id)
        ORDER BY e.log_index LIMIT $5
    $query$, month, CASE WHEN behind IS NULL THEN 'e.log_index IS NULL' ELSE 'e.log_index > $4' END)
    USING moment, floor_days, ceiling_days, behind, rows_max, NOT EXISTS (SELECT FROM holds WHERE released_at IS NULL);
END
$$;

-- The positions that purge events name, but for those that were restored. With a month's name, what its removals name that
-- were not taken back; with NULL, all.
CREATE FUNCTION purged_positions(month text) RETURNS int8multirange LANGUAGE sql STABLE AS $$
    WITH told AS (
        SELECT event_type, event_data->>'operation_id' AS operation_id, (event_data->>'positions')::int8multirange AS positions
        FROM audit_events
        WHERE event_type IN ('datastorage.retention.purged', 'datastorage.retention.restored') AND log_index IS NOT NULL
            AND (month IS NULL OR event_data->>'partition' = month)
    )
    SELECT coalesce(range_agg(positions), '{}') FROM told p
    WHERE event_type = 'datastorage.retention.purged' AND NOT EXISTS (
        SELECT FROM told r WHERE r.event_type = 'datastorage.retention.restored' AND r.operation_id = p.operation_id
    )
$$;

-- Drops a detached month, if all in it is over and named by a purge, and nothing in it is held: looked at again, since
-- somebody may have held a row by SQL before the month was detached. Whoever places a hold meanwhile waits. A client's claim
-- to an id outlives the row.
CREATE FUNCTION drop_month(month text, moment timestamptz, floor_days integer, ceiling_days integer) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    contents record;
BEGIN
    EXECUTE format('LOCK TABLE %I IN ACCESS EXCLUSIVE MODE', month);
    LOCK TABLE holds IN SHARE MODE;
    SELECT * INTO contents FROM month_contents(month::regclass, moment, floor_days, ceiling_days);
    IF contents.held > 0 OR contents.young > 0 OR NOT contents.positions <@ purged_positions(month) THEN
        RETURN false;
    END IF;
    EXECUTE format(
        'UPDATE claims SET answer = $1 FROM %I e WHERE scope = ''event'' AND key = e.event_id::text', month
    ) USING '{"purged": true}'::jsonb;
    EXECUTE format('DROP TABLE %I', month);
    RETURN true;
END
$$;

-- Puts a detached month back.
CREATE FUNCTION attach_month(month text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    first_day date := to_date(right(month, 7), 'YYYY_MM');
BEGIN
    EXECUTE format('ALTER TABLE audit_events ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
        month, first_day, (first_day + interval '1 month')::date);
END
$$;

-- No table of a caller's may stand in for the real ones.
DO $$
DECLARE
    named text;
BEGIN
    FOREACH named IN ARRAY ARRAY['hold_of(text, text, text, text, timestamptz)', 'holds_check()',
        'events_under(text, text, text, text, timestamptz, timestamptz, bigint, bigint)',
        'audit_events_refuse_delete_held()', 'audit_events_refuse_drop_hold()', 'erase_events(uuid[], jsonb[], bytea[])',
        'month_contents(regclass, timestamptz, integer, integer)', 'purged_positions(text)',
        'drop_month(text, timestamptz, integer, integer)', 'attach_month(text)',
        'due_events(regclass, timestamptz, integer, integer, bigint, integer)']
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', named, current_schema());
    END LOOP;
END
$$;
