#!/usr/bin/env bash
# The database and black-box tests on Debian's own Postgres 15, which the embedded 18 stands beside. Arguments go to pytest.
# Says `skipped: …` and succeeds where there is neither that server nor root to install it.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=/usr/lib/postgresql/15/bin

if [ ! -x "$bin/initdb" ]; then
  { command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; } || { echo "skipped: there is no Postgres 15 at $bin"; exit 0; }
  echo "installing postgresql-15"
  timeout 120 apt-get -qq update
  DEBIAN_FRONTEND=noninteractive timeout 240 apt-get -qq -o DPkg::Lock::Timeout=300 install -y --no-install-recommends postgresql-15 >/dev/null \
    || { echo "skipped: this Debian has no postgresql-15"; exit 0; }
fi

work=$(mktemp -d)
chmod 711 "$work"
as_postgres=()
if [ "$(id -u)" = 0 ]; then
  chown postgres "$work"
  as_postgres=(setpriv --reuid postgres --regid postgres --init-groups)
fi
servers=()
trap 'for one in "${servers[@]}"; do kill -INT "$one" && wait "$one"; done || true; rm -rf "$work"' EXIT

# One for each process that runs tests, since what one server shows of its sessions is of all its databases.
jobs=$(python3 -c 'from app.cores import granted_cores; print(max(1, int(granted_cores() * 3 / 2)))')  # as the Makefile has it
urls=
for number in $(seq "$jobs"); do
  data=$work/$number
  port=$(python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
  "${as_postgres[@]}" "$bin/initdb" --pgdata "$data" --username datastorage --auth trust --encoding UTF8 --locale C.UTF-8 >"$work/initdb.log" \
    || { cat "$work/initdb.log"; exit 1; }
  # As the embedded server of the tests, it does not wait for the disk.
  "${as_postgres[@]}" "$bin/postgres" -D "$data" -p "$port" -k "$work" -c listen_addresses=127.0.0.1 -c fsync=off \
    -c max_connections=200 >"$work/server-$number.log" 2>&1 &
  servers+=($!)
  for _ in $(seq 100); do
    "$bin/pg_isready" --quiet --host 127.0.0.1 --port "$port" && break
    kill -0 $! || { cat "$work/server-$number.log"; exit 1; }
    sleep 0.1
  done
  urls="$urls postgresql://datastorage@127.0.0.1:$port/postgres"
done

export DATASTORAGE_TEST_DATABASE=dsn DATASTORAGE_TEST_DSN=$urls
make --no-print-directory test JOBS="$jobs" ARGS="${*:-tests/postgres tests/blackbox}"
