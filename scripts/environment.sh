# Sourced by the other scripts: makes .venv with the package and the dependency groups named in $groups, unless it is
# there already and up to date. PYTHON names the interpreter to make it with.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
stamp=$(cat pyproject.toml scripts/constraints.txt | cksum)
installed=.venv/installed-$(echo "${groups:-none}" | tr ' ' '-')
if [ "$(cat "$installed" 2>/dev/null)" != "$stamp" ]; then
  echo "installing into $root/.venv" >&2
  "${PYTHON:-python3}" -m venv .venv
  .venv/bin/python -m pip install --quiet --upgrade pip
  .venv/bin/python -m pip install --quiet --constraint scripts/constraints.txt torch
  group_options=()
  for group in ${groups:-}; do group_options+=(--group "$group"); done
  # setuptools would warn of what an editable installation may do elsewhere.
  PYTHONWARNINGS=ignore .venv/bin/python -m pip install --quiet --constraint scripts/constraints.txt --editable . "${group_options[@]}"
  echo "$stamp" > "$installed"
fi
