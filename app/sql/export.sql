-- name: log_size
-- The log's size in this snapshot, by the flushes that follow each other. Rows beyond it are in no export as events of the log.
WITH RECURSIVE anchor AS ({known_size}), {following_flushes}
SELECT coalesce((SELECT first_index + greatest(count, 1) FROM following ORDER BY first_index DESC LIMIT 1), 0)

-- name: checkpoint
-- The newest published checkpoint; if none is published yet, since witnesses have not answered, the newest signed one.
SELECT note || cosignatures FROM log_checkpoints WHERE log_id = 0 ORDER BY published_at IS NULL, size DESC LIMIT 1

-- name: before
-- Hashes of the events at these places of chains. OFFSET 0: each correlation is read once, not once for each of its places.
SELECT correlation_id, chain_index, event_hash
FROM (SELECT correlation_id, chain_index, event_hash FROM audit_events WHERE correlation_id = ANY($1::text[]) OFFSET 0) AS stored
JOIN unnest($1::text[], $2::bigint[]) AS wanted (correlation_id, chain_index) USING (correlation_id, chain_index)

-- name: linked
-- Which of these hashes an event of their correlation has. Each correlation is read once, as in `before`.
SELECT DISTINCT correlation_id, event_hash
FROM (SELECT correlation_id, event_hash FROM audit_events WHERE correlation_id = ANY($1::text[]) OFFSET 0) AS stored
JOIN unnest($1::text[], $2::text[]) AS wanted (correlation_id, event_hash) USING (correlation_id, event_hash)
