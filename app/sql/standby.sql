-- Synchronous standbys.

-- name: standbys
-- What a commit of this session waits for, how far Postgres has written its WAL, and how far each synchronous standby that is connected
-- has it on disk, in bytes. Without pg_read_all_stats rows of others are there without their columns.
SELECT current_setting('synchronous_commit') AS commit, current_setting('synchronous_standby_names') AS names,
    CASE WHEN NOT pg_is_in_recovery() THEN (pg_current_wal_flush_lsn() - '0/0')::bigint END AS written,
    ARRAY(
        SELECT (flush_lsn - '0/0')::bigint FROM pg_stat_replication
        WHERE sync_state IN ('sync', 'quorum') AND state = 'streaming' AND flush_lsn IS NOT NULL
    ) AS flushed,
    EXISTS (SELECT FROM pg_stat_replication WHERE state IS NULL) AS hidden
