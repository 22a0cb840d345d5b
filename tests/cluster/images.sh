#!/usr/bin/env bash
# images.sh DIR: the images that the node runs, as DIR/images/all.tar, from the engine and bases of tests/image, which stay in
# DIR/engine. `datastorage:base` is the image of an earlier commit, whose chart is in DIR/base; without a history there is none.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
export PYTHON_IMAGE=python:3.11-slim-bookworm POSTGRES_IMAGE=postgres:15
BASE_COMMIT=306e059 # migration 0013
directory=$1
images=("$POSTGRES_IMAGE" pause:cluster datastorage:0.1.0 datastorage:0.1.1)
# shellcheck source=tests/image/engine.sh
. "$root/tests/image/engine.sh"

build() { # TAG CONTEXT
  local secret=()
  [ -z "${PIP_CERT:-}" ] || secret=(--secret "id=ca,src=$PIP_CERT")
  timeout 1800 docker build --quiet --network host "${secret[@]}" --tag "$1" "$2" >/dev/null
}

mkdir -p "$directory/engine" "$directory/images"
trap engine_down EXIT
engine_up "$directory/engine" || { echo "no container engine answers, and none could be installed and started" >&2; exit 1; }
echo "building images"
[ -z "${engine_pid:-}" ] || "$root/tests/image/base.sh" "$directory/engine"
build datastorage:0.1.0 "$root"
docker tag datastorage:0.1.0 datastorage:0.1.1
# What holds a pod's namespaces has nothing to do.
printf 'FROM %s\nENTRYPOINT ["sleep", "infinity"]\n' "$PYTHON_IMAGE" | docker build --quiet --tag pause:cluster - >/dev/null
if git -C "$root" cat-file -e "$BASE_COMMIT^{commit}" 2>/dev/null; then
  mkdir -p "$directory/base"
  git -C "$root" archive "$BASE_COMMIT" | tar -x -C "$directory/base"
  build datastorage:base "$directory/base"
  images+=(datastorage:base)
fi
digests=$(docker image inspect --format '{{.RepoTags}} {{.Id}}' "${images[@]}")
if [ "$digests" != "$(cat "$directory/images/digests" 2>/dev/null)" ]; then
  docker save "${images[@]}" --output "$directory/images/all.tar"
  echo "$digests" >"$directory/images/digests"
fi
