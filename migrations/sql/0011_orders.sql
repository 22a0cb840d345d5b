-- Whether the days are over for which an event is kept. Evidence of purges and erasures has no end, nor have the orders that a run
-- follows, findings, and the seams of the log; of purges, since a later purge repeats what it removes, the bulk does.
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
        'datastorage.finding.recorded', 'datastorage.finding.acknowledged', 'datastorage.log.continued'
    )
$$;

-- The active hold that an event falls under, whatever its row says. Where there are several, the row shows the correlation's. A session
-- adds the holds that the log has and this table has not, as a JSON array of their columns: datastorage.missing_holds.
CREATE OR REPLACE FUNCTION hold_of(correlation text, actor text, kind text, resource text, moment timestamptz) RETURNS uuid
LANGUAGE sql STABLE AS $$
    SELECT coalesce((
        SELECT hold_id FROM holds
        WHERE released_at IS NULL AND (
            correlation_id = correlation OR actor_id = actor OR (resource_id = resource AND resource_type = kind)
            OR moment BETWEEN time_from AND time_to
        )
        ORDER BY correlation_id IS NULL, placed_index LIMIT 1
    ), (
        SELECT hold_id FROM jsonb_populate_recordset(
            NULL::holds, nullif(current_setting('datastorage.missing_holds', true), '')::jsonb)
        WHERE correlation_id = correlation OR actor_id = actor OR (resource_id = resource AND resource_type = kind)
            OR moment BETWEEN time_from AND time_to
        LIMIT 1
    ))
$$;

-- Whether any hold is active.
CREATE FUNCTION any_hold() RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT FROM holds WHERE released_at IS NULL)
        OR coalesce(current_setting('datastorage.missing_holds', true), '') <> ''
$$;

-- The policies that a run follows: those that its session has set, as a JSON array of rows, since the log records them
-- (datastorage.policies); without that, the table.
CREATE FUNCTION followed_policies() RETURNS SETOF audit_retention_policies LANGUAGE sql STABLE AS $$
    SELECT p.* FROM audit_retention_policies p WHERE coalesce(current_setting('datastorage.policies', true), '') = ''
    UNION ALL
    SELECT * FROM jsonb_populate_recordset(
        NULL::audit_retention_policies, nullif(current_setting('datastorage.policies', true), '')::jsonb)
$$;

-- The functions of a run, as before but for the two above.
CREATE OR REPLACE FUNCTION month_contents(month regclass, moment timestamptz, floor_days integer, ceiling_days integer)
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
            FROM %s e LEFT JOIN followed_policies() p ON p.event_category = e.event_category
        ) rows
    $query$, month)
    USING moment, floor_days, ceiling_days, any_hold();
END
$$;

CREATE OR REPLACE FUNCTION due_events(
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
        FROM %s e LEFT JOIN followed_policies() p ON p.event_category = e.event_category
        WHERE %s AND e.legal_hold IS NOT TRUE
            AND is_over($1, e.event_timestamp, e.event_type, e.retention_days, p, $2, $3)
            AND ($6 OR hold_of(e.correlation_id, e.actor_id, e.resource_type, e.resource_id, e.event_timestamp) IS NULL)
            AND NOT EXISTS (SELECT FROM audit_events c WHERE c.parent_event_id = e.event_id)
        ORDER BY e.log_index LIMIT $5
    $query$, month, CASE WHEN behind IS NULL THEN 'e.log_index IS NULL' ELSE 'e.log_index > $4' END)
    USING moment, floor_days, ceiling_days, behind, rows_max, NOT any_hold();
END
$$;

-- Writes the policy that an event of the log sets or removes: the one with this id. Runs as its owner, since nobody else may change
-- a policy.
CREATE FUNCTION write_policy(event uuid) RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    change jsonb;
BEGIN
    SELECT event_data INTO change FROM audit_events
    WHERE event_id = event AND log_index IS NOT NULL AND event_type IN ('datastorage.policy.set', 'datastorage.policy.removed')
        AND event_category = 'security' AND event_data->>'event_type' = event_type;
    IF change IS NULL THEN
        RAISE EXCEPTION 'SOC2: a retention policy is changed by an event of the log only' USING ERRCODE = 'check_violation',
            HINT = 'Use `datastorage retention policy` or PUT /api/v1/audit/retention-policies/{event_category}.';
    ELSIF change->>'event_type' = 'datastorage.policy.removed' THEN
        DELETE FROM audit_retention_policies WHERE event_category = change->>'category';
    ELSE
        INSERT INTO audit_retention_policies AS p (policy_id, event_category, retention_days, floor_days, ceiling_days)
        VALUES ((change->>'policy_id')::uuid, change->>'category', (change->>'retention_days')::integer,
            (change->>'floor_days')::integer, (change->>'ceiling_days')::integer)
        ON CONFLICT (event_category) DO UPDATE
        SET retention_days = excluded.retention_days, floor_days = excluded.floor_days, ceiling_days = excluded.ceiling_days,
            updated_at = now();
    END IF;
END
$$;
REVOKE EXECUTE ON FUNCTION write_policy(uuid) FROM PUBLIC;

-- Whether the holds and policies that were there before the log recorded all of them are recorded by now: NULL until then. A log
-- without events has none.
CREATE TABLE adoptions (log_id smallint PRIMARY KEY, adopted_index bigint);
INSERT INTO adoptions
SELECT 0, CASE WHEN EXISTS (SELECT FROM log_flushes WHERE first_index >= 0) THEN NULL ELSE -1 END;

-- No table of a caller's may stand in for the real ones. Whoever migrates may be another role than the owner of the events, and the
-- service's role has to reach what is new before roles.sql is run again.
DO $$
DECLARE
    owner regrole := (SELECT relowner FROM pg_class WHERE oid = 'audit_events'::regclass);
    named text;
BEGIN
    FOREACH named IN ARRAY ARRAY['hold_of(text, text, text, text, timestamptz)', 'any_hold()', 'followed_policies()',
        'month_contents(regclass, timestamptz, integer, integer)',
        'due_events(regclass, timestamptz, integer, integer, bigint, integer)', 'write_policy(uuid)']
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', named, current_schema());
    END LOOP;
    EXECUTE format('GRANT ALL ON adoptions TO %s', owner);
    EXECUTE format('GRANT EXECUTE ON FUNCTION write_policy(uuid) TO %s', owner);
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'datastorage_service') THEN
        GRANT SELECT, UPDATE ON adoptions TO datastorage_service;
        GRANT EXECUTE ON FUNCTION write_policy(uuid) TO datastorage_service;
    END IF;
END
$$;
