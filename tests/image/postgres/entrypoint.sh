#!/bin/sh
# Honours POSTGRES_USER, POSTGRES_PASSWORD, POSTGRES_DB and PGDATA as the official image does: the first start makes the
# cluster with that superuser and database, and every start runs the server as the user postgres. Other commands run as they are.
set -eu
[ "$1" = postgres ] || exec "$@"
if [ "$(id -u)" = 0 ]; then
  mkdir -p "$PGDATA" /run/postgresql
  chown -R postgres: "$PGDATA" /run/postgresql
  chmod 700 "$PGDATA"
  exec setpriv --reuid postgres --regid postgres --init-groups "$0" "$@"
fi
mkdir -p "$PGDATA"
chmod 700 "$PGDATA" 2>/dev/null || :  # one that Kubernetes gives to a group is somebody else's
user=${POSTGRES_USER:-postgres}
database=${POSTGRES_DB:-$user}
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  : "${POSTGRES_PASSWORD:?is needed to make the cluster}"
  (umask 077 && printf '%s\n' "$POSTGRES_PASSWORD" > "/tmp/password")
  initdb --username "$user" --pwfile /tmp/password --auth-local trust --auth-host scram-sha-256 --encoding UTF8 --locale C.UTF-8
  rm /tmp/password
  echo 'host all all all scram-sha-256' >> "$PGDATA/pg_hba.conf"
  if [ "$database" != postgres ]; then
    echo "CREATE DATABASE \"$database\"" | postgres --single -D "$PGDATA" postgres
  fi
fi
exec "$@" -c listen_addresses='*'
