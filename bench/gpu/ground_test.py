#!/usr/bin/env python3
"""What of bench/gpu/ground can be tested without a GPU: ground_test.py GROUND COMPILE

Its report where nothing can be measured, and that a register spill does not compile.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

GROUPS = ["clocks", "stream", "signals", "phases", "broadcast", "launches"]

KERNEL = """
__global__ __launch_bounds__(1024, 2) void kernel(const float* in, float* out) {
    float v[WIDTH];
    for (int i = 0; i < WIDTH; ++i) v[i] = in[i * 1024 + threadIdx.x];
    __syncthreads();
    for (int i = 0; i < WIDTH; ++i) out[i * 1024 + threadIdx.x] = v[WIDTH - 1 - i] * v[i];
}
int main() {
    UNUSED
    kernel<<<1, 1024>>>(nullptr, nullptr);
}
"""


def check_report_without_gpu(ground, scratch):
    """Every group says why it has no figures, in the table and in JSON, and the exit code says so too."""
    out = scratch / "ground.json"
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run([ground, out], capture_output=True, text=True, env=hidden, timeout=120)
    assert run.returncode == 1, (run.returncode, run.stdout, run.stderr)
    groups = json.loads(out.read_text())["groups"]
    assert [group["group"] for group in groups] == GROUPS
    for group in groups:
        assert not group["figures"] and len(group["failures"]) == 1, group
        assert "cudaSetDevice" in group["failures"][0]["value"], group
    assert run.stdout.count("FAILED") == len(GROUPS), run.stdout

    run = subprocess.run([ground, out, "launches"], capture_output=True, text=True, env=hidden, timeout=60)
    assert run.returncode == 1 and len(json.loads(out.read_text())["groups"]) == 1
    run = subprocess.run([ground], capture_output=True, text=True, timeout=60)
    assert run.returncode == 2 and "usage" in run.stderr


def check_compiler(compile_script, scratch):
    """The flags let a sound kernel pass, and neither a spill nor a warning."""
    def compiled(width, unused):
        source = scratch / "kernel.cu"
        source.write_text(KERNEL.replace("WIDTH", str(width)).replace("UNUSED", unused))
        return subprocess.run([compile_script, source, scratch / "kernel", "90a"], capture_output=True,
                              text=True, timeout=120)

    run = compiled(4, "")
    assert run.returncode == 0, run.stderr
    run = compiled(64, "")
    assert run.returncode != 0 and "spill" in run.stderr, run.stderr
    run = compiled(4, "int unused;")
    assert run.returncode != 0 and "unused" in run.stderr, run.stderr


def main():
    ground, compile_script = sys.argv[1:]
    with tempfile.TemporaryDirectory() as scratch:
        check_report_without_gpu(ground, Path(scratch))
        check_compiler(compile_script, Path(scratch))
    print("ground: its report without a GPU and its compiler's flags are as they should be")


if __name__ == "__main__":
    main()
