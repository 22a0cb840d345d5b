-- The conditions stand in WHEN: a row that nothing is to be said about calls no function.
CREATE FUNCTION audit_events_set_date() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.event_date := (NEW.event_timestamp AT TIME ZONE 'UTC')::date;
    RETURN NEW;
END
$$;
CREATE TRIGGER set_event_date BEFORE INSERT ON audit_events FOR EACH ROW
    WHEN (NEW.event_date IS DISTINCT FROM (NEW.event_timestamp AT TIME ZONE 'UTC')::date)
    EXECUTE FUNCTION audit_events_set_date();

-- Triggers of one kind fire in the order of their names: held is told before parent.
CREATE FUNCTION audit_events_refuse_delete_held() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'Cannot delete audit event with legal hold: event_id=%, correlation_id=%', OLD.event_id, OLD.correlation_id
        USING ERRCODE = 'foreign_key_violation', HINT = 'Release the legal hold first.';
END
$$;
CREATE TRIGGER refuse_delete_held BEFORE DELETE ON audit_events FOR EACH ROW
    WHEN (OLD.legal_hold)
    EXECUTE FUNCTION audit_events_refuse_delete_held();

CREATE FUNCTION audit_events_refuse_delete_parent() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM audit_events WHERE parent_event_id = OLD.event_id) THEN
        RAISE EXCEPTION 'Cannot delete audit event %: foreign key, other events name it as their parent', OLD.event_id
            USING ERRCODE = 'foreign_key_violation', HINT = 'Delete its children first.';
    END IF;
    RETURN OLD;
END
$$;
CREATE TRIGGER refuse_delete_parent BEFORE DELETE ON audit_events FOR EACH ROW
    EXECUTE FUNCTION audit_events_refuse_delete_parent();

CREATE FUNCTION audit_events_refuse_drop_hold() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'Cannot drop the legal hold of audit event % (correlation_id=%): SOC2 requires an authorized release',
        OLD.event_id, OLD.correlation_id
        USING ERRCODE = 'check_violation', HINT = 'Release it with DELETE /api/v1/audit/legal-hold/{correlation_id}.';
END
$$;
CREATE TRIGGER refuse_drop_hold BEFORE UPDATE ON audit_events FOR EACH ROW
    WHEN (
        OLD.legal_hold AND NEW.legal_hold IS NOT TRUE
        AND current_setting('kubernaut.legal_hold_release', true) IS DISTINCT FROM 'authorized'
    )
    EXECUTE FUNCTION audit_events_refuse_drop_hold();

-- Erasure will be let through inside this function, which is why it and not WHEN decides.
CREATE FUNCTION audit_events_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    changed text;
BEGIN
    SELECT string_agg(old_member.key, ', ') INTO changed
    FROM jsonb_each(to_jsonb(OLD)) AS old_member JOIN jsonb_each(to_jsonb(NEW)) AS new_member USING (key)
    WHERE old_member.value IS DISTINCT FROM new_member.value AND old_member.key IN (
        'event_data', 'event_type', 'event_outcome', 'actor_id', 'actor_type', 'correlation_id', 'event_action',
        'resource_type', 'resource_id', 'event_category'
    );
    RAISE EXCEPTION 'AU-9: % of audit event % cannot be modified', changed, OLD.event_id
        USING ERRCODE = 'check_violation';
END
$$;
CREATE TRIGGER refuse_change BEFORE UPDATE ON audit_events FOR EACH ROW
    WHEN (
        (NEW.event_type, NEW.event_outcome, NEW.actor_id, NEW.actor_type, NEW.correlation_id)
            IS DISTINCT FROM (OLD.event_type, OLD.event_outcome, OLD.actor_id, OLD.actor_type, OLD.correlation_id)
        OR (NEW.event_action, NEW.resource_type, NEW.resource_id, NEW.event_category)
            IS DISTINCT FROM (OLD.event_action, OLD.resource_type, OLD.resource_id, OLD.event_category)
        OR NEW.event_data IS DISTINCT FROM OLD.event_data
    )
    EXECUTE FUNCTION audit_events_refuse_change();

-- These two read tables with rights or purposes that are not the caller's: no table of the caller's may stand in for them.
DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION ensure_partitions(date, date) SET search_path = %I, pg_temp', current_schema());
    EXECUTE format('ALTER FUNCTION audit_events_refuse_delete_parent() SET search_path = %I, pg_temp', current_schema());
END
$$;
