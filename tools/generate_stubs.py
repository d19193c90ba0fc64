# /// script
# requires-python = ">=3.11"
# dependencies = ["grpcio-tools==1.71.2", "mypy-protobuf==3.7.0", "setuptools<81"]
# ///
"""Regenerate the stubs beside every .proto: ``make protos``.

The generator is old on purpose: stubs from it load on protobuf 5.29 to 7.x,
so a client team is never forced to upgrade. Its own protobuf is too old for
the rest of the project, so it lives in an environment of its own.
"""

import sys
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

PROTOS = Path(__file__).resolve().parents[1] / "protos"


def main() -> int:
    """Generate every stub; return protoc's exit status."""
    for old in PROTOS.rglob("*_pb2*.py*"):
        old.unlink()
    sources = [str(p.relative_to(PROTOS)) for p in sorted(PROTOS.rglob("*.proto"))]
    includes = [f"-I{PROTOS}", f"-I{files('grpc_tools') / '_proto'}"]
    outs = [f"--{kind}_out={PROTOS}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    status = int(protoc.main(["protoc", *includes, *outs, *sources]))
    for stub in PROTOS.rglob("*_pb2_grpc.py*"):  # a file of messages only needs no service stub
        proto = stub.with_name(stub.name.split("_pb2_grpc")[0] + ".proto")
        if "\nservice " not in proto.read_text(encoding="utf-8"):
            stub.unlink()
    return status


if __name__ == "__main__":
    sys.exit(main())
