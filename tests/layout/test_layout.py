"""The house rules that a reader relies on: sizes, roots, light imports."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IMPORT_ROOTS = ("protos", "services", "router", "batch")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 50


def _sources() -> list[Path]:
    folders = (*IMPORT_ROOTS, "tests", "tools", "benchmarks")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return [path for path in files if "_pb2" not in path.name]


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", _sources(), ids=_name)
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")

    functions = [
        (node.name, (node.end_lineno or 0) - node.lineno + 1)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]

    assert text.count("\n") <= MAX_FILE_LINES
    assert [f for f in functions if f[1] > MAX_FUNCTION_LINES] == []


@pytest.mark.parametrize("root", IMPORT_ROOTS)
def test_import_roots_hold_penstock_packages_only(root: str) -> None:
    names = {p.name for p in (ROOT / root).iterdir() if p.name != "__pycache__"}

    assert {n for n in names if not n.startswith("penstock")} == set()


def test_every_package_says_what_it_is() -> None:
    silent = [
        _name(path)
        for path in _sources()
        if path.parts[len(ROOT.parts)] in IMPORT_ROOTS
        and ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) is None
    ]

    assert silent == []


def test_only_telemetry_knows_the_sdk_of_opentelemetry() -> None:
    knowing = [
        _name(path)
        for path in _sources()
        if path.parts[len(ROOT.parts)] in IMPORT_ROOTS
        and re.search(r"^\s*(from|import) opentelemetry\.sdk", path.read_text("utf-8"), re.M)
    ]

    room = "services/penstock_core/telemetry"
    known = ("exemplars", "setup", "span_export", "spans")
    assert sorted(knowing) == [f"{room}/{name}.py" for name in known]


LIGHT = {
    "penstock_client": ("torch", "celery", "pydantic", "tokenizers", "starlette", "redis"),
    "penstock_router.__main__": ("torch", "celery", "starlette", "transformers"),
    "penstock_gateway.__main__": ("torch", "celery", "tokenizers", "redis"),
    "penstock_batch.__main__": ("torch", "starlette", "tokenizers"),
    "penstock_worker.__main__": ("torch", "celery", "starlette"),
    "penstock_cli.__main__": ("torch", "celery"),
}


@pytest.mark.parametrize("module", LIGHT)
def test_processes_import_only_what_they_need(module: str) -> None:
    program = (
        f"import sys, {module}\n"
        f"print(sorted(set({LIGHT[module]!r}) & {{m.partition('.')[0] for m in sys.modules}}))"
    )

    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )

    assert found.stdout.strip() == "[]"
