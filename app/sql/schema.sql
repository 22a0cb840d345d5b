-- name: lock
-- One replica at a time changes the schema; the lock ends with the connection.
SELECT pg_advisory_lock($1)

-- name: exists
-- Whether a migration of this service ever ran here.
SELECT to_regclass('alembic_version') IS NOT NULL

-- name: revision
-- The last migration that ran; no row while the first one is still running.
SELECT version_num FROM alembic_version

-- name: min_writer
-- The last migration that a release has to know to write to this schema.
SELECT revision FROM schema_min_writer

-- name: log_name
-- The name under which every event of this database was hashed.
SELECT name FROM logs WHERE log_id = 0

-- name: role_owns_events
-- Whether the current role owns the events, or is a superuser: then it can drop the triggers and rules that protect them.
SELECT current_user AS role, rolsuper OR pg_has_role(current_user, relowner, 'MEMBER') AS owns
FROM pg_class, pg_roles WHERE pg_class.oid = 'audit_events'::regclass AND rolname = current_user
