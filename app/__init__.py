"""DataStorage, the audit event store of the Kubernaut platform. One package or module per station; imports point down.

An event:  serve, tls, connection, framing, exchange (the HTTP server) > main (builds and wires everything) > api (routes) >
           auth (who calls, and may they) > events (what an event is) > ingest (commits it to Postgres, else to the spool) >
           tlog (tiles, signed checkpoints, proofs).
Processes: serve > pod (several processes as one service) > api.
A page:    pages (what a browser sees) > api.
A query:   api > query (filters, pages, reports), export (signed files), verify (compares rows, chains, log and checkpoints).
Removal:   retention (holds, policies, purge, erase).
Archive:   archive (months of the log as verified files of a table that other engines read).
Findings:  findings (what verify and tlog find wrong, recorded in the log until somebody acknowledges it).
Postgres:  db (connections), schema (revision, migrations), tables and sql (SQLAlchemy tables, named statements), standby (what
           synchronous standbys have), presence (whether Postgres answers, whether the process shuts down), workers (the loop of background workers), embedded (a private server).
Shared:    settings and config_file (configuration), errors (one class per problem type), metrics, logs, tracing, openapi,
           masking (credentials in shown texts), watched_file (reloads a changed file), state_dir (paths of local state),
           go_duration, terminal.
Commands:  cli (the command `datastorage`; most of its commands are clients of a running service: HTTP only), simulate (as such a client).
"""
