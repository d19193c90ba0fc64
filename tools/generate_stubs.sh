#!/bin/sh
# Runs generate_stubs.py in an environment of its own: its pinned generator needs an older protobuf than the project.
set -eu
cd "$(dirname "$0")/.."
python=build/protos-venv/bin/python
if ! [ -x "$python" ]; then
    "${PYTHON:-python3}" -m venv build/protos-venv
    "$python" -m pip install -q grpcio-tools==1.71.2 mypy-protobuf==3.7.0 'setuptools<81'
fi
PATH="$PWD/build/protos-venv/bin:$PATH" "$python" tools/generate_stubs.py
