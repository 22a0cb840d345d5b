-- How far the background verifier has come. Whoever can write here can write anywhere: a help for readers, and no proof.
CREATE TABLE verifier (
    log_id smallint PRIMARY KEY,
    position bigint NOT NULL,
    completed_end bigint NOT NULL DEFAULT 0,
    completed_at timestamptz,
    round bigint NOT NULL DEFAULT 1,
    looked_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO verifier (log_id, position) VALUES (0, 0);

-- What it found and still finds; the correlation is empty where nobody can tell whose event it was.
CREATE TABLE verifier_findings (
    log_id smallint NOT NULL,
    position bigint NOT NULL,
    kind text NOT NULL,
    message text NOT NULL,
    correlation_id text NOT NULL,
    round bigint NOT NULL,
    found_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (log_id, position, kind, message)
);
CREATE INDEX verifier_findings_correlation ON verifier_findings (correlation_id);
