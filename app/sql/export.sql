-- name: log_size
-- Where the log ends in this snapshot, by what its flushes say and by what the rows say, should someone have cut the first.
SELECT greatest(
    0,
    (SELECT first_index + count FROM log_flushes WHERE log_id = 0 ORDER BY first_index DESC LIMIT 1),
    (SELECT max(log_index) + 1 FROM audit_events)
)

-- name: checkpoint
-- The newest that was published, or the newest that was signed while witnesses are asked.
SELECT note || cosignatures FROM log_checkpoints WHERE log_id = 0 ORDER BY published_at IS NULL, size DESC LIMIT 1
