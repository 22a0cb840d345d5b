-- Parts of statements, each written once. A statement of another file names one in braces.

-- A time or date that Python cannot represent is read as infinity, which no event has: the row then shows as edited.
-- jsonb is read as its text: the pool's connections would decode it into Python's numbers, which lose digits.

-- fragment: hashed_columns
-- What verification needs of a row of audit_events: everything that the record, the commitment and the chain are made of.
event_id, event_version,
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
    error_message, is_sensitive, event_hash, previous_event_hash, log_id, log_index, chain_index, payload_salt,
    payload_commitment

-- fragment: notification_columns
-- What verification needs of a row of notification_audit. Times as above.
remediation_id, notification_id, recipient, channel, message_summary, status,
    CASE WHEN sent_at >= '0001-01-02Z' AND sent_at < '9999-12-31Z' THEN sent_at ELSE 'infinity' END AS sent_at,
    delivery_status, error_message, escalation_level,
    CASE WHEN created_at >= '0001-01-02Z' AND created_at < '9999-12-31Z' THEN created_at ELSE 'infinity' END AS created_at,
    CASE WHEN updated_at >= '0001-01-02Z' AND updated_at < '9999-12-31Z' THEN updated_at ELSE 'infinity' END AS updated_at,
    salt, log_id, log_index

-- fragment: on_log
-- Whether a row of audit_events says that it is at a position of the log. Whether the log has its hash there, verification finds out.
-- No flush begins at 2^62: the end of one that somebody put there may be no bigint.
(log_index >= 0 AND CASE WHEN log_id = 0 THEN log_index < (
        SELECT first_index + count FROM log_flushes
        WHERE log_flushes.log_id = 0 AND first_index < 1::bigint << 62 ORDER BY first_index DESC LIMIT 1
    ) WHEN log_id IN (SELECT log_id FROM logs) THEN log_index < (
        SELECT first_index + count FROM (SELECT log_id AS of_log, first_index, count FROM log_flushes) f
        WHERE of_log = log_id AND first_index < 1::bigint << 62 ORDER BY first_index DESC LIMIT 1
    ) END) IS TRUE

-- fragment: leaf_of_row
-- The leaf, in hex, that the log has at the position of a row of audit_events; NULL without one. As in the statement leaves_at, of
-- flushes with one position the first counts.
CASE WHEN log_id IN (SELECT log_id FROM logs) THEN (
        SELECT encode(substr(leaves, ((log_index - first_index) * 32 + 1)::int, 32), 'hex') FROM (
            SELECT first_index, count, leaves FROM (SELECT log_id AS of_log, first_index, count, leaves FROM log_flushes) f
            WHERE of_log = log_id AND first_index <= log_index ORDER BY first_index DESC LIMIT 4
        ) near WHERE first_index >= 0 AND log_index - first_index < least(count, octet_length(leaves) / 32) ORDER BY first_index LIMIT 1
    ) END

-- fragment: stored_events
-- The columns that archived_events has, but for the last one, of rows of audit_events as e.
e.event_id, e.event_timestamp, event_type, event_outcome, actor_type, actor_id, namespace, cluster_id, event_data

-- fragment: archived_events
-- Events that are in the archive alone, from $3 on by columns (app/query/both.py).
SELECT id, moment, kind, outcome, type_of_actor, actor, event_namespace, cluster, payload::jsonb, is_sealed
    FROM unnest($3::uuid[], $4::timestamptz[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[], $10::text[], $11::text[], $12::boolean[])
        AS archived (id, moment, kind, outcome, type_of_actor, actor, event_namespace, cluster, payload, is_sealed)

-- fragment: held_rows
-- Rows of audit_events as e, each with the hold as h that covers it now, if one does.
SELECT e.event_id, e.event_date, e.correlation_id, h.reason, h.placed_by, h.placed_at
    FROM audit_events e
    LEFT JOIN holds h ON h.hold_id = hold_of(e.correlation_id, e.actor_id, e.resource_type, e.resource_id, e.event_timestamp)

-- fragment: unmark_held
-- Gives the rows of `held` the mark of the hold that covers them now; without one they are no longer held. Returns how many.
unmarked AS (
    UPDATE audit_events e
    SET legal_hold = h.placed_at IS NOT NULL,
        legal_hold_reason = coalesce(h.reason, concat(e.legal_hold_reason, ' [Released: ', $2::text, ']')),
        legal_hold_placed_by = coalesce(h.placed_by, e.legal_hold_placed_by),
        legal_hold_placed_at = coalesce(h.placed_at, e.legal_hold_placed_at)
    FROM held h
    WHERE e.event_id = h.event_id AND e.event_date = h.event_date AND e.correlation_id = h.correlation_id
    RETURNING e.legal_hold
)
SELECT count(*) FROM unmarked WHERE NOT legal_hold

-- fragment: first_flush_with
-- Where the first of the last few flushes begins that have position $1.
(SELECT min(first_index) FROM (
        SELECT first_index, count FROM log_flushes WHERE log_id = {log} AND first_index <= $1 ORDER BY first_index DESC LIMIT 4
    ) near WHERE first_index > $1 - count)

-- fragment: tiled_sizes
-- How many leaves each tile of level 1 and those before it cover. A tile behind a missing one, or behind one that is not full, counts
-- for nothing; and where the next one will begin the service has put an empty one, so that nobody can insert it.
SELECT (index * 256 + octet_length(hashes) / 32) * 256 AS size FROM (
        SELECT index, hashes, row_number() OVER (ORDER BY index) - 1 AS place,
            coalesce(bool_and(octet_length(hashes) = 8192) OVER (
                ORDER BY index ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), true) AS follows
        FROM log_tiles WHERE log_id = {log} AND level = 1 AND index >= 0
    ) t WHERE index = place AND follows

-- fragment: known_size
-- The largest size of the log that is known from the last checkpoint or from tiles (`tiled`), and that a flush reaches; 0 at least. The walk
-- to the log's end begins there, so it has a second's flushes or some hundred.
SELECT size FROM (
        SELECT size FROM (
            SELECT CASE WHEN split_part(note, E'\n', 2) ~ '^[0-9]{1,18}$' THEN split_part(note, E'\n', 2)::bigint END AS size
            FROM log_signers WHERE log_id = {log}
            UNION ALL SELECT size FROM tiled
            UNION ALL SELECT 0
        ) sizes WHERE size IS NOT NULL ORDER BY size DESC OFFSET 0
    ) known CROSS JOIN LATERAL (
        SELECT first_index + greatest(count, 1) AS flush_end FROM log_flushes
        WHERE log_id = {log} AND first_index < greatest(known.size, 1) ORDER BY first_index DESC LIMIT 1
    ) f WHERE flush_end >= size LIMIT 1

-- fragment: following_flushes
-- The flushes that follow each other without a gap up to the log's end, from the one on that has the leaf before `anchor`, or the
-- first one. A row that somebody put beside them may have that leaf too: of such the one counts that begins where another one ends, then
-- the one that begins first. What lies beyond a gap is not part of the log. LIMIT: each step is one look into the index, whatever the
-- planner expects.
near AS (
    SELECT first_index, count, flushed_at, first_index + greatest(count, 1) < (SELECT size FROM anchor) AS is_before FROM log_flushes
    WHERE log_id = {log} AND first_index >= -1 AND first_index < greatest((SELECT size FROM anchor), 1)
    ORDER BY first_index DESC LIMIT 4
), following AS (
    (
        SELECT first_index, count, flushed_at FROM near n WHERE NOT is_before OR first_index IN (-1, 0)
        ORDER BY is_before,
            EXISTS (SELECT FROM near p WHERE p.first_index + greatest(p.count, 1) = n.first_index) DESC, first_index LIMIT 1
    )
    UNION ALL
    SELECT f.* FROM following p CROSS JOIN LATERAL (
        SELECT first_index, count, flushed_at FROM log_flushes
        WHERE log_id = {log} AND first_index = p.first_index + greatest(p.count, 1) LIMIT 1
    ) f
)

-- fragment: can_be_counted
-- Whether a table of rollup_tables as t has its triggers, and the days of the month that its name says.
(t.identity IS NOT NULL AND pg_get_expr((SELECT relpartbound FROM pg_class WHERE oid = t.month), t.month)
        = format('FOR VALUES FROM (%L) TO (%L)', t.first_day, (t.first_day + interval '1 month')::date))

-- fragment: position_max
-- The last position that a bigint has.
9223372036854775807

-- fragment: has_later_logs
-- Whether the database has more than one log.
(SELECT count(*) > 0 FROM logs WHERE log_id > 0)

-- fragment: log_of_row
-- The log among whose rows the roll-up counts a row of c: the first one, unless the row says that it is of a later one, and there are such.
CASE WHEN c.log_id > 0 AND (SELECT count(*) > 0 FROM logs WHERE log_id > 0) THEN c.log_id ELSE 0 END

-- fragment: counted_columns
-- By what events are counted.
event_timestamp, event_type, event_category, event_outcome, severity, cluster_id, namespace

-- fragment: discard_counts
-- Deletes the counts of months that were discarded.
counts AS (
    DELETE FROM rollup_counts WHERE month IN (SELECT month FROM discarded)
), scopes AS (
    DELETE FROM rollup_scopes WHERE month IN (SELECT month FROM discarded)
), marginals AS (
    DELETE FROM rollup_marginals WHERE month IN (SELECT month FROM discarded)
)

-- fragment: add_counts
-- Adds what is `counted` to the counts, by hours, days and months: to those by type, and to those by cluster and namespace, where
-- is_self_event is true of all that unfiltered answers leave out: audit events of Kubernetes too (docs/decisions/0059).
by_hour AS MATERIALIZED (
    SELECT month, date_trunc('hour', event_timestamp, 'UTC') AS start, event_type, event_category, event_outcome, severity, cluster_id,
        namespace, event_category = 'kubernetes' OR event_type LIKE 'kubernetes.audit.%' OR (event_category = 'security' AND event_type LIKE 'datastorage.%'
            AND event_type <> 'datastorage.ratelimit.denied') AS is_self_event,
        sum(events) AS events
    FROM counted GROUP BY 1, 2, 3, 4, 5, 6, 7, 8
), added AS (
    INSERT INTO rollup_counts AS c (span, start, month, event_type, event_category, event_outcome, severity, events)
    SELECT s.span, date_trunc(s.unit, h.start, 'UTC'), month, event_type, event_category, event_outcome, severity,
        sum(events)
    FROM by_hour h CROSS JOIN (VALUES ('h', 'hour'), ('d', 'day'), ('m', 'month')) s(span, unit)
    GROUP BY 1, 2, 3, 4, 5, 6, 7
    ON CONFLICT (span, start, month, event_type, event_category, event_outcome, severity)
        DO UPDATE SET events = c.events + excluded.events
), added_to_scopes AS (
    INSERT INTO rollup_scopes AS c (span, start, month, cluster_id, namespace, event_outcome, is_self_event, events)
    SELECT s.span, date_trunc(s.unit, h.start, 'UTC'), month, cluster_id, namespace, event_outcome, is_self_event, sum(events)
    FROM by_hour h CROSS JOIN (VALUES ('h', 'hour'), ('d', 'day'), ('m', 'month')) s(span, unit)
    GROUP BY 1, 2, 3, 4, 5, 6, 7
    ON CONFLICT (span, start, month, cluster_id, namespace, event_outcome, is_self_event)
        DO UPDATE SET events = c.events + excluded.events
)

-- fragment: types_of_others
-- The types of all events but audit events of Kubernetes: from one to the next in the index on types, whatever number of events they have.
WITH RECURSIVE found AS (
    (SELECT event_type FROM audit_events ORDER BY event_type LIMIT 1)
    UNION ALL
    SELECT next.event_type FROM found CROSS JOIN LATERAL (
        SELECT event_type FROM audit_events e WHERE e.event_type > found.event_type ORDER BY event_type LIMIT 1
    ) next
)
SELECT event_type FROM found WHERE event_type NOT LIKE 'kubernetes.audit.%'

-- fragment: scanned_events
-- What a scan for correlations reads: events after a cursor ($1, $2) that are not older than $3. What is left out is read too: the scan
-- is bounded by what it reads.
SELECT correlation_id, timezone('UTC', event_timestamp)::text AS timestamp, event_id, event_type, event_outcome, namespace,
    cluster_id, event_category = 'security' AND event_type LIKE 'datastorage.%'
        AND event_type <> 'datastorage.ratelimit.denied' AS is_self_event,
    event_category = 'kubernetes' OR event_type LIKE 'kubernetes.audit.%' AS is_kubernetes
FROM audit_events
WHERE (event_timestamp, event_id) < (timezone('UTC', $1::text::timestamp), $2)
    AND event_timestamp >= timezone('UTC', $3::text::timestamp)

-- fragment: approval_columns
-- Of an event about approval as e: what it says of it, with texts cut so that all fits into memory.
event_id::text, CASE WHEN event_timestamp < '0001-01-01Z' THEN '0001-01-01Z'
            WHEN event_timestamp >= '10000-01-01Z' THEN '9999-12-31 23:59:59.999999Z' ELSE event_timestamp END AS event_timestamp,
        event_type, event_outcome, actor_type, actor_id,
        left(coalesce(event_data->>'confidence_str', event_data->>'confidence_score', event_data->>'confidence',
            event_data#>>'{response_data,confidence}'), 100) AS confidence,
        left(coalesce(event_data->>'rejection_reason', event_data->>'decision_message', event_data->>'message',
            event_data->>'approval_reason', event_data->>'reason'), 1000) AS reason,
        left(coalesce(event_data->>'approved_by', event_data->>'rejected_by', event_data->>'decided_by'), 255) AS decided_by,
        left(event_data->>'decision', 100) AS decision, left(event_data->>'required_by', 100) AS required_by,
        left(event_data->>'workflow_id', 255) AS workflow_id, sealed

-- fragment: judging_types
-- The types of events by which others are judged: they are never erased, and stay in Postgres when what they are about is archived.
'datastorage.event.erased', 'datastorage.retention.purged', 'datastorage.retention.restored',
    'datastorage.hold.placed', 'datastorage.hold.released', 'datastorage.hold.adopted',
    'datastorage.policy.set', 'datastorage.policy.removed', 'datastorage.notification.stored',
    'datastorage.finding.recorded', 'datastorage.finding.acknowledged', 'datastorage.log.continued',
    'datastorage.archive.stored', 'datastorage.archive.expired',
    'datastorage.archive.locked', 'datastorage.archive.unlocked'

-- fragment: is_logged_self_event
-- Whether a row is a self event of one of the types $1, in the log. They are found by their correlation, or where the database's collation does
-- not let an index have its beginning, by their type: a plan that is made for any types would take them for a third of all events, and
-- read all by their position, of which `+ 0` therefore asks no index.
event_type = ANY($1) AND event_category = 'security' AND correlation_id LIKE 'datastorage:%' AND log_index + 0 IS NOT NULL
