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
service=
trap '[ -z "$service" ] || { kill "$service"; wait "$service" || true; }; rm -rf "$work"' EXIT

cp go.mod go.sum main.go "$work"
cd "$work"
go tool ogen --target api --package api --clean "$root/openapi/datastorage.json" 2>"$work/ogen.log" \
  || { cat "$work/ogen.log"; exit 1; }
go build -o client .

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
DATASTORAGE_PORT=$port DATASTORAGE_DATA_DIR=$work/data "$root/.venv/bin/datastorage" serve >"$work/service.log" 2>&1 &
service=$!
for _ in $(seq 100); do
  curl -fs "http://127.0.0.1:$port/readyz" >/dev/null && break
  sleep 0.2
done
./client "http://127.0.0.1:$port" || { tail -20 "$work/service.log"; exit 1; }
