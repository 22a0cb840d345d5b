#!/usr/bin/env bash
# Real service accounts against a real kube-apiserver with etcd, and the roles that the chart makes: check.py says what is asked.
# With `audit`: its audit webhook posts to the service, which is killed meanwhile (audit_check.py); further arguments are that one's.
# Both are compiled once from their Go modules (some minutes) and kept in build/kubernetes; Helm comes from tests/chart/check.sh.
# Not a part of .ci/run. Says `skipped: …` and succeeds where there is no Go.
set -euo pipefail
cd "$(dirname "$0")"
command -v go >/dev/null || { echo "skipped: there is no Go on this machine"; exit 0; }
root=$(cd ../.. && pwd)
tools=$root/build/kubernetes
make --silent -C "$root" .venv/.installed

if ! cmp -s go.sum "$tools/go.sum"; then
  mkdir -p "$tools"
  version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
  for package in go.etcd.io/etcd/server/v3 k8s.io/kubernetes/cmd/kube-apiserver; do
    echo "compiling $package"
    go build -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$version" -o "$tools/$(basename "${package%/v3}")" "$package"
  done
  cp go.sum "$tools/go.sum"
fi
if [ "${1:-}" = audit ]; then
  shift
  cd "$root" && exec .venv/bin/python -m tests.kubernetes.audit_check "$tools" "$@"
fi
compgen -G "$root/build/chart/helm-*" >/dev/null || "$root/tests/chart/check.sh"
"$root"/build/chart/helm-* template datastorage "$root/charts/datastorage" --namespace datastorage-e2e --kube-version 1.25.0 \
  --values "$root/charts/datastorage/values-e2e.yaml" --show-only templates/access.yaml >"$tools/access.yaml"
cd "$root" && .venv/bin/python -m tests.kubernetes.check "$tools"
