"""``LLM`` of the double: the contract's signature, the package's checks, a double of its engine."""

import asyncio
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import __main__
from tensorrt_llm._classes import KNOWN, SPECULATIVE_CLASSES, RequestError
from tensorrt_llm._contract import CONTRACT, shape
from tensorrt_llm._executor import Executor, Request, Steering, control_folder
from tensorrt_llm._results import IterationResult, NoResults, RequestOutput

_RULES = CONTRACT["classes"]


class LLM:
    """See the contract."""

    def __init__(self, kwargs: dict[str, object] | None = None, **arguments: object) -> None:
        given = {**arguments, **(kwargs or {})}
        for name in given:
            if name not in KNOWN["TorchLlmArgs"].model_fields and name not in {
                "_mpi_session",
                "backend",
            }:
                raise ValueError(f"LLM got invalid argument: {name}")
        self.args: Any = KNOWN["TorchLlmArgs"](**given)
        for name, field in _RULES["TorchLlmArgs"]["fields"].items():
            effective = field.get("effective_default_torch", field.get("effective_default"))
            if effective is not None and getattr(self.args, name) is None:
                self.args.__dict__[name] = effective
        self._check_world()
        draft_len = self._check_speculation()
        if self.args.guided_decoding_backend is not None:
            assert not self.args.skip_tokenizer_init, "guided decoding needs the tokenizer"
        control = control_folder()
        if control is not None:
            (control / "built").write_text(json.dumps(_surroundings()))
        self._executor: Executor | None = Executor(self.args, draft_len, control)
        self._used: set[int] = set()
        self.shutdowns = 0

    @property
    def executor(self) -> Executor:
        """The engine, for tests."""
        assert self._executor is not None
        return self._executor

    @property
    def steering(self) -> Steering:
        """What tests pull."""
        return self.executor.steering

    def _check_world(self) -> None:
        gpus = int(os.environ.get("TENSORRT_LLM_DOUBLE_GPUS", "8"))
        need = self.args.tensor_parallel_size * self.args.pipeline_parallel_size
        if gpus < need:
            raise RuntimeError(f"Only {gpus} GPUs are available, but {need} are required.")

    def _check_speculation(self) -> int:
        config = self.args.speculative_config
        if config is None:
            return 0
        if not isinstance(config, SPECULATIVE_CLASSES):
            raise ValueError("a dict is no speculative_config")  # noqa: TRY004 - as pydantic does
        name = type(config).__name__
        if "pytorch" not in _RULES[name]["supports_backend"]:
            raise ValueError(f"Speculation type {name} does not support backend pytorch")
        for field in _RULES[name].get("required_for_torch", ()):
            assert getattr(config, field), f"{name} needs {field}"
        if name == "MTPDecodingConfig":
            assert config.num_nextn_predict_layers > 0
        return int(config.max_draft_len or 4)

    def generate_async(self, **a: Any) -> RequestOutput:
        """A plain function; raises what the contract says."""
        if self._executor is None or self._executor.is_shut_down:
            raise RuntimeError("LLM is shutting down")
        prompt = _prompt(a["inputs"])
        params = a["sampling_params"] or KNOWN["SamplingParams"]()
        self._prepare(params, prompt)
        for name, kind in (("lora_request", KNOWN["LoRARequest"]), ("cache_salt", str), ("trace_headers", Mapping), ("scheduling_params", KNOWN["SchedulingParams"])):  # fmt: skip
            if a[name] is not None and not isinstance(a[name], kind):
                raise TypeError(f"{name} is of type {type(a[name]).__name__}")
        request = Request(
            0, prompt, params, a["cache_salt"], a["lora_request"], a["trace_headers"], a["scheduling_params"]
        )  # fmt: skip
        self._executor.submit(request)
        assert request.output is not None
        return request.output

    def _prepare(self, params: Any, prompt: list[int]) -> None:
        """Checks and mutates the parameters, as the package does."""
        if not isinstance(params, KNOWN["SamplingParams"]):
            raise TypeError(f"sampling_params is of type {type(params).__name__}")
        if params.end_id is None and self.args.skip_tokenizer_init:
            raise ValueError("end_id is required without a tokenizer")
        if params.end_id is not None and (params.stop or params.bad):
            raise RuntimeError("stop is not processed by tokenizer")
        if params.pad_id is None:
            params.pad_id = params.end_id
        params._stream_interval = self.args.stream_interval
        params.return_perf_metrics |= self.args.return_perf_metrics
        if params.guided_decoding is not None and self.args.guided_decoding_backend is None:
            raise ValueError("guided decoding needs a backend")
        if len(prompt) > self.args.max_num_tokens and not self.args.enable_chunked_prefill:
            raise RequestError(f"prompt of {len(prompt)} exceeds max_num_tokens")

    def generate(self, use_tqdm: bool, **arguments: Any) -> RequestOutput:
        """One prompt, synchronously."""
        output: RequestOutput = self.generate_async(**arguments).result()
        return output

    def get_kv_cache_events_async(self, timeout: float | None) -> IterationResult | NoResults:
        return self._iterations("event_results", "take_events", timeout)

    def get_stats_async(self, timeout: float | None) -> IterationResult | NoResults:
        return self._iterations("stat_results", "take_stats", timeout)

    def get_kv_cache_events(self, timeout: float | None) -> list[object]:
        taken: list[object] = self.executor.take_events()
        return taken

    def get_stats(self, timeout: float | None) -> list[object]:
        taken: list[object] = self.executor.take_stats()
        return taken

    def _iterations(
        self, name: str, fetch: str, timeout: float | None
    ) -> IterationResult | NoResults:
        executor = self.executor
        if not executor.steering.requests:
            return NoResults()
        if getattr(executor, name) is None:
            setattr(executor, name, IterationResult(getattr(executor, fetch)))
        results: IterationResult = getattr(executor, name)
        results.timeout = timeout
        return results

    def shutdown(self) -> None:
        """Blocks in the package."""
        self.shutdowns += 1
        if self._executor is not None:
            executor, self._executor = self._executor, None
            executor.shutdown()


shape(LLM)


def _prompt(inputs: object) -> list[int]:
    ids = inputs.get("prompt_token_ids") if isinstance(inputs, dict) else inputs
    if not isinstance(ids, list) or not all(isinstance(i, int) for i in ids):
        raise TypeError("inputs must be text or token ids")
    return list(ids)


def _surroundings() -> dict[str, object]:
    """Where the model was loaded: MPI's processes and CUDA want no loop, thread or fork before."""
    try:
        asyncio.get_running_loop()
        has_loop = True
    except RuntimeError:
        has_loop = False
    names = [Path(task, "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    return {"has_loop": has_loop, "threads": names, "main": __main__.__name__, "pid": os.getpid()}
