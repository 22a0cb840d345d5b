-- Counts by one member of events alone (docs/decisions/0074): sums of rollup_counts and of rollup_scopes. `dimension` is the name of the
-- member, `value` what it is. Triggers keep them, so that they are the sums whoever counts, also a release before this one.

-- As the roll-up's worker: while this is held nobody counts, and no worker waits for the tables that are locked here.
SELECT pg_advisory_xact_lock(hashtextextended('datastorage.rollup', 0));

CREATE TABLE rollup_marginals (
    dimension text NOT NULL,
    span text NOT NULL,
    start timestamptz NOT NULL,
    month oid NOT NULL,
    value varchar(255),
    is_self_event boolean NOT NULL,
    events bigint NOT NULL,
    UNIQUE NULLS NOT DISTINCT (dimension, span, start, month, value, is_self_event)
) WITH (fillfactor = 80);

-- A function and triggers for each of the two tables, which differ in their columns. Hours are added up: days and months are always
-- counted with them. Of what was deleted the months are added up anew: what is left of them, mostly nothing, whatever the sums were.
DO $$
DECLARE
    owner regrole := (SELECT relowner FROM pg_class WHERE oid = 'audit_events'::regclass);
    counts text;
    dimensions text[];
    self_event text;
    add text;
    made text;
BEGIN
    FOR counts, dimensions, self_event IN VALUES
        ('rollup_counts', ARRAY['event_outcome', 'event_category', 'event_type', 'severity'],
            $rule$event_category = 'kubernetes' OR event_type LIKE 'kubernetes.audit.%' OR (event_category = 'security'
                AND event_type LIKE 'datastorage.%' AND event_type <> 'datastorage.ratelimit.denied')$rule$),
        ('rollup_scopes', ARRAY['cluster_id', 'namespace'], 'is_self_event')
    LOOP
        add := format($sql$
            INSERT INTO rollup_marginals AS m (dimension, span, start, month, value, is_self_event, events)
            SELECT h.dimension, s.span, date_trunc(s.unit, h.start, 'UTC'), h.month, h.value, h.is_self_event, sum(h.events)
            FROM (
                SELECT d.dimension, c.start, c.month, d.value, (%s) AS is_self_event, sum(%%2$s) AS events
                FROM %%1$s c CROSS JOIN LATERAL (VALUES %s) d(dimension, value)
                WHERE c.span = 'h' GROUP BY 1, 2, 3, 4, 5
            ) h CROSS JOIN (VALUES ('h', 'hour'), ('d', 'day'), ('m', 'month')) s(span, unit)
            WHERE h.events <> 0 GROUP BY 1, 2, 3, 4, 5, 6
            ON CONFLICT (dimension, span, start, month, value, is_self_event) DO UPDATE SET events = m.events + excluded.events;
        $sql$, replace(self_event, '%', '%%'), (SELECT string_agg(format('(%L, %I)', one, one), ', ') FROM unnest(dimensions) one));
        made := counts || '_add_up';
        EXECUTE format($sql$
            CREATE FUNCTION %I() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = %I, pg_temp AS $body$
            BEGIN
                IF TG_OP = 'INSERT' THEN
                    %s
                ELSIF TG_OP = 'UPDATE' THEN
                    %s
                ELSIF TG_OP = 'DELETE' THEN
                    DELETE FROM rollup_marginals WHERE dimension = ANY (%L::text[]) AND month IN (SELECT month FROM removed);
                    %s
                ELSE
                    DELETE FROM rollup_marginals WHERE dimension = ANY (%L::text[]);
                END IF;
                RETURN NULL;
            END
            $body$
        $sql$, made, current_schema(), format(add, 'added', 'c.events'),
            format(add, '(SELECT *, events AS change FROM added UNION ALL SELECT *, -events FROM removed)', 'c.change'), dimensions,
            format(add, format('(SELECT * FROM %I WHERE month IN (SELECT month FROM removed))', counts), 'c.events'), dimensions);
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %I() FROM PUBLIC', made);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %I() TO %s', made, owner);
        EXECUTE format('CREATE TRIGGER add_up_inserted AFTER INSERT ON %I REFERENCING NEW TABLE AS added '
            'FOR EACH STATEMENT EXECUTE FUNCTION %I()', counts, made);
        EXECUTE format('CREATE TRIGGER add_up_updated AFTER UPDATE ON %I REFERENCING OLD TABLE AS removed NEW TABLE AS added '
            'FOR EACH STATEMENT EXECUTE FUNCTION %I()', counts, made);
        EXECUTE format('CREATE TRIGGER add_up_deleted AFTER DELETE ON %I REFERENCING OLD TABLE AS removed '
            'FOR EACH STATEMENT EXECUTE FUNCTION %I()', counts, made);
        EXECUTE format('CREATE TRIGGER add_up_truncated AFTER TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION %I()', counts, made);
        -- Also in a session whose ordinary triggers are off.
        EXECUTE format('ALTER TABLE %I ENABLE ALWAYS TRIGGER add_up_inserted, ENABLE ALWAYS TRIGGER add_up_updated, '
            'ENABLE ALWAYS TRIGGER add_up_deleted, ENABLE ALWAYS TRIGGER add_up_truncated', counts);
        EXECUTE format(add, counts, 'c.events');
    END LOOP;
    EXECUTE format('GRANT ALL ON rollup_marginals TO %s', owner);
END
$$;

-- Readers plan at once; without statistics they would read the table as a whole.
ANALYZE rollup_marginals;
