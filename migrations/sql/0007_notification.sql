-- What the log has of a notification: its digest, in the event at a position. NULL in rows of older releases and of others' SQL.
ALTER TABLE notification_audit
    ADD COLUMN IF NOT EXISTS salt bytea,
    ADD COLUMN IF NOT EXISTS log_id smallint,
    ADD COLUMN IF NOT EXISTS log_index bigint;
