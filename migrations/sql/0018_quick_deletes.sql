-- As before; a delete asks hold_of() about a row only while there are holds: that costs more than the rest of the row.
CREATE OR REPLACE FUNCTION audit_events_refuse_delete_held() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.legal_hold OR (
        (EXISTS (SELECT FROM holds WHERE released_at IS NULL) OR coalesce(current_setting('datastorage.missing_holds', true), '') <> '')
        AND hold_of(OLD.correlation_id, OLD.actor_id, OLD.resource_type, OLD.resource_id, OLD.event_timestamp) IS NOT NULL
    ) THEN
        RAISE EXCEPTION 'Cannot delete audit event with legal hold: event_id=%, correlation_id=%',
            OLD.event_id, OLD.correlation_id
            USING ERRCODE = 'foreign_key_violation', HINT = 'Release the legal hold first.';
    END IF;
    RETURN OLD;
END
$$;
DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION audit_events_refuse_delete_held() SET search_path = %I, pg_temp', current_schema());
END
$$;
