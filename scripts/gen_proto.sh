#!/usr/bin/env bash
# Regenerates the Python code of proto/ into DIR (default: src). Usage: scripts/gen_proto.sh [DIR]
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-src}
python=${PYTHON:-python}
mkdir -p "$out"
"$python" -m grpc_tools.protoc -Iproto --python_out="$out" --pyi_out="$out" --grpc_python_out="$out" proto/madpo/v1/*.proto
