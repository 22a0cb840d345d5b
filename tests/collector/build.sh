#!/usr/bin/env bash
# The OpenTelemetry Collector that builder.yaml describes, built from Go modules by its own builder, once (some minutes), into
# build/collector/otelcol. Not a part of .ci/run. Says `skipped: …` and succeeds where there is no Go.
set -euo pipefail
cd "$(dirname "$0")"
command -v go >/dev/null || { echo "skipped: there is no Go on this machine"; exit 0; }
tools=$(cd ../.. && pwd)/build/collector
if ! cmp -s builder.yaml "$tools/builder.yaml"; then
  mkdir -p "$tools"
  version=$(sed -n "s/^  version: /v/p" builder.yaml)
  GOBIN=$tools nice go install "go.opentelemetry.io/collector/cmd/builder@$version"
  # CGO is off: the binary runs wherever the tests do.
  CGO_ENABLED=0 nice "$tools/builder" --config builder.yaml
  mv "$tools/source/otelcol" "$tools/otelcol"
  cp builder.yaml "$tools/builder.yaml"
fi
echo "$tools/otelcol"
