#!/usr/bin/env bash
# Lints the contract and checks that the committed code is what it generates.
set -euo pipefail
cd "$(dirname "$0")/.."
generated=$(mktemp -d)
trap 'rm -rf "$generated"' EXIT
scripts/gen_proto.sh "$generated"
diff -r --exclude=__init__.py --exclude=__pycache__ "$generated/madpo/v1" src/madpo/v1 \
  || { echo "src/madpo/v1 is not what proto/ generates: run make proto" >&2; exit 1; }
cd proto
buf lint
