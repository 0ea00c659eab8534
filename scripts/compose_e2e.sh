#!/usr/bin/env bash
# The whole stack in containers, really started, scaled, broken, backed up, lost, restored and stopped; prints a summary and leaves it in OUT.
#
#   scripts/compose_e2e.sh            on any engine that docker compose can talk to
#
# COMPOSE        how compose is called                        (docker compose)
# ENGINE         the engine's own command line                (docker)
# BUILD          builds the images; `:` when they are there   ($COMPOSE build)
# COMPOSE_FILE   the files, joined by `:`                     (docker-compose.yml:docker-compose.cpu.yml)
# PYTHON         has the project installed with its examples  (.venv/bin/python)
# OUT            where the summary goes                       (out/compose-e2e)
set -euo pipefail
cd "$(dirname "$0")/.."

export COMPOSE=${COMPOSE:-docker compose} ENGINE=${ENGINE:-docker} PYTHON=${PYTHON:-.venv/bin/python}
export OUT=${OUT:-out/compose-e2e}
export COMPOSE_FILE=${COMPOSE_FILE:-docker-compose.yml:docker-compose.cpu.yml}
export COMPOSE_PROJECT_NAME=${COMPOSE_PROJECT_NAME:-madpo-e2e}

mkdir -p "$OUT"
home=$(mktemp -d)
export COMPOSE_E2E_HOME=$home
clean() {
  $COMPOSE --env-file "$home/.env" down --volumes --remove-orphans --timeout 30 >/dev/null 2>&1 || true
  rm -rf "$home"
}
trap clean EXIT

"${PYTHON%/*}/madpo" init "$home"
${BUILD:-$COMPOSE --env-file "$home/.env" build}
"$PYTHON" scripts/compose_e2e.py
