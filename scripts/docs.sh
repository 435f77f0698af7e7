#!/usr/bin/env bash
# Builds the documentation as a site in build/site, without a network; anything doubtful is an error. Makes a virtual
# environment the first time. `scripts/docs.sh serve` shows it in a browser, and follows changes.
set -euo pipefail
groups="docs"
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
if [ "${1:-build}" = serve ]; then
  exec .venv/bin/mkdocs serve --config-file scripts/site/mkdocs.yml
fi
exec .venv/bin/mkdocs build --strict --config-file scripts/site/mkdocs.yml
