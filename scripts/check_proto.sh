#!/usr/bin/env bash
# Lints the contract, and checks that the committed code is what it generates and that it breaks nobody: neither who uses
# the last release nor, before there is one, who uses main.
set -euo pipefail
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# The commit to compare with; none where git does not know an earlier one. On main itself it is the one before.
earlier() {
  local main base
  git describe --tags --abbrev=0 --match 'v[0-9]*' && return
  for main in main origin/main; do
    base=$(git merge-base "$main" HEAD) && [ "$base" != "$(git rev-parse HEAD)" ] && echo "$base" && return
  done
  git rev-parse --verify --quiet 'HEAD^'
}

scripts/gen_proto.sh "$scratch/generated"
diff -r --exclude=__init__.py --exclude=__pycache__ "$scratch/generated/madpo/v1" src/madpo/v1 \
  || { echo "src/madpo/v1 is not what proto/ generates: run make proto" >&2; exit 1; }
buf lint proto
if base=$(earlier 2>/dev/null); then
  git archive "$base" proto | tar -x -C "$scratch"
  buf breaking proto --against "$scratch/proto" \
    || { echo "this breaks users of the contract of $(git describe --tags --always "$base"): see proto/buf.yaml" >&2; exit 1; }
else
  echo "the contract was compared with nothing: git knows no earlier commit here"
fi
