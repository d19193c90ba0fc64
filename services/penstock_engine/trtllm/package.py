"""The one place that imports ``tensorrt_llm``: its version, its classes, and what we call on them.

Owns the shapes that we rely on (as protocols) and the making of its objects. Nothing here is loaded
until ``load_package`` is called, so settings can be checked without the package.
"""

import importlib
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from types import ModuleType
from typing import Protocol, cast

from penstock_core.errors import NotSupported
from penstock_engine.trtllm.llm_args import Build

MIN_VERSION = (1, 2, 1)
"""1.2.0 corrupts the KV cache (https://github.com/NVIDIA/TensorRT-LLM/pull/12770)."""
BELOW_VERSION = (1, 3)
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)(?:\.post\d+)?(?:\+[\w.]+)?")
# Where a class is looked for, in this order; LoraConfig has moved between releases.
_HOMES = (
    "tensorrt_llm.llmapi",
    "tensorrt_llm",
    "tensorrt_llm.lora_helper",
    "tensorrt_llm.lora_manager",
    "tensorrt_llm.scheduling_params",
)


class Completion(Protocol):
    """One sequence of an output. Everything in it is cumulative, and is changed in place."""

    token_ids: list[int]
    logprobs: Sequence[object] | None
    finish_reason: str | None
    stop_reason: int | str | None
    request_perf_metrics: object


class Output(Protocol):
    """A request in the engine. Iterating gives the same object after each response."""

    cached_tokens: int
    decoding_iter: int

    @property
    def outputs(self) -> Sequence[Completion]:
        """Its sequences."""
        ...

    @property
    def finished(self) -> bool:
        """Whether its last response was seen. Stays false after an error."""
        ...

    def abort(self) -> None:
        """Ask for its end; more responses may come before the one that says so."""
        ...

    def __aiter__(self) -> AsyncIterator["Output"]:
        """Responses, on the loop that the request was submitted on."""
        ...


class Iterations(Protocol):
    """What iterations of the engine left behind. Reading takes it; ends when the engine idles."""

    def __aiter__(self) -> AsyncIterator[object]:
        """Items as parsed JSON."""
        ...


class Llm(Protocol):
    """A loaded model."""

    def generate_async(
        self,
        inputs: object,
        sampling_params: object = None,
        *,
        lora_request: object = None,
        streaming: bool = False,
        trace_headers: Mapping[str, str] | None = None,
        scheduling_params: object = None,
        cache_salt: str | None = None,
    ) -> Output:
        """Submit a request; a plain function, to be called on the loop that will iterate."""
        ...

    def get_kv_cache_events_async(self, timeout: float | None = 2) -> Iterations:
        """Changes of the KV cache."""
        ...

    def get_stats_async(self, timeout: float | None = 2) -> Iterations:
        """Figures of each iteration."""
        ...

    def shutdown(self) -> None:
        """Free everything; blocks."""
        ...


class Package:
    """TensorRT-LLM, loaded."""

    def __init__(self, module: ModuleType, version: str) -> None:
        self.version = version
        self._module = module

    @property
    def request_error(self) -> type[Exception]:
        """What one request can fail with while the engine lives on."""
        return cast("type[Exception]", self._named("RequestError"))

    def llm(self, arguments: Mapping[str, object]) -> Llm:
        """Load a model. Takes minutes, and every GPU it was given."""
        built = {name: self.build(value) for name, value in arguments.items()}
        return cast("Llm", self._module.LLM(**built))

    def build(self, value: object) -> object:
        """Make a ``Build``, and every one inside it; anything else stays as it is."""
        if not isinstance(value, Build):
            return value
        arguments = {name: self.build(inner) for name, inner in value.arguments.items()}
        return self._maker(value.name)(**arguments)

    def _maker(self, name: str) -> Callable[..., object]:
        if name == "LogitBias":  # ours: the package takes a tensor
            return _logit_bias
        return cast("Callable[..., object]", self._named(name))

    def _named(self, name: str) -> object:
        for home in _HOMES:
            try:
                module = importlib.import_module(home)
            except ModuleNotFoundError:
                continue
            if hasattr(module, name):
                return getattr(module, name)
        raise NotSupported(f"this build of TensorRT-LLM has no {name}")


def _logit_bias(bias: Mapping[int, float], vocab_size: int) -> object:
    """The dense tensor that TensorRT-LLM wants of a bias on some tokens."""
    # torch is part of the package, and of nothing else here.
    torch = importlib.import_module("torch")
    dense = torch.zeros(vocab_size, dtype=torch.float32)
    for token, value in bias.items():
        dense[token] = value
    return dense


def load_package() -> Package:
    """Import the package.

    Raises:
        NotSupported: it is not installed, or of a version whose interface or cache we cannot trust.
    """
    try:
        module = importlib.import_module("tensorrt_llm")
    except ImportError as error:
        raise NotSupported(
            f"TensorRT-LLM cannot be loaded ({error}); run the worker in its image, "
            "deploy/docker/worker-trtllm.Dockerfile, or choose the engine native"
        ) from error
    version = str(getattr(module, "__version__", "unknown"))
    check_version(version)
    return Package(module, version)


def check_version(version: str) -> None:
    """Raise NotSupported unless we know this version."""
    match = _VERSION.fullmatch(version)
    numbers = tuple(map(int, match.groups())) if match else ()
    if not (MIN_VERSION <= numbers < BELOW_VERSION):
        raise NotSupported(
            f"TensorRT-LLM {version} is not supported: at least 1.2.1 and below 1.3 is needed"
        )
