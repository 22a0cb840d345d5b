-- As before, but the trigger is replaced instead of dropped: a reader that is under way is not waited for, and no writer behind it.
CREATE OR REPLACE FUNCTION open_next_log(closed smallint, name text, revision text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    LOCK TABLE log_flushes IN SHARE ROW EXCLUSIVE MODE;
    EXECUTE format('CREATE OR REPLACE TRIGGER refuse_closed BEFORE INSERT ON log_flushes FOR EACH ROW WHEN (NEW.log_id <= %s) '
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

-- No table of a caller's may stand in for the real ones: CREATE OR REPLACE has dropped the setting.
DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION open_next_log(smallint, text, text) SET search_path = %I, pg_temp', current_schema());
END
$$;
