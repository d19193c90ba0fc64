"""``python -m penstock_engine.trtllm.canary --config FILE``: does speculation change what is said?

Speculation must not change greedy outputs, and has: EAGLE-3 wrote gibberish on some GPUs in 1.2
(https://github.com/NVIDIA/TensorRT-LLM/issues/11125). This loads the model without and with the file's
speculation, in a process each, and compares. Exit status 0 if enough is equal, 1 if not.
"""

import argparse
import asyncio
import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from penstock_core.settings import SettingsError
from penstock_engine.trtllm.checkpoint import Checkpoint, check
from penstock_engine.trtllm.llm_args import Build, llm_arguments
from penstock_engine.trtllm.package import load_package
from penstock_engine.trtllm.settings import TrtLlmSettings
from penstock_engine.trtllm.speculation import NoSpeculation

MIN_EQUAL = 0.9
"""Share of prompts whose outputs must be equal: rounding may tip a near tie in some."""
_PROMPTS = 16
_PROMPT_TOKENS = 48
_OUTPUT_TOKENS = 64

Outputs = Sequence[Sequence[int]]


def share_equal(plain: Outputs, speculated: Outputs) -> float:
    """The share of outputs that are equal in their first half, where a tie has had little effect."""
    pairs = list(zip(plain, speculated, strict=True))
    return sum(list(a[: len(a) // 2]) == list(b[: len(a) // 2]) for a, b in pairs) / len(pairs)


def generate(settings: TrtLlmSettings, path: Path) -> list[list[int]]:
    """Greedy outputs of fixed prompts."""
    checkpoint = Checkpoint.read(path)
    check(settings, checkpoint)
    package = load_package()
    llm = package.llm(llm_arguments(settings, checkpoint))
    draw = random.Random(1)
    prompts = [
        [draw.randrange(checkpoint.vocab_size) for _ in range(_PROMPT_TOKENS)]
        for _ in range(_PROMPTS)
    ]
    end = min(checkpoint.eos_token_ids, default=0)
    fixed = {"end_id": end, "ignore_eos": True, "detokenize": False, "max_tokens": _OUTPUT_TOKENS}

    async def run() -> list[list[int]]:
        found = []
        for prompt in prompts:
            params = package.build(Build("SamplingParams", fixed))
            output = llm.generate_async({"prompt_token_ids": prompt}, params, streaming=True)
            async for _ in output:
                pass
            found.append(list(output.outputs[0].token_ids))
        await asyncio.to_thread(llm.shutdown)
        return found

    return asyncio.run(run())


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare; with ``--print`` only generate, with the file's speculation or without it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--print", choices=("plain", "speculated"))
    given = parser.parse_args(arguments)
    try:
        settings = TrtLlmSettings.load(given.config)
    except SettingsError as error:
        parser.error(str(error))
    if given.print is not None:
        plain = settings.model_copy(update={"speculation": NoSpeculation()})
        chosen = plain if given.print == "plain" else settings
        sys.stdout.write(f"\n{json.dumps(generate(chosen, Path(settings.model)))}\n")
        return 0
    plain_outputs, speculated = (
        _in_process(given.config, kind) for kind in ("plain", "speculated")
    )
    equal = share_equal(plain_outputs, speculated)
    sys.stdout.write(f"{equal:.0%} of {_PROMPTS} greedy outputs are equal with speculation\n")
    return 0 if equal >= MIN_EQUAL else 1


def _in_process(config: Path, kind: str) -> list[list[int]]:
    """Two models one after another: a process each, so that the first frees its memory."""
    argv = [sys.executable, "-m", "penstock_engine.trtllm.canary", "--config", str(config)]
    done = subprocess.run(  # noqa: S603 - ourselves
        [*argv, "--print", kind], stdout=subprocess.PIPE, text=True, check=True
    )
    outputs: list[list[int]] = json.loads(done.stdout.strip().splitlines()[-1])
    return outputs


if __name__ == "__main__":
    sys.exit(main())
