-- name: ensure_partitions
-- Makes the monthly partitions missing between two days and answers how many; the function runs with its owner's rights.
SELECT ensure_partitions($1, $2)

-- name: forget_expired_claims
-- Promises that are over, a bounded number at a time; ids that clients sent are kept for ever.
DELETE FROM claims WHERE (scope, key) IN (
    SELECT scope, key FROM claims WHERE expires_at < now() AND scope <> 'event' LIMIT 10000)
