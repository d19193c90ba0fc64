"""The import of the package: versions, and what is built of it."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

import penstock_engine
from penstock_core.errors import NotSupported
from penstock_engine.trtllm.llm_args import Build
from penstock_engine.trtllm.package import check_version, load_package


def test_the_package_is_imported_in_one_module_only() -> None:
    services = Path(penstock_engine.__file__).parents[1]
    naming = re.compile(r"^\s*(import|from) tensorrt_llm|import_module\(.?tensorrt_llm", re.M)

    found = {
        path.relative_to(services).as_posix()
        for path in services.rglob("*.py")
        if naming.search(path.read_text(encoding="utf-8"))
    }

    assert found == {"penstock_engine/trtllm/package.py"}


@pytest.mark.parametrize("version", ["1.2.1", "1.2.1.post1", "1.2.2", "1.2.1+cu130", "1.2.10"])
def test_versions_that_are_known_pass(version: str) -> None:
    check_version(version)


@pytest.mark.parametrize("version", ["1.2.0", "1.1.0", "1.3.0", "1.2.1rc1", "2.0.0", "unknown"])
def test_others_are_refused(version: str) -> None:
    with pytest.raises(NotSupported, match=r"1\.2\.1"):
        check_version(version)


def test_a_missing_package_tells_where_to_find_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_llm", None)

    with pytest.raises(NotSupported, match=r"worker-trtllm\.Dockerfile"):
        load_package()


def test_objects_are_built_inside_out(tensorrt_llm: ModuleType) -> None:
    package = load_package()
    guide = Build("GuidedDecodingParams", {"regex": "a"})

    made = package.build(Build("SamplingParams", {"end_id": 1, "guided_decoding": guide}))

    assert type(made).__name__ == "SamplingParams"
    assert made.guided_decoding.regex == "a"  # type: ignore[attr-defined]
    assert package.build(None) is None


def test_a_bias_is_made_dense(tensorrt_llm: ModuleType) -> None:
    bias = load_package().build(Build("LogitBias", {"bias": {2: -1.5}, "vocab_size": 4}))

    assert bias.tolist() == [0, 0, -1.5, 0]  # type: ignore[attr-defined]


def test_a_class_that_is_not_there_is_told(tensorrt_llm: ModuleType) -> None:
    with pytest.raises(NotSupported, match="Eagle3DecodingConfig"):
        load_package().build(Build("Eagle3DecodingConfig", {}))
