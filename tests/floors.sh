#!/usr/bin/env bash
# The suite with the lowest versions that pyproject.toml allows: what the floors there promise, run. By hand, outside CI.
#
#     tests/floors.sh [PYTEST ARGUMENT ...]
#
# uv reads the floors from pyproject.toml: each package named there comes in its lowest version, what those need in its
# newest. All is made in a folder that goes away. Types are not checked: old libraries say less of theirs.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/uv"
"$folder/uv/bin/pip" install -q uv
lowest=$(grep -oE 'requires-python = ">=[0-9.]+"' pyproject.toml | grep -oE '[0-9.]+')
"$folder/uv/bin/uv" venv -q --python "$lowest" "$folder/venv"
"$folder/uv/bin/uv" pip install -q --python "$folder/venv/bin/python" --resolution lowest-direct -e ".[test]"
"$folder/uv/bin/uv" pip list --python "$folder/venv/bin/python"
"$folder/venv/bin/python" -m ruff check -q .
"$folder/venv/bin/python" -m pytest "$@"
