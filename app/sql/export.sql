-- name: log_size
-- Where the log ends in this snapshot, by what its flushes say and by what the rows say, should someone have cut the first.
SELECT greatest(
    0,
    (SELECT first_index + count FROM log_flushes WHERE log_id = 0 ORDER BY first_index DESC LIMIT 1),
    (SELECT max(log_index) + 1 FROM audit_events)
)
