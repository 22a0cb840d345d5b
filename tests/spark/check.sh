#!/usr/bin/env bash
# An auditor's questions to the archive, asked by Spark: a master and two workers on this machine (check.py says what is compared).
# PySpark is installed once into build/spark, some minutes, with Iceberg's runtime and the driver of Postgres, which Ivy, a part of PySpark, fetches.
# Not a part of .ci/run. Says `skipped: …` and succeeds where there is no Java.
set -euo pipefail
cd "$(dirname "$0")"
root=$(cd ../.. && pwd)
tools=$root/build/spark
version=$(java -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p' || true)
if [ "${version:-0}" -lt 17 ]; then
  echo "skipped: Spark was NOT asked, since it needs Java 17 (of Debian: openjdk-17-jre-headless), and there is ${version:-none} on this machine"
  exit 0
fi
make --silent -C "$root" .venv/.installed

if ! cat "$root/requirements-spark.lock" jars.txt | cmp -s - "$tools/installed"; then
  rm -rf "$tools"
  mkdir -p "$tools/jars"
  python3 -m venv "$tools/venv"
  pip=("$tools/venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes)
  # PySpark is published as source only; it is built by the setuptools that the project itself is built by.
  sed -n '/^setuptools==/,/[^\]$/p' "$root/requirements-dev.lock" >"$tools/setuptools.lock"
  "${pip[@]}" --only-binary :all: -r "$tools/setuptools.lock"
  nice "${pip[@]}" --no-build-isolation -r "$root/requirements-spark.lock"
  ivy=$(echo "$tools"/venv/lib/python3*/site-packages/pyspark/jars/ivy-*.jar)
  while read -r group artifact release sha256; do
    java -Xmx256m -jar "$ivy" -cache "$tools/ivy" -notransitive -dependency "$group" "$artifact" "$release" \
      -retrieve "$tools/jars/[artifact]-[revision].[ext]" >"$tools/ivy.log" 2>&1 || { cat "$tools/ivy.log"; exit 1; }
    echo "$sha256  $tools/jars/$artifact-$release.jar" | sha256sum --check --quiet
  done <jars.txt
  cat "$root/requirements-spark.lock" jars.txt >"$tools/installed"
fi
cd "$root" && exec nice .venv/bin/python -m tests.spark.check "$tools" "$@"
