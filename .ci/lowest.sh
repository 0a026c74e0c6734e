#!/bin/sh
# Install the oldest versions that pyproject.toml allows into .venv-lowest, and run the tests of the layers that meet
# other libraries: hooks, methods, probes, the command line. torch is the pinned one: older CPU builds are not on the
# index. About a minute and a half, most of it the installation.

set -eu
cd "$(dirname "$0")/.."
venv=.venv-lowest
oldest=$venv/constraints.txt
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" - >"$oldest.new" <<'PYTHON'
import re
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
for wanted in project["dependencies"]:
    name, oldest = re.match(r"([\w.-]+)>=([\d.]+)", wanted).groups()
    if name != "torch":
        print(f"{name}=={oldest}")
print(Path("constraints.txt").read_text())
PYTHON
if ! cmp -s "$oldest.new" "$oldest"; then
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input -c "$oldest.new" -e '.[figures]' \
        'pytest>=8.3' 'pytest-timeout>=2.3' 'pytest-xdist>=3.6'
    mv "$oldest.new" "$oldest"
fi
OMP_NUM_THREADS=1 "$venv/bin/python" -m pytest -n auto -p no:cacheprovider \
    tests/hooks/test_families.py tests/hooks/test_routing.py tests/hooks/test_session.py tests/test_conformance.py \
    tests/cli/test_cli_frame.py tests/cli/test_cli_options.py tests/cli/test_cli_probe.py tests/cli/test_cli_formats.py
