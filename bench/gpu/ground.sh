#!/usr/bin/env bash
# bench/gpu/ground.sh OUT: builds ground for the card that is here and measures. Needs nvcc and a GPU,
# nothing else. OUT/ground.json has the figures, OUT/ground.txt the table that is also printed,
# OUT/build.txt the compiler's words. The exit code is 0 if every measurement has a figure.
set -euo pipefail
out=${1:?usage: bench/gpu/ground.sh OUT}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$out"
PATH=$PATH:/usr/local/cuda/bin
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu \
    --format=csv || true
# 9.0 -> 90a: the code that only this architecture has. The host's compiler may be newer than those we
# keep free of warnings.
capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 || echo 9.0)
HOST_FLAGS=-w "$here/../../scripts/compile-cuda" "$here/ground.cu" "$scratch/ground" "${capability/./}a" > "$out/build.txt" 2>&1 || {
    cat "$out/build.txt" >&2
    exit 1
}
timeout 140 "$scratch/ground" "$out/ground.json" | tee "$out/ground.txt"
