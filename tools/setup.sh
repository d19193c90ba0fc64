#!/bin/sh
# Makes .venv with everything in it. Safe to run again.
set -eu
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "Python 3.11 or newer is needed; found $("$python" --version). Set PYTHON=/path/to/python3.11." >&2
    exit 1
}
[ -x .venv/bin/python ] || "$python" -m venv .venv
pip=".venv/bin/python -m pip --disable-pip-version-check"
echo "Installing PyTorch (a CPU build where pip finds one) ..."
# First and alone: a later requirement finds it installed and pulls no second, larger build.
$pip install -q torch==2.13.0
echo "Installing Penstock with its tools ..."
$pip install -q -c constraints.txt -e '.[dev]'
# Without a compiler this says so, and PyTorch's own kernels serve.
.venv/bin/python -m penstock_engine.native.fused.build
touch .venv/.ready
echo "Ready: .venv/bin/penstock --help"
