#!/usr/bin/env bash
# binaries.sh DIR: every program of the node as DIR/programs/NAME, compiled once (about half an hour of a core) from the module that
# tests/kubernetes has; Helm comes from tests/chart/check.sh. A change of the module or of its Go files compiles again.
set -euo pipefail
cd "$(dirname "$0")/../kubernetes"
root=$(cd ../.. && pwd)
programs=$1/programs
mkdir -p "$programs"

sources=$(sha256sum go.sum node/*.go node/*/*.go)
if [ "$sources" != "$(cat "$programs/sources" 2>/dev/null)" ]; then
  echo "compiling the node's programs"
  version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
  about=k8s.io/component-base/version
  minor=${version#v1.}
  export CGO_ENABLED=0
  nice go build -ldflags '-s -w' -o "$programs/etcd" go.etcd.io/etcd/server/v3
  nice go build -ldflags "-s -w -X $about.gitVersion=$version -X $about.gitMajor=1 -X $about.gitMinor=${minor%%.*}" -o "$programs/node" ./node
  for name in kube-apiserver kube-controller-manager kube-proxy kube-scheduler kubelet network-policies; do
    ln -sf node "$programs/$name"
  done
  echo "$sources" >"$programs/sources"
fi
compgen -G "$root/build/chart/helm-*" >/dev/null || "$root/tests/chart/check.sh"
ln -sf "$root"/build/chart/helm-* "$programs/helm"
