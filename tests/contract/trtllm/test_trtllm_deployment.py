"""What is deployed: example files, the compose profile, and the tests that run first on a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import penstock_models
from penstock_engine.trtllm import rules
from penstock_engine.trtllm.checkpoint import Checkpoint, check
from penstock_engine.trtllm.llm_args import llm_arguments
from penstock_engine.trtllm.package import load_package
from penstock_engine.trtllm.settings import TrtLlmSettings
from penstock_worker.arguments import parse_arguments

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
EXAMPLES = sorted((DEPLOY / "trtllm").glob("*.yaml"))


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_every_example_can_be_built(tensorrt_llm: ModuleType, model: Path, file: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    large = {"max_position_embeddings": 1 << 17, "num_nextn_predict_layers": 1}
    (model / "config.json").write_text(json.dumps(config | large))
    settings, checkpoint = TrtLlmSettings.load(file), Checkpoint.read(model)
    check(settings, checkpoint)

    llm: Any = load_package().llm(llm_arguments(settings, checkpoint))

    assert llm.args.enable_chunked_prefill
    assert rules.warnings(settings) == []


def test_there_is_an_example_of_each_kind() -> None:
    found = [TrtLlmSettings.load(file) for file in EXAMPLES]

    assert {settings.speculation.mode for settings in found} == {"eagle3", "ngram", "mtp"}
    assert [s.parallel.num_gpus for s in found if s.speculation.mode == "mtp"] == [8]


def test_the_gpu_profile_has_what_the_package_needs() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    worker = compose["services"]["worker-trtllm"]
    dockerfile = (DEPLOY / "docker/worker-trtllm.Dockerfile").read_text()

    assert worker["profiles"] == ["gpu"]
    assert worker["ipc"] == "host"
    assert worker["ulimits"] == {"memlock": -1, "stack": 67108864}
    assert (DEPLOY / worker["build"]["context"] / worker["build"]["dockerfile"]).is_file()
    assert "FROM nvcr.io/nvidia/tensorrt-llm/release:1.2.1" in dockerfile
    assert "import tensorrt_llm" not in dockerfile  # it wants the driver, which no build has
    # What is compiled or downloaded as another user than root, in a container that cannot be written.
    home = next(mount for mount in worker["tmpfs"] if mount.startswith("/home/penstock:"))
    assert "uid=10001" in home
    assert any(mount.endswith(":/home/penstock/.cache") for mount in worker["volumes"])
    for flag in ("--gpus all", "--ipc host", "--ulimit memlock=-1", "--ulimit stack=67108864"):
        assert flag in dockerfile


def test_the_image_runs_the_documented_command() -> None:
    lines = (DEPLOY / "docker/worker-trtllm.Dockerfile").read_text().splitlines()
    commands = [line.split(" ", 1) for line in lines if line.startswith(("CMD", "ENTRYPOINT"))]
    mounted = "/etc/penstock/trtllm.yaml"

    # The base image's own entrypoint stays.
    assert [name for name, _ in commands] == ["CMD"]
    command = json.loads(commands[0][1])
    assert command == [
        "python3",
        "-m",
        "penstock_worker",
        "--engine",
        "trtllm",
        "--config",
        mounted,
    ]
    assert parse_arguments(command[3:]) == {"engine": "trtllm", "config": mounted}
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["worker-trtllm"]
    assert any(f":{mounted}:ro" in volume for volume in compose["volumes"])
    assert "-m penstock_worker --engine trtllm --config" in (ROOT / "README.md").read_text()


@pytest.mark.process
def test_the_tests_for_a_gpu_run_on_the_double() -> None:
    path = os.pathsep.join(
        [str(Path(__file__).parent / "double"), os.environ.get("PYTHONPATH", "")]
    )
    model = str(penstock_models.DEMO)
    environment = {"PYTHONPATH": path, "TRTLLM_TEST_MODEL": model, "TRTLLM_TEST_EAGLE3": "head"}

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "tests/gpu", "-k", "eagle3 or host"],
        cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout.splitlines()[-1]
