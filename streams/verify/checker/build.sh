#!/bin/sh
# Builds checker.wasm into the directory given, or here, where it also writes SHA256SUMS. Needs Go; checker.wasm itself does not.
# The bytes depend on the sources, go.sum and Go's version alone (SHA256SUMS names it), not on the machine or the path.
set -eu
target=${1:-}
[ -n "$target" ] || here=yes
target=${target:-.}
target=$(cd "$target" && pwd)
cd "$(dirname "$0")"
[ -z "${here:-}" ] || target=$(pwd)
GOTOOLCHAIN=local GOFLAGS=-mod=readonly GOWORK=off CGO_ENABLED=0 GOOS=wasip1 GOARCH=wasm \
    go build -trimpath -buildvcs=false -ldflags='-s -w -buildid=' -o "$target/checker.wasm" .
chmod 644 "$target/checker.wasm"
if [ -n "${here:-}" ]; then
    echo "# $(go env GOVERSION)" > SHA256SUMS
    sha256sum checker.wasm -- *.go go.mod go.sum >> SHA256SUMS
fi
