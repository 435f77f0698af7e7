#!/usr/bin/env bash
# Train an agent: makes a virtual environment the first time, then runs `orchestrator train` with the given options.
set -euo pipefail
groups=""
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec .venv/bin/orchestrator train "$@"
