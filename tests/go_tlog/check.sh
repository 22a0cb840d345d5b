#!/usr/bin/env bash
# Verifies a service's checkpoint, tiles and proofs with golang.org/x/mod/sumdb and filippo.io/torchwood.
set -euo pipefail
cd "$(dirname "$0")"
if ! command -v go >/dev/null; then
  echo "skipped: there is no Go on this machine"
  exit 0
fi

root=$(cd ../.. && pwd)
python=${PYTHON:-$root/.venv/bin/python}
export PYTHONPATH=$root
work=$(mktemp -d)
chmod 711 "$work" # as root, Postgres runs as another user, who has to get to its data
service=
trap '[ -z "$service" ] || { kill "$service" 2>/dev/null && wait "$service"; }; rm -rf "$work"' EXIT

go build -o "$work/verify" .
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
cd "$work"
DATASTORAGE_PORT=$port DATASTORAGE_DATA_DIR=$work/data "$python" -m app serve >"$work/service.log" 2>&1 &
service=$!
for _ in $(seq 100); do
  "$python" -c "from urllib.request import urlopen; urlopen('http://127.0.0.1:$port/readyz')" 2>/dev/null && break
  kill -0 "$service" 2>/dev/null || break
  sleep 0.2
done
./verify "http://127.0.0.1:$port" || { tail -20 "$work/service.log"; exit 1; }
