-- Checkpoints that a timestamp authority (RFC 3161) has stamped: the note as it was published, with all of its signatures, and the
-- TimeStampToken in DER over exactly these bytes. Kept for ever; verified with the authority's certificate alone.
CREATE TABLE log_timestamps (
    log_id smallint NOT NULL,
    size bigint NOT NULL,
    note text NOT NULL,
    token bytea NOT NULL,
    PRIMARY KEY (log_id, size)
);
