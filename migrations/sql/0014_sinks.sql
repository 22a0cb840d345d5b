-- How far each sink has come (docs/decisions/0056). One row for each that ever delivered, until somebody removes it.
CREATE TABLE sinks (
    name text PRIMARY KEY CHECK (name ~ '^[a-z0-9-]{1,63}$'),
    -- Of the destination, and where that is, as people are shown it.
    type text NOT NULL,
    address text NOT NULL,
    -- The place of the first event that the destination has not confirmed: the log's id times 2^48, plus the position.
    place bigint NOT NULL CHECK (place >= 0),
    -- Where the portion ends that is on its way: it is sent again with the same end.
    sent_up_to bigint,
    -- Grows when somebody moves the cursor: who delivers meanwhile does not move it any more.
    revision bigint NOT NULL DEFAULT 0,
    paused boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now(),
    delivered_at timestamptz,
    -- Failures since the last delivery.
    failures bigint NOT NULL DEFAULT 0,
    last_error text,
    last_error_at timestamptz
) WITH (fillfactor = 50);

DO $$
DECLARE
    owner regrole := (SELECT relowner FROM pg_class WHERE oid = 'audit_events'::regclass);
BEGIN
    EXECUTE format('GRANT ALL ON sinks TO %s', owner);
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'datastorage_service') THEN
        GRANT SELECT, INSERT, UPDATE, DELETE ON sinks TO datastorage_service;
    END IF;
END
$$;
