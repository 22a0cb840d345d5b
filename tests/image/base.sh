#!/usr/bin/env bash
# base.sh DIR: makes the images that Dockerfile and docker-compose.yml name, where no registry can be reached, unless they are there. Debian's
# Python stands in for the official Python image, Debian's Postgres 15 for the official Postgres image. DIR is scratch.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
: "${PYTHON_IMAGE:?}" "${POSTGRES_IMAGE:?}"

if ! docker image inspect "$PYTHON_IMAGE" >/dev/null 2>&1; then
  timeout 900 debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates,binutils bookworm "$1/rootfs" >"$1/base.log" 2>&1 ||
    { tail -n 5 "$1/base.log" >&2; exit 1; }
  # binutils: the build installs it where it is missing, which needs a mirror of Debian.
  # The official image ships no byte code and no package lists either.
  find "$1/rootfs/usr/lib/python3.11" -name __pycache__ -type d -prune -exec rm -rf {} +
  rm -rf "$1"/rootfs/var/cache/apt/archives/*.deb "$1"/rootfs/var/lib/apt/lists/*
  tar -C "$1/rootfs" -c . | docker import - "$PYTHON_IMAGE" >/dev/null
  rm -rf "$1/rootfs"
fi

timeout 900 docker build --quiet --network host --build-arg "BASE=$PYTHON_IMAGE" --tag "$POSTGRES_IMAGE" "$here/postgres" >/dev/null
