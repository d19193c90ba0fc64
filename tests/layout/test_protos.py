"""The stubs beside each .proto are those of that .proto."""

import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

ROOT = Path(__file__).parents[2]
PROTOS = sorted((ROOT / "protos").rglob("*.proto"))
BUF = shutil.which("buf") or str(Path(sys.executable).parent / "buf")


@pytest.fixture(scope="module")
def built() -> dict[str, descriptor_pb2.FileDescriptorProto]:
    command = [BUF, "build", "--as-file-descriptor-set", "--exclude-source-info", "-o", "-"]
    raw = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=60).stdout
    files = descriptor_pb2.FileDescriptorSet.FromString(raw).file
    return {file.name: file for file in files}


@pytest.mark.parametrize("proto", PROTOS, ids=lambda p: p.name)
def test_stubs_match_protos(
    proto: Path, built: dict[str, descriptor_pb2.FileDescriptorProto]
) -> None:
    name = str(proto.relative_to(ROOT / "protos"))
    stub = importlib.import_module(name.removesuffix(".proto").replace("/", ".") + "_pb2")
    checked_in = descriptor_pb2.FileDescriptorProto()
    stub.DESCRIPTOR.CopyToProto(checked_in)
    expected = built[name]
    for message in (checked_in, expected):
        for field in _fields(message):
            field.ClearField("json_name")

    assert checked_in == expected, "stubs are stale; run `make protos`"


def test_every_service_has_a_typed_stub() -> None:
    with_service = [p for p in PROTOS if "\nservice " in p.read_text(encoding="utf-8")]

    missing = [
        p.name
        for p in with_service
        for suffix in ("_pb2_grpc.py", "_pb2_grpc.pyi", "_pb2.pyi")
        if not p.with_name(p.stem + suffix).exists()
    ]

    assert len(with_service) == 4
    assert missing == []


def _fields(
    file: descriptor_pb2.FileDescriptorProto,
) -> list[descriptor_pb2.FieldDescriptorProto]:
    messages = list(file.message_type)
    for message in messages:
        messages.extend(message.nested_type)
    return [field for message in messages for field in message.field]
