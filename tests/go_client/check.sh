#!/usr/bin/env bash
# Generates Go clients with ogen and oapi-codegen from the OpenAPI document that a service serves; each posts an event and finds it again.
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

cp -r go.mod go.sum main.go second "$work"
cd "$work"

port=$("$root/.venv/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
DATASTORAGE_PORT=$port DATASTORAGE_DATA_DIR=$work/data "$root/.venv/bin/datastorage" serve >"$work/service.log" 2>&1 &
service=$!
for _ in $(seq 100); do
  "$root/.venv/bin/python" -c "from urllib.request import urlopen; urlopen('http://127.0.0.1:$port/readyz')" 2>/dev/null && break
  kill -0 "$service" 2>/dev/null || break
  sleep 0.2
done

url=http://127.0.0.1:$port
"$root/.venv/bin/python" - "$url" "$root/openapi/datastorage.json" <<'EOF'
import json, sys
from urllib.request import urlopen

served = urlopen(f"{sys.argv[1]}/openapi.json").read()
assert json.loads(served) == json.load(open(sys.argv[2])), "the service serves another document than the committed one"
open("served.json", "wb").write(served)
EOF

generate() { "$@" 2>generator.log || { cat generator.log; exit 1; }; }
generate go tool ogen --target api --package api --clean served.json
mkdir other
generate go tool oapi-codegen -generate types,client -package other -o other/client.go served.json
mkdir bin
go build -o bin . ./second
for client in bin/*; do
  "$client" "$url" || { tail -20 service.log; exit 1; }
done
