-- name: sealed_rows
-- The chain of one correlation in the order of its positions.
SELECT * FROM audit_events WHERE correlation_id = $1 AND log_index IS NOT NULL ORDER BY chain_index NULLS FIRST, log_index

-- name: unsealed_rows
-- Rows of one correlation that others inserted and hashed by the platform's older rules.
SELECT * FROM audit_events WHERE correlation_id = $1 AND log_index IS NULL AND event_hash IS NOT NULL
ORDER BY event_timestamp, event_id

-- name: hashes
-- Every hash of one correlation: an unsealed row may link to any of them.
SELECT event_hash FROM audit_events WHERE correlation_id = $1 AND event_hash IS NOT NULL

-- name: unhashed_count
-- Rows of one correlation that nothing can be said about.
SELECT count(*) FROM audit_events WHERE correlation_id = $1 AND log_index IS NULL AND event_hash IS NULL

-- name: head
-- The end that one chain must have.
SELECT length, hash FROM chain_heads WHERE correlation_id = $1

-- name: flushes
-- The log from its beginning.
SELECT first_index, count, leaves FROM log_flushes WHERE log_id = 0 ORDER BY first_index

-- name: leaf_rows
-- What the rows say that the leaves between two positions are.
SELECT log_index, event_hash FROM audit_events WHERE log_index >= $1 AND log_index < $2 ORDER BY log_index

-- name: correlations
-- Every correlation that has a chain or ought to have one.
SELECT correlation_id FROM chain_heads UNION SELECT DISTINCT correlation_id FROM audit_events WHERE log_index IS NOT NULL
