-- A time or date that Python cannot hold comes out as infinity, which no event has: the row shows as edited.
-- jsonb comes as its text: the pool's connections would turn it into Python's numbers, which lose digits.

-- name: unhurried
-- Sorting one chain may take longer than other statements may; all of it is bounded by what each fetch may take.
SET LOCAL statement_timeout = '10min'

-- name: sealed_rows
-- Chains of correlations in the order of their positions: what the record and the commitment need, and event_hash.
SELECT event_id, event_version,
    CASE WHEN event_timestamp >= '0001-01-02Z' AND event_timestamp < '9999-12-31Z'
        THEN event_timestamp ELSE 'infinity' END AS event_timestamp,
    CASE WHEN event_date > '0001-01-01' AND event_date < '9999-12-31' THEN event_date ELSE 'infinity' END AS event_date,
    CASE WHEN recorded_at >= '0001-01-02Z' AND recorded_at < '9999-12-31Z'
        THEN recorded_at ELSE 'infinity' END AS recorded_at,
    event_type, event_category, event_action, event_outcome, actor_type, actor_id, actor_ip, resource_type, resource_id,
    resource_name, correlation_id, parent_event_id,
    CASE WHEN parent_event_date <= '0001-01-01' OR parent_event_date >= '9999-12-31'
        THEN 'infinity' ELSE parent_event_date END AS parent_event_date,
    trace_id, span_id, namespace, cluster_id, event_data::text, event_metadata::text, severity, duration_ms, error_code,
    error_message, is_sensitive, event_hash, previous_event_hash, log_id, log_index, chain_index, payload_salt, payload_commitment
FROM audit_events
WHERE correlation_id = ANY($1) AND (log_index IS NOT NULL OR chain_index IS NOT NULL)
ORDER BY correlation_id, chain_index NULLS LAST, log_index

-- name: logged_rows
-- As sealed_rows, a part of the log.
SELECT event_id, event_version,
    CASE WHEN event_timestamp >= '0001-01-02Z' AND event_timestamp < '9999-12-31Z'
        THEN event_timestamp ELSE 'infinity' END AS event_timestamp,
    CASE WHEN event_date > '0001-01-01' AND event_date < '9999-12-31' THEN event_date ELSE 'infinity' END AS event_date,
    CASE WHEN recorded_at >= '0001-01-02Z' AND recorded_at < '9999-12-31Z'
        THEN recorded_at ELSE 'infinity' END AS recorded_at,
    event_type, event_category, event_action, event_outcome, actor_type, actor_id, actor_ip, resource_type, resource_id,
    resource_name, correlation_id, parent_event_id,
    CASE WHEN parent_event_date <= '0001-01-01' OR parent_event_date >= '9999-12-31'
        THEN 'infinity' ELSE parent_event_date END AS parent_event_date,
    trace_id, span_id, namespace, cluster_id, event_data::text, event_metadata::text, severity, duration_ms, error_code,
    error_message, is_sensitive, event_hash, previous_event_hash, log_id, log_index, chain_index, payload_salt, payload_commitment
FROM audit_events
WHERE log_index >= $1 AND log_index < $2
ORDER BY log_index

-- name: unsealed_rows
-- Rows of one correlation that others inserted and hashed, and whether any row of it has the hash that they link to.
SELECT e.event_id, e.event_version,
    CASE WHEN e.event_timestamp >= '0001-01-02Z' AND e.event_timestamp < '9999-12-31Z'
        THEN e.event_timestamp ELSE 'infinity' END AS event_timestamp,
    e.event_type, e.event_category, e.event_action, e.event_outcome, e.actor_type, e.actor_id,
    format('%s', e.actor_ip) AS actor_ip, e.resource_type, e.resource_id, e.correlation_id, e.parent_event_id,
    CASE WHEN e.parent_event_date <= '0001-01-01' OR e.parent_event_date >= '9999-12-31'
        THEN 'infinity' ELSE e.parent_event_date END AS parent_event_date,
    e.namespace, e.cluster_id, e.event_data::text, e.severity, e.duration_ms, e.error_code, e.error_message,
    e.retention_days, e.is_sensitive, e.event_hash, e.previous_event_hash, e.hash_algorithm, p.event_hash IS NOT NULL AS linked
FROM audit_events e LEFT JOIN (
    SELECT DISTINCT event_hash FROM audit_events WHERE correlation_id = $1 AND event_hash IS NOT NULL
) p ON p.event_hash = e.previous_event_hash
WHERE e.correlation_id = $1 AND e.log_index IS NULL AND e.chain_index IS NULL AND e.event_hash IS NOT NULL
ORDER BY e.event_timestamp, e.event_id

-- name: unhashed_count
-- Rows of one correlation that nothing can be said about.
SELECT count(*) FROM audit_events
WHERE correlation_id = $1 AND log_index IS NULL AND chain_index IS NULL AND event_hash IS NULL

-- name: head
-- The end that one chain must have.
SELECT length, hash FROM chain_heads WHERE correlation_id = $1

-- name: flushes
-- The log from its beginning.
SELECT first_index, count, leaves FROM log_flushes WHERE log_id = 0 ORDER BY first_index

-- name: flushes_of
-- The flushes that hold a part of the log.
SELECT first_index, count, leaves FROM log_flushes
WHERE log_id = 0 AND first_index < $2
    AND first_index >= (SELECT coalesce(max(first_index), $1) FROM log_flushes WHERE log_id = 0 AND first_index <= $1)
ORDER BY first_index

-- name: leaves_at
-- The leaves at some positions.
SELECT position, substr(f.leaves, ((position - f.first_index) * 32 + 1)::int, 32) AS leaf
FROM unnest($1::bigint[]) AS position
CROSS JOIN LATERAL (
    SELECT first_index, count, leaves FROM log_flushes
    WHERE log_id = 0 AND first_index <= position ORDER BY first_index DESC LIMIT 1
) f
WHERE position - f.first_index < least(f.count, octet_length(f.leaves) / 32)

-- name: leaf_positions
-- Where in the log a leaf stands: nowhere, or in one place.
SELECT first_index + (position($1::bytea in leaves) - 1) / 32 AS position FROM log_flushes
WHERE log_id = 0 AND first_index + count > $2 AND first_index <= $3 AND position($1::bytea in leaves) % 32 = 1

-- name: log_name
-- Part of every hash.
SELECT name FROM logs WHERE log_id = 0

-- name: log_extent
-- The log's name, and how many events its flushes say that it has.
SELECT (SELECT name FROM logs WHERE log_id = 0) AS name,
    (
        SELECT greatest(0, first_index + least(count, octet_length(leaves) / 32))
        FROM log_flushes WHERE log_id = 0 ORDER BY first_index DESC LIMIT 1
    ) AS log_end

-- name: present
-- How many positions of a part of the log have rows: of those that were purged, and of the others.
WITH purged AS MATERIALIZED (SELECT $3::text::int8multirange AS positions)
SELECT count(DISTINCT log_index) FILTER (WHERE positions @> log_index) AS purged,
    count(DISTINCT log_index) FILTER (WHERE NOT positions @> log_index) AS kept
FROM audit_events, purged WHERE log_index >= $1 AND log_index < $2

-- name: own_correlations
-- Where the service's own events of some types stand.
SELECT DISTINCT correlation_id FROM audit_events WHERE event_type = ANY($1) AND log_index IS NOT NULL

-- name: links
-- What links the chains of some correlations, and the ends that they must have. A head without rows has a row here too.
SELECT correlation_id, chain_index, log_index, event_hash, previous_event_hash, event_id, event_timestamp, length, hash
FROM (
    SELECT correlation_id, chain_index, log_index, event_hash, previous_event_hash, event_id,
        CASE WHEN event_timestamp >= '0001-01-02Z' AND event_timestamp < '9999-12-31Z'
            THEN event_timestamp ELSE 'infinity' END AS event_timestamp
    FROM audit_events
    WHERE correlation_id >= $1 AND ($2::text IS NULL OR correlation_id < $2)
        AND (log_index IS NOT NULL OR chain_index IS NOT NULL)
) e FULL JOIN (
    SELECT correlation_id, length, hash FROM chain_heads
    WHERE correlation_id >= $1 AND ($2::text IS NULL OR correlation_id < $2)
) h USING (correlation_id)
ORDER BY correlation_id, chain_index NULLS LAST, log_index

-- name: log_parts
-- Flushes that cut the log into parts of about so many events. Counted by leaves, since a damaged flush may claim any position.
SELECT min(first_index) AS first FROM (
    SELECT first_index, sum(octet_length(leaves) / 32) OVER (ORDER BY first_index) / $1 AS part
    FROM log_flushes WHERE log_id = 0 AND first_index >= 0
) numbered GROUP BY part ORDER BY first

-- name: chain_parts
-- Correlations that cut the chains into parts of about so many.
SELECT correlation_id FROM (
    SELECT correlation_id, row_number() OVER (ORDER BY correlation_id) AS number FROM chain_heads
) numbered WHERE number % $1 = 0 ORDER BY correlation_id

-- name: unsealed_correlations
-- Those that have rows which others inserted and hashed.
SELECT DISTINCT correlation_id FROM audit_events
WHERE log_index IS NULL AND chain_index IS NULL AND event_hash IS NOT NULL

-- name: tiles_at
-- Tiles of the higher levels, by pairs of level and index.
SELECT level, index, hashes FROM log_tiles
WHERE log_id = 0 AND (level, index) IN (SELECT * FROM unnest($1::smallint[], $2::bigint[]))

-- name: checkpoints
-- What was signed, as far as the database keeps it.
SELECT size, note FROM log_checkpoints WHERE log_id = 0
UNION SELECT NULL, note FROM log_signers WHERE log_id = 0 AND note IS NOT NULL
ORDER BY size

-- name: export_snapshot
-- The moment that this transaction sees, for other connections.
SELECT pg_export_snapshot()

-- name: try_verifier
-- One process at a time walks the log in the background; the lock ends with its connection.
SELECT pg_try_advisory_lock(hashtextextended('datastorage.verifier', 0))

-- name: verifier
-- How far the background verifier has come.
SELECT position, completed_end, round FROM verifier WHERE log_id = 0

-- name: verifier_at
-- The background verifier has come to position $1.
INSERT INTO verifier (log_id, position) VALUES (0, $1)
ON CONFLICT (log_id) DO UPDATE SET position = excluded.position, looked_at = now()

-- name: verifier_round
-- A round has ended at position $1, and the next begins. What was not found again is no more.
WITH ended AS (
    UPDATE verifier SET position = 0, completed_end = $1, completed_at = now(), round = round + 1, looked_at = now()
    WHERE log_id = 0 RETURNING round
)
DELETE FROM verifier_findings f USING ended WHERE f.log_id = 0 AND f.round < ended.round - 1

-- name: keep_finding
-- Keep what was found; true when it was not known.
INSERT INTO verifier_findings (log_id, position, kind, message, correlation_id, round) VALUES (0, $1, $2, $3, $4, $5)
ON CONFLICT (log_id, position, kind, message) DO UPDATE SET round = excluded.round
RETURNING xmax = 0 AS is_new

-- name: findings
-- How many findings there are of each kind.
SELECT kind, count(*) AS count FROM verifier_findings WHERE log_id = 0 GROUP BY kind

-- name: strange_heads
-- Events of a part of the log that the heads of their chains know nothing of, or know otherwise.
SELECT e.log_index, e.correlation_id, e.chain_index, h.length FROM audit_events e LEFT JOIN chain_heads h USING (correlation_id)
WHERE e.log_index >= $1 AND e.log_index < $2 AND (
    h.length IS NULL OR h.length <= e.chain_index OR (h.length = e.chain_index + 1 AND h.hash <> e.event_hash)
)
ORDER BY e.log_index LIMIT 100

-- name: whose
-- Whose events had these hashes: the event behind each, or the head of its chain, tells.
SELECT previous_event_hash AS hash, correlation_id FROM audit_events WHERE previous_event_hash = ANY($1)
UNION ALL SELECT hash, correlation_id FROM chain_heads WHERE hash = ANY($1)

-- name: checkpoints_within
-- What was signed for sizes of a part of the log.
SELECT size, note FROM log_checkpoints WHERE log_id = 0 AND size > $1 AND size <= $2 ORDER BY size

-- name: leaves_within
-- Leaves of a part of the log, flush by flush.
SELECT substr(leaves, (greatest(first_index, $1) - first_index)::int * 32 + 1,
    (least(first_index + count, $2) - greatest(first_index, $1))::int * 32) AS leaves
FROM log_flushes
WHERE log_id = 0 AND first_index < $2 AND first_index + count > $1
    AND first_index >= (SELECT coalesce(max(first_index), $1) FROM log_flushes WHERE log_id = 0 AND first_index <= $1)
ORDER BY first_index
