-- Higher levels of the log's tree (C2SP tlog-tiles): up to 256 hashes of 32 bytes one after another. Level 0 is log_flushes.
-- All of it is derived from there and can be made again.
CREATE TABLE log_tiles (
    log_id smallint NOT NULL,
    level smallint NOT NULL,
    index bigint NOT NULL,
    hashes bytea NOT NULL,
    PRIMARY KEY (log_id, level, index)
);
-- Hashes do not compress.
ALTER TABLE log_tiles ALTER COLUMN hashes SET STORAGE EXTERNAL;

-- What was signed: the newest, and the last one of each hour. published_at is NULL while witnesses are asked.
CREATE TABLE log_checkpoints (
    log_id smallint NOT NULL,
    size bigint NOT NULL,
    note text NOT NULL,
    cosignatures text NOT NULL DEFAULT '',
    signed_at timestamptz NOT NULL DEFAULT now(),
    published_at timestamptz,
    PRIMARY KEY (log_id, size)
);

-- The last note that was signed; whoever signs the next one locks this row. NULL before the first.
CREATE TABLE log_signers (
    log_id smallint PRIMARY KEY,
    note text
);
INSERT INTO log_signers (log_id) VALUES (0);
