-- name: log_size
-- The size in this snapshot of a log, by the flushes that follow each other. Rows beyond it are in no export as events of the log.
WITH RECURSIVE tiled AS ({tiled_sizes}), anchor AS ({known_size}), {following_flushes}
SELECT coalesce((SELECT first_index + greatest(count, 1) FROM following ORDER BY first_index DESC LIMIT 1), 0)

-- name: checkpoint
-- The newest published checkpoint; if none is published yet, since witnesses have not answered, the newest signed one.
SELECT note || cosignatures FROM log_checkpoints WHERE log_id = {log} ORDER BY published_at IS NULL, size DESC LIMIT 1

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

-- name: first_without_link
-- Of each of these correlations the unsealed event that is its first, and may link to none.
SELECT DISTINCT ON (correlation_id) correlation_id, event_id::text AS event_id
FROM (SELECT * FROM audit_events WHERE correlation_id = ANY($1::text[]) OFFSET 0) AS stored
WHERE log_index IS NULL AND chain_index IS NULL AND event_hash IS NOT NULL AND coalesce(previous_event_hash, '') = ''
ORDER BY correlation_id, event_timestamp, stored.event_id

-- name: ids_that_stand_twice
-- Those of these ids that several rows have.
SELECT event_id::text AS event_id FROM audit_events WHERE event_id = ANY($1::uuid[]) GROUP BY 1 HAVING count(*) > 1

-- name: ids_beside_the_archive
-- Those of these ids of archived events that rows have too.
SELECT DISTINCT event_id::text AS event_id FROM audit_events WHERE event_id = ANY($1::uuid[])

-- name: correlations_in_order
-- In the order in which pages have them.
SELECT correlation_id FROM unnest($1::text[]) AS wanted (correlation_id) ORDER BY correlation_id

-- name: end_before
-- The last event of a chain before chain position $2: its chain position, and the greatest place in the logs (place_of) of those before.
-- A numeric: others may have inserted any position of any log by SQL.
SELECT coalesce(max(chain_index), -1) AS chain_index,
    coalesce(max(coalesce(log_id, 0)::numeric * 281474976710656 + log_index), -1) AS place
FROM audit_events WHERE correlation_id = $1 AND chain_index < $2

-- name: hold_events
-- Self events about legal holds, each with its payload and place.
SELECT log_id, log_index, event_data::text FROM audit_events
WHERE event_type = ANY($1::text[]) AND event_category = 'security'
    AND correlation_id LIKE 'datastorage:hold:%' AND log_id IS NOT NULL AND log_index IS NOT NULL

-- name: notification_events
-- Places of the self events that have the digests of notifications about one remediation.
SELECT log_id, log_index FROM audit_events
WHERE event_type = 'datastorage.notification.stored' AND event_category = 'security' AND event_data->>'remediation_id' = $1
    AND correlation_id LIKE 'datastorage:notification:%' AND log_id IS NOT NULL AND log_index IS NOT NULL

-- name: notifications
-- The notifications about one remediation, whole, with what opens their digests.
SELECT id, {notification_columns} FROM notification_audit WHERE remediation_id = $1 ORDER BY notification_audit.sent_at, id LIMIT $2
