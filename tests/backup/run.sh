#!/usr/bin/env bash
# Base backup, WAL archive and recovery to a time, as docs/operations.md ("Back up and restore") has them, with Debian's Postgres 15 and a
# running service: what the log says afterwards, and how it goes on. Says `skipped: …` where there is no such Postgres.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
bin=/usr/lib/postgresql/15/bin
[ -x $bin/postgres ] || { echo "skipped: no Postgres 15 of Debian"; exit 0; }
work=$(mktemp -d); chmod 755 "$work"; cd "$work"
as=(); if [ "$(id -u)" = 0 ]; then as=(setpriv --reuid=postgres --regid=postgres --clear-groups); fi
free() { "$root/.venv/bin/python" -c 'from tests.services import free_port; print(free_port())'; }
export PYTHONPATH=$root
port=$(free); url="postgresql://datastorage@127.0.0.1:$port/datastorage?sslmode=disable"
datastorage() { "$root/.venv/bin/python" -m app "$@"; }
postgres() { "${as[@]}" $bin/pg_ctl --pgdata "$1" --log "$work/pg/log" --wait --options "-p $port -k $work/pg" start >/dev/null; }
stop() { "${as[@]}" $bin/pg_ctl --pgdata "$1" --mode "${2:-fast}" stop >/dev/null; }
service=; cleanup() { [ -z "$service" ] || kill -9 "$service" 2>/dev/null || true; for d in pg/data pg/restored; do [ ! -f $d/postmaster.pid ] || stop $d immediate || true; done; rm -rf "$work"; }
trap cleanup EXIT
mkdir pg archive spool; [ ${#as[@]} = 0 ] || chown postgres pg archive

serve() {
  DATASTORAGE_DATABASE_URL=$url DATASTORAGE_MIGRATE=true DATASTORAGE_PORT=$api DATASTORAGE_PROCESSES=1 DATASTORAGE_SPOOL_DIR=$work/spool \
    DATASTORAGE_LOG_NAME=backup.example/log DATASTORAGE_CHECKPOINT_KEY_FILE=$work/key.pem DATASTORAGE_CHECKPOINT_FILE=$work/checkpoints \
    DATASTORAGE_ACCESS_LOG=false "$root/.venv/bin/python" -m app serve >>"$work/log" 2>&1 &
  service=$!
  until curl --silent --fail --output ready "http://127.0.0.1:$api/readyz"; do kill -0 $service || { cat log; exit 1; }; sleep 0.2; done
}
post() {
  curl --silent --show-error --fail --output answer --header 'Content-Type: application/json' "http://127.0.0.1:$api/api/v1/audit/events" --data-binary @- <<JSON
{"version": "1.0", "event_type": "orchestrator.lifecycle.started", "event_timestamp": "$(date --utc +%Y-%m-%dT%H:%M:%SZ)", "event_category": "orchestration",
 "event_action": "$1", "event_outcome": "success", "correlation_id": "rr-backup",
 "event_data": {"event_type": "orchestrator.lifecycle.started", "rr_name": "rr-backup", "namespace": "payments"}}
JSON
}
signed() { until [ "$(curl --silent "http://127.0.0.1:$api/tlog/checkpoint" | sed -n 2p)" = "$1" ]; do sleep 0.2; done; }

"${as[@]}" $bin/initdb --pgdata pg/data --username datastorage --auth trust --encoding UTF8 --locale C.UTF-8 >/dev/null
"${as[@]}" tee -a pg/data/postgresql.conf >/dev/null <<CONF
archive_mode = on
archive_command = 'test ! -f $work/archive/%f && cp %p $work/archive/%f'
CONF
postgres pg/data
$bin/createdb --host 127.0.0.1 --port "$port" --username datastorage datastorage
datastorage checkpoint-key key.pem >/dev/null
api=$(free)
serve
for number in 1 2 3; do post "before-$number"; done
echo "== base backup, and what comes after it"
"${as[@]}" $bin/pg_basebackup --pgdata pg/restored --dbname "postgresql://datastorage@127.0.0.1:$port/" --checkpoint=fast --wal-method=stream
for number in 1 2; do post "after-$number"; done
signed 5
sleep 1.5
target=$(date --utc '+%Y-%m-%d %H:%M:%S.%N+00')
for number in 1 2 3 4; do post "lost-$number"; done
signed 9
$bin/psql --quiet --host 127.0.0.1 --port "$port" --username datastorage --dbname datastorage --command 'SELECT pg_switch_wal()' >/dev/null
sleep 1
curl --silent "http://127.0.0.1:$api/tlog/key" >key.pub
echo "== the service stops; recovery to $target"
kill $service; wait $service || true; service=
stop pg/data
"${as[@]}" tee -a pg/restored/postgresql.auto.conf >/dev/null <<CONF
restore_command = 'cp $work/archive/%f %p'
recovery_target_time = '$target'
recovery_target_action = 'promote'
CONF
"${as[@]}" touch pg/restored/recovery.signal
postgres pg/restored
until [ "$($bin/psql --no-align --tuples-only --host 127.0.0.1 --port "$port" --username datastorage --dbname datastorage --command 'SELECT pg_is_in_recovery()')" = f ]; do sleep 0.2; done
export DATASTORAGE_DATABASE_URL=$url DATASTORAGE_RETENTION_URL=$url DATASTORAGE_CHECKPOINT_KEY_FILE=$work/key.pem DATASTORAGE_LOG_NAME=backup.example/log
echo "== datastorage verify"
code=0; datastorage verify --key key.pub --checkpoint checkpoints || code=$?
[ $code = 1 ] || { echo "FAILED: verify exits with $code, not 1"; exit 1; }
serve
until curl --silent "http://127.0.0.1:$api/readyz" | grep -q continuation_needed; do sleep 0.2; done
echo "== /readyz"; curl --silent "http://127.0.0.1:$api/readyz"; echo
post while-nothing-is-signed
echo "== datastorage log continue"
datastorage log continue --reason "recovery to $target, INC-123" --by ada --checkpoint checkpoints
until ! curl --silent "http://127.0.0.1:$api/readyz" | grep -q continuation_needed; do sleep 0.2; done
post in-the-next-log
signed 2
curl --silent "http://127.0.0.1:$api/tlog/key" >keys.pub
echo "== datastorage verify, with the keys of both logs"
datastorage verify --key keys.pub --checkpoint checkpoints
kill $service; wait $service || true; service=
stop pg/restored
echo "done"
