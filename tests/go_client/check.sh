#!/usr/bin/env bash
# Generates a Go client from openapi/datastorage.json with ogen, compiles it, posts an event and finds it again.
set -euo pipefail
cd "$(dirname "$0")"
if ! command -v go >/dev/null; then
  echo "skipped: there is no Go on this machine"
  exit 0
fi

root=$(cd ../.. && pwd)
work=$(mktemp -d)
chmod 711 "$work" # as root, Postgres runs as another user, who has to get to its data
service=
trap '[ -z "$service" ] || { kill "$service" 2>/dev/null && wait "$service"; }; rm -rf "$work"' EXIT

cp go.mod go.sum main.go "$work"
cd "$work"
go tool ogen --target api --package api --clean "$root/openapi/datastorage.json" 2>"$work/ogen.log" \
  || { cat "$work/ogen.log"; exit 1; }
go build -o client .

port=$("$root/.venv/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
DATASTORAGE_PORT=$port DATASTORAGE_DATA_DIR=$work/data "$root/.venv/bin/datastorage" serve >"$work/service.log" 2>&1 &
service=$!
for _ in $(seq 100); do
  "$root/.venv/bin/python" -c "from urllib.request import urlopen; urlopen('http://127.0.0.1:$port/readyz')" 2>/dev/null && break
  kill -0 "$service" 2>/dev/null || break
  sleep 0.2
done
./client "http://127.0.0.1:$port" || { tail -20 "$work/service.log"; exit 1; }
