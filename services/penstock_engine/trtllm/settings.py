"""What a TensorRT-LLM engine can be told: one frozen, typed object from a YAML file.

Owns names, units, defaults and ranges; everything is checked without the package or a GPU.
Combinations that 1.2.1 cannot run are refused by ``rules``; ``llm_args`` translates the rest.
Quantization has no setting: it comes with the checkpoint, and for the KV cache as its ``dtype``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from penstock_core.settings import SettingsError
from penstock_engine.trtllm import rules
from penstock_engine.trtllm.speculation import AnySpeculation, NoSpeculation, Speculation

# Two seconds of the fastest cache traffic: 100k prefill tokens/s store 3k blocks, evict 3k and
# offload 3k a second. 1,024 are known to overflow; below 16,384 nothing is known to be enough.
MIN_EVENT_BUFFER = 16_384
_DRAFTING_FRACTION = 0.80
_FRACTION = 0.85


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Parallel(_Section):
    """Over how many GPUs a model is spread. Experts share the tensor-parallel GPUs."""

    tensor: int = Field(1, ge=1)
    pipeline: int = Field(1, ge=1)
    expert: int | None = Field(None, ge=1)
    attention_dp: bool = False
    gpus_per_node: int | None = Field(None, ge=1)

    @property
    def num_gpus(self) -> int:
        """GPUs, over all nodes."""
        return self.tensor * self.pipeline

    @model_validator(mode="after")
    def _experts_divide(self) -> Self:
        if self.expert is not None and self.tensor % self.expert:
            raise ValueError(f"expert {self.expert} does not divide tensor {self.tensor}")
        return self


class KvCache(_Section):
    """The KV cache.

    Attributes:
        free_gpu_memory_fraction: of the memory that is free once the weights are loaded; None
            takes 0.85, or 0.80 where weights that draft are loaded too.
        max_tokens: a cap in tokens; the smaller of both wins.
        host_cache_bytes: host memory that evicted blocks move to; 0 for none.
        host_offload_with_events: says that ``tests/gpu`` passed with host offload on this machine.
        partial_reuse: reuse a part of a block by copying it. Saves half a block of prefill in the
            mean, but makes hits that no router can predict.
        event_buffer: cache events that the engine keeps for us, at least two seconds' worth.
    """

    reuse: bool = True
    tokens_per_block: int = Field(32, gt=1)
    free_gpu_memory_fraction: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    dtype: Literal["auto", "fp8"] = "auto"
    host_cache_bytes: int = Field(0, ge=0)
    host_offload_with_events: bool = False
    partial_reuse: bool = False
    max_attention_window: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(None, min_length=1)
    event_buffer: int = Field(65_536, ge=MIN_EVENT_BUFFER)

    @field_validator("tokens_per_block")
    @classmethod
    def _power_of_two(cls, value: int) -> int:
        if value & (value - 1):
            raise ValueError("is no power of two")
        return value


class Scheduler(_Section):
    """How the engine fills its steps. ``overlap`` None follows from the kind of speculation."""

    capacity: Literal["GUARANTEED_NO_EVICT", "MAX_UTILIZATION", "STATIC_BATCH"] = (
        "GUARANTEED_NO_EVICT"
    )
    context_chunking: Literal["FIRST_COME_FIRST_SERVED", "EQUAL_PROGRESS"] | None = None
    chunked_prefill: bool = True
    overlap: bool | None = None


class CudaGraphs(_Section):
    """Captured steps; each graph may take up to 200 MB. ``max_batch_size`` 0 leaves the default."""

    batch_sizes: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(None, min_length=1)
    max_batch_size: int = Field(0, ge=0)
    padding: bool = False

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.batch_sizes and self.max_batch_size:
            raise ValueError("batch_sizes and max_batch_size exclude each other")
        return self


class Adapter(_Section):
    """One LoRA adapter in a directory on this machine."""

    name: str = Field(min_length=1)
    path: Path


class Lora(_Section):
    """Adapters that requests can name."""

    adapters: tuple[Adapter, ...] = Field(min_length=1)
    max_rank: int = Field(64, ge=1)
    max_on_gpu: int = Field(4, ge=1)
    max_on_host: int = Field(8, ge=1)
    target_modules: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [adapter.name for adapter in self.adapters]
        if len(set(names)) < len(names):
            raise ValueError("two adapters have the same name")
        return self


class TrtLlmSettings(_Section):
    """Settings of one TensorRT-LLM engine.

    Attributes:
        model: directory or hub id.
        max_batch_size: most requests in one step, and so in the engine: the others wait here,
            where they have priorities.
        max_num_tokens: most tokens in one step.
        max_seq_len: most tokens of prompt and output; None for what the model was made for.
        max_waiting: most requests that wait for a place.
        startup_timeout_s: until the engine must have answered a first request.
        stall_timeout_s: without any response while requests run, after which the engine is given up.
        drain_timeout_s: for an aborted request to leave the engine.
        otlp_traces_endpoint: where TensorRT-LLM sends a span of its own for each request; ours do
            without it.
    """

    model: str = Field(min_length=1)
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    parallel: Parallel = Parallel()
    kv_cache: KvCache = KvCache()
    scheduler: Scheduler = Scheduler()
    cuda_graphs: CudaGraphs | None = CudaGraphs()
    speculation: AnySpeculation = NoSpeculation()
    guided_decoding: Literal["xgrammar", "llguidance"] | None = "xgrammar"
    sampler: Literal["auto", "TorchSampler", "TRTLLMSampler"] = "auto"
    lora: Lora | None = None
    max_batch_size: int = Field(128, ge=1)
    max_num_tokens: int = Field(8192, ge=1)
    max_seq_len: int | None = Field(None, ge=2)
    max_waiting: int = Field(1024, ge=1)
    startup_timeout_s: float = Field(1800, gt=0)
    stall_timeout_s: float = Field(120, gt=0)
    drain_timeout_s: float = Field(10, gt=0)
    otlp_traces_endpoint: str | None = None

    @property
    def drafting(self) -> Speculation | None:
        """The kind of speculation, if any."""
        return None if isinstance(self.speculation, NoSpeculation) else self.speculation

    @property
    def has_events(self) -> bool:
        """Whether the engine tells what its cache holds: only one that reuses blocks does."""
        return self.kv_cache.reuse

    @property
    def gpu_memory_fraction(self) -> float:
        """What the KV cache takes of the free memory. Warm-up peaks are not counted by the engine."""
        chosen = self.kv_cache.free_gpu_memory_fraction
        if chosen is not None:
            return chosen
        has_drafter = self.drafting is not None and self.drafting.has_draft_weights
        return _DRAFTING_FRACTION if has_drafter else _FRACTION

    @property
    def is_overlapped(self) -> bool:
        """Whether the overlap scheduler runs."""
        if self.scheduler.overlap is not None:
            return self.scheduler.overlap
        return self.drafting is None or not self.drafting.needs_overlap_off

    @model_validator(mode="after")
    def _can_run(self) -> Self:
        if refusals := rules.refusals(self):
            raise ValueError("; ".join(refusals))
        return self

    @classmethod
    def load(cls, file: Path, overrides: Mapping[str, object] | None = None) -> Self:
        """Read a YAML file; ``overrides`` replace what they name, sections field by field.

        Raises:
            SettingsError: the file cannot be read or a setting is no good; each is named by its path.
        """
        try:
            content = parse_settings(file.read_text(encoding="utf-8"), str(file))
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{file}: {error}") from error
        try:
            return cls.model_validate(_merged(content, overrides or {}))
        except ValidationError as error:
            lines = [
                f"{'.'.join(map(str, item['loc'])) or 'settings'}: {item['msg']}"
                for item in error.errors()
            ]
            raise SettingsError(f"{file}: {'; '.join(lines)}") from error


def parse_settings(text: str, source: str) -> dict[str, object]:
    """A mapping of settings in YAML, not checked yet. ``source`` is where it comes from.

    Raises:
        SettingsError: it is no YAML, or no mapping.
    """
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"{source}: {error}") from error
    if not isinstance(content, dict):
        raise SettingsError(f"{source}: a mapping of settings is expected")
    return content


def _merged(file: Mapping[str, object], over: Mapping[str, object]) -> dict[str, object]:
    """Both, section by section. Another ``mode`` is another kind, with fields of its own."""
    merged = {**file, **over}
    for name, section in over.items():
        below = file.get(name)
        if isinstance(section, dict) and isinstance(below, dict):
            is_other = "mode" in section and section["mode"] != below.get("mode")
            merged[name] = section if is_other else {**below, **section}
    return merged
