#!/usr/bin/env bash
# The chart with every values file: `helm lint --strict`, `helm template`, then check.py, which holds what comes out against the
# API of Kubernetes 1.25 to the newest known, the restricted profile and the chart's promises; and upgrades that a cluster would refuse (cluster.py). Helm is compiled once from its Go module and kept
# in build/chart. Says `skipped: …` and succeeds where there is no Go.
set -euo pipefail
cd "$(dirname "$0")"
HELM_VERSION=v3.22.0
root=$(cd ../.. && pwd)
chart=$root/charts/datastorage
tools=$root/build/chart
helm=$tools/helm-$HELM_VERSION

if [ ! -x "$helm" ]; then
  command -v go >/dev/null || { echo "skipped: the chart was NOT checked, since there is no Go on this machine to compile Helm"; exit 0; }
  echo "compiling Helm $HELM_VERSION, some minutes"
  mkdir -p "$tools/bin"
  GOBIN=$tools/bin GOFLAGS='' go install -ldflags '-s -w' "helm.sh/helm/v3/cmd/helm@$HELM_VERSION" 2>"$tools/go.log" ||
    { cat "$tools/go.log"; exit 1; }
  mv "$tools/bin/helm" "$helm"
fi
if ! cmp -s "$root/requirements-chart.lock" "$tools/installed.lock"; then
  python3 -m venv --clear "$tools/venv"
  "$tools/venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r "$root/requirements-chart.lock"
  cp "$root/requirements-chart.lock" "$tools/installed.lock"
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
rendered=$scratch/rendered upgraded=$scratch/upgraded
mkdir "$rendered" "$upgraded"
cp -r "$chart" "$scratch/later"
sed -i 's/ersion: 0\..*/ersion: 9.9.9/' "$scratch/later/Chart.yaml"
for values in "$chart"/values*.yaml "$PWD"/values/*.yaml; do
  name=$(basename "$values" .yaml)
  "$helm" lint --strict --quiet --kube-version 1.25.0 --values "$values" "$chart"
  "$helm" template check "$chart" --namespace audit --kube-version 1.25.0 --values "$values" >"$rendered/$name.yaml"
  "$helm" template check "$scratch/later" --namespace audit --kube-version 1.25.0 --values "$values" >"$upgraded/$name.yaml"
done
for values in "$PWD"/refused/*.yaml; do
  "$helm" template check "$chart" --kube-version 1.25.0 --values "$values" >/dev/null 2>"$scratch/refusal" &&
    { echo "FAILED: the chart takes $(basename "$values")"; exit 1; }
  wanted=$(sed -n 's/^# refused: //p' "$values")
  grep -qF -- "$wanted" "$scratch/refusal" || { echo "FAILED: $(basename "$values") is not refused with: $wanted"; cat "$scratch/refusal"; exit 1; }
done
# What is printed after an install: Helm shows it only with a cluster, so it is rendered as a manifest.
cp -r "$chart" "$scratch/noted"
mv "$scratch/noted/templates/NOTES.txt" "$scratch/noted/templates/noted.yaml"
says() { # WORDS OPTION...
  "$helm" template check "$scratch/noted" --kube-version 1.25.0 --show-only templates/noted.yaml --debug "${@:2}" 2>/dev/null >"$scratch/notes" || :
  grep -qF -- "$1" "$scratch/notes" || { echo "FAILED: after an install with ${*:2} nobody is told: $1"; cat "$scratch/notes"; exit 1; }
}
says 'an upgrade starts the next pod before it stops this one' --values "$chart/values-laptop.yaml"
says 'no request is answered, at each upgrade too' --set replicas=1
says 'test.tokenSecret has to name a secret' --set settings.auth=tokens
"$tools/venv/bin/python" cluster.py "$helm" "$chart"
"$tools/venv/bin/python" check.py "$rendered" "$upgraded"
