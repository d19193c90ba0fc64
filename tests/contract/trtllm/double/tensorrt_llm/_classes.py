"""Every class of the contract, made."""

import os
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tensorrt_llm._contract import CONTRACT, model, record
from tensorrt_llm._validators import VALIDATORS

KNOWN: dict[str, Any] = {}
for _name in ("CapacitySchedulerPolicy", "ContextChunkingPolicy"):
    from typing import Literal

    KNOWN[_name] = Literal[tuple(CONTRACT["classes"]["SchedulerConfig"]["enums"][_name])]


@dataclass
class LoraConfig:
    """Not in the contract: its fields as the package's documentation of LoRA uses them."""

    lora_dir: list[str]
    max_lora_rank: int = 64
    max_loras: int | None = None
    max_cpu_loras: int | None = None
    lora_target_modules: list[str] | None = None


KNOWN["LoraConfig"] = LoraConfig
for _name, _spec in CONTRACT["classes"].items():
    if _spec.get("kind", "").startswith("pydantic") and _name != "TorchLlmArgs":
        KNOWN[_name] = model(_name, KNOWN, VALIDATORS)
_union = CONTRACT["classes"]["SpeculativeConfigUnion"]["type"]
KNOWN["SpeculativeConfig"] = Any
SPECULATIVE_CLASSES = tuple(
    KNOWN[name] for name in KNOWN if name.endswith("DecodingConfig") and name in _union
)
KNOWN["TorchLlmArgs"] = model("TorchLlmArgs", KNOWN, VALIDATORS)


def _from_dict(_cls: object, data: dict[str, object]) -> object:
    kinds = CONTRACT["classes"]["DecodingBaseConfig"]["from_dict"]["decoding_type_to_class"]
    name = kinds.get(data.pop("decoding_type"))
    if name is None:
        raise ValueError("unknown decoding type")
    return KNOWN[name](**data)


KNOWN["DecodingBaseConfig"].from_dict = classmethod(_from_dict)


def _one_guide(self: Any) -> None:
    guides = [
        g for g in (self.json, self.regex, self.grammar, self.structural_tag) if g is not None
    ]
    number = len(guides) + bool(self.json_object)
    if number > 1:
        raise ValueError(f"Only one guide can be used for a request, but got {number}.")


def _path_exists(self: Any) -> None:
    if not self.lora_path or not Path(self.lora_path).exists():
        raise ValueError(f"lora_path ({self.lora_path}) does not exist.")


def _check_sampling(self: Any) -> None:
    if self.pad_id is None:
        self.pad_id = self.end_id
    self.best_of = self.best_of or self.n
    bad = [
        self.top_p is not None and not 0 <= self.top_p <= 1,
        self.top_k is not None and self.top_k < 0,
        self.temperature is not None and self.temperature < 0,
        self.best_of < self.n,
        self.best_of > 1 and is_greedy(self) and not os.environ.get("TLLM_ALLOW_N_GREEDY_DECODING"),
        self.embedding_bias is not None and type(self.embedding_bias).__name__ != "Tensor",
    ]
    if any(bad):
        raise ValueError(f"bad sampling parameters {bad}")


def is_greedy(params: Any) -> bool:
    """Neither temperature, top_p nor top_k is set."""
    return params.temperature is None and params.top_p is None and params.top_k is None


KNOWN["GuidedDecodingParams"] = record("GuidedDecodingParams", KNOWN, _one_guide)
KNOWN["LoRARequest"] = record("LoRARequest", KNOWN, _path_exists)
KNOWN["SamplingParams"] = record("SamplingParams", KNOWN, _check_sampling)
KNOWN["SchedulingParams"] = record("SchedulingParams", KNOWN)
KNOWN["DisaggregatedParams"] = record("DisaggregatedParams", KNOWN)


class CompletionOutput(record("CompletionOutput", {}, None)):  # type: ignore[misc]
    """One sequence; everything is cumulative, ``*_diff`` tells of the last response."""

    @property
    def length(self) -> int:
        return len(self.token_ids)

    @property
    def token_ids_diff(self) -> list[int]:
        return self.token_ids[self._last_token_ids_len :]  # type: ignore[no-any-return]

    @property
    def text_diff(self) -> str:
        return self.text[self._last_text_len :]  # type: ignore[no-any-return]

    @property
    def logprobs_diff(self) -> list[object]:
        return self.logprobs[self._last_logprobs_len :]  # type: ignore[no-any-return]


@dataclass
class Logprob:
    """One entry of TokenLogprobs."""

    logprob: float
    rank: int | None = None


def perf_metrics(values: dict[str, object]) -> SimpleNamespace:
    """RequestPerfMetrics with the contract's fields; what is not given is zero or None."""
    made = SimpleNamespace()
    for path in CONTRACT["classes"]["RequestPerfMetrics"]["fields"]:
        *parts, last = path.split(".")
        at = made
        for part in parts:
            if not hasattr(at, part):
                setattr(at, part, SimpleNamespace())
            at = getattr(at, part)
        setattr(at, last, values.get(path))
    return made


class RequestError(RuntimeError):
    """A request failed; the executor lives on."""
