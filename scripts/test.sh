#!/usr/bin/env bash
# All checks: style, types, tests. Makes a virtual environment the first time. Options go to pytest.
set -euo pipefail
groups="test lint"
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/pyright
.venv/bin/lint-imports
.venv/bin/python -m pytest "$@"
