#!/usr/bin/env bash
# Verifies a service's checkpoint, tiles and proofs with golang.org/x/mod/sumdb and filippo.io/torchwood, its signatures with
# transparency-dev/formats, and has the witness of transparency-dev cosign it and refuse a fork.
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
started=()
trap 'for one in "${started[@]}"; do kill "$one" 2>/dev/null && wait "$one" || :; done; rm -rf "$work"' EXIT

go build -o "$work/go_tlog" .
cd "$work"
./go_tlog vectors "$root"/docs/vectors/checkpoints/*.json

./go_tlog witness "$work/log.key" >witness.txt 2>witness.log &
started+=($!)
for _ in $(seq 100); do
  [ "$(wc -l <witness.txt)" = 2 ] && break
  sleep 0.1
done

# Two services with the same keys and the same name of the log: the second one's log is a fork of the first one's.
for algorithm in ed25519 ml-dsa-44; do "$python" -m app checkpoint-key "$algorithm.pem" --algorithm "$algorithm"; done
export DATASTORAGE_LOG_NAME=go.example/log DATASTORAGE_WITNESSES
DATASTORAGE_WITNESSES=$(sed 's/.*/"&"/' witness.txt | paste -sd, | sed 's/.*/[&]/')
export DATASTORAGE_CHECKPOINT_KEY_FILE=$work/ed25519.pem DATASTORAGE_CHECKPOINT_MLDSA_KEY_FILE=$work/ml-dsa-44.pem

serve() { # NAME: starts a service and waits until it is ready; its URL is in $url
  local port
  port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  url=http://127.0.0.1:$port
  DATASTORAGE_PORT=$port DATASTORAGE_DATA_DIR=$work/$1 "$python" -m app serve >"$work/$1.log" 2>&1 &
  started+=($!)
  for _ in $(seq 100); do
    "$python" -c "from urllib.request import urlopen; urlopen('$url/readyz')" 2>/dev/null && break
    kill -0 "${started[-1]}" 2>/dev/null || break
    sleep 0.2
  done
}

serve first
"$python" -c "from urllib.request import urlopen; print(urlopen('$url/tlog/key').read().decode(), end='')" >log.key
./go_tlog verify "$url" "$(cat witness.txt)" || { tail -n 20 first.log witness.log; exit 1; }
serve second
./go_tlog fork "$url" || { tail -n 20 second.log witness.log; exit 1; }
