#!/usr/bin/env bash
# bench/gpu/check.sh BUILD OUT: the GPU's tests and figures, from a build that was made here or elsewhere
# (BUILD/tests/gpu_tests, BUILD/bench/gpu_steps). In order: tests; the tests once more under
# compute-sanitizer where it is (small shapes); the card's ceiling; the bundled model; one rank of eight of
# V2.5-Pro with random weights (74 GB). A minute on one Hopper card. OUT gets a log and JSON of each. With PEERS, a
# Python environment (bench/gpu/peers/README.md), PyTorch and llama.cpp on the same card behind them; the experts'
# kernel for PyTorch is looked for in PYTHONPATH.
set -uo pipefail
build=${1:?usage: bench/gpu/check.sh BUILD OUT} out=${2:?usage: bench/gpu/check.sh BUILD OUT}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$out"
export PATH=$PATH:/usr/local/cuda/bin
failed=0
step() {
    local name=$1
    shift
    echo "== $name"
    local began=$SECONDS
    timeout "${LIMIT:-240}" "$@" > "$out/$name.txt" 2>&1 || { echo "FAILED ($?)"; failed=1; }
    tail -n "${LINES_SHOWN:-12}" "$out/$name.txt"
    echo "-- $((SECONDS - began)) s"
}
model=$here/../../models/tessera-mini
step tests "$build/tests/gpu_tests" --gtest_brief=1
if command -v compute-sanitizer > /dev/null && [ -z "${NO_SANITIZER:-}" ]; then
    sanitize() {
        LIMIT=150 step "$1" compute-sanitizer --tool "$1" --error-exitcode 9 "$build/tests/gpu_tests" \
            --gtest_brief=1 --gtest_filter="$2"
    }
    sanitize memcheck '*ForTheSanitizers'
    sanitize synccheck '*ForTheSanitizers'
    sanitize racecheck '*ForRacecheck'
fi
"$here/ground.sh" "$out/ground" > "$out/ground.txt" 2>&1 || failed=1
ceiling=$(python3 -c "
import json
groups = json.load(open('$out/ground/ground.json'))['groups']
rates = [f['median'] for g in groups if g['group'] == 'stream' for f in g['figures'] if f.get('unit') == 'GB/s']
print(max(rates))" 2> /dev/null || echo 0)
echo "== ceiling: $ceiling GB/s"
LINES_SHOWN=60 step bundled "$build/bench/gpu_steps" --model "$model" --context 1024 --rows 1,8 \
    --ceiling "$ceiling" --json "$out/bundled.json" --trace "$out/bundled.trace.json"
LINES_SHOWN=120 step pro "$build/bench/gpu_steps" --ceiling "$ceiling" --json "$out/pro.json"
if [ -n "${PEERS:-}" ]; then
    peers=$here/peers
    LINES_SHOWN=60 step pro-10-layers "$build/bench/gpu_steps" --layers 10 --ceiling "$ceiling" \
        --json "$out/pro-10-layers.json"
    LINES_SHOWN=90 LIMIT=900 step peer-torch "$PEERS/bin/python" "$peers/torch_rank.py" --ceiling "$ceiling" \
        --json "$out/peer-torch.json"
    step peer-export "$PEERS/bin/python" "$peers/../../peers/export_gguf.py" "$model" "$out/mini.gguf"
    step peer-llama "$PEERS/bin/python" "$peers/llama_steps.py" --model "$out/mini.gguf" \
        --json "$out/peer-llama.json"
fi
exit $failed
