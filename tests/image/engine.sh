# A container engine for the check, to be sourced: `engine_up DIR` uses the one that answers and can pull, else starts
# Debian's own below DIR, which touches neither the machine's firewall nor its other engines. `engine_down` ends that one.
# shellcheck shell=bash

engine_up() {
  if timeout 10 docker info >/dev/null 2>&1 && timeout 120 docker pull --quiet "$PYTHON_IMAGE" >/dev/null 2>&1; then
    return
  fi
  engine_install || return
  # Debian's client has BuildKit; another one that comes before it may not.
  PATH=/usr/bin:/usr/sbin:/sbin:$PATH
  engine_dir=$1
  export DOCKER_HOST=unix://$engine_dir/docker.sock DOCKER_BUILDKIT=1
  # Ports are published by the userland proxy and builds use the host's network, so no rule of the firewall is needed.
  dockerd --host "$DOCKER_HOST" --data-root "$engine_dir/data" --exec-root "$engine_dir/exec" \
    --pidfile "$engine_dir/pid" --bridge none --iptables=false --ip6tables=false --ip-forward=false \
    >"$engine_dir/log" 2>&1 &
  engine_pid=$!
  for _ in $(seq 60); do
    docker info >/dev/null 2>&1 && return
    kill -0 "$engine_pid" 2>/dev/null || break
    sleep 0.5
  done
  tail -n 5 "$engine_dir/log" >&2
  return 1
}

engine_install() {
  command -v apt-get >/dev/null && [ "$(id -u)" = 0 ] || return
  local missing=()
  [ -x /usr/sbin/dockerd ] && [ -x /usr/bin/docker ] || missing+=(docker.io)
  [ -x /usr/bin/docker-compose ] || missing+=(docker-compose)
  [ -x /usr/sbin/debootstrap ] || missing+=(debootstrap)
  [ ${#missing[@]} = 0 ] && return
  echo "installing ${missing[*]}"
  timeout 900 apt-get -qq update
  DEBIAN_FRONTEND=noninteractive timeout 900 apt-get -qq -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "${missing[@]}" >/dev/null
}

engine_down() {
  [ -n "${engine_pid:-}" ] || return 0
  kill "$engine_pid" 2>/dev/null || true
  for _ in $(seq 60); do
    kill -0 "$engine_pid" 2>/dev/null || break
    sleep 0.5
  done
  kill -KILL "$engine_pid" 2>/dev/null || true # it has ended already, as a rule; the caller may have `set -e`
  wait "$engine_pid" 2>/dev/null || true
  # What a container left mounted, innermost first.
  awk -v dir="$engine_dir/" 'index($2, dir) == 1 { print $2 }' /proc/mounts | tac | xargs -r umount -l
}
