#!/usr/bin/env bash
# bench/gpu/peers/fetch_triton_kernels.sh DIR: OpenAI's triton_kernels into DIR, which then belongs in PYTHONPATH.
#
# The package index has another package of that name. The copy that fits Triton 3.6 is the one that vLLM 0.26
# carries (its last release for torch 2.11): 40 Python files out of a wheel of 290 MB, of which nothing else is
# kept or installed. Triton is MIT, vLLM Apache-2.0; neither is part of this repository.
set -euo pipefail
into=${1:?usage: bench/gpu/peers/fetch_triton_kernels.sh DIR}
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 \
    --platform manylinux_2_28_x86_64 --dest "$work" vllm==0.26.0
mkdir -p "$into"
"$python" - "$work" "$into" << 'PYTHON'
import sys
import zipfile
from pathlib import Path

carried = "vllm/third_party/"
(wheel,) = Path(sys.argv[1]).glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    names = [n for n in archive.namelist() if n.startswith(carried + "triton_kernels/") and n.endswith(".py")]
    for name in names:
        target = Path(sys.argv[2], name.removeprefix(carried))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(archive.read(name))
if not names:
    sys.exit("this wheel carries no triton_kernels")
print(f"{len(names)} files in {sys.argv[2]}/triton_kernels")
PYTHON
