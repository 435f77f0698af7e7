#!/usr/bin/env bash
# All checks: style, types, tests. Makes a virtual environment the first time. Options go to pytest.
# With --fast as the first option: style, floors and the quick tests, for every change that you make.
set -euo pipefail
groups="test lint docs"
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/lint-imports
if [ "${1:-}" = --fast ]; then
  set -- -m "not slow" "${@:2}"
else
  .venv/bin/pyright
fi
# Tests wait for others' starts, ends and answers for a third of their time: three processes keep two processors busy.
processes=$(($(nproc) * 3 / 2))
.venv/bin/python -m pytest --numprocesses $((processes > 8 ? 8 : processes)) --dist worksteal "$@"
