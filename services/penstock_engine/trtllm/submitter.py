"""Gives samples to TensorRT-LLM, and reads what its exceptions mean.

Owns the call of ``generate_async``: from the event loop that iterates the output, with parameters made
anew, a salt for each chain and the trace of the caller.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from penstock_core.errors import EngineFailed, InternalError, InvalidRequest, PenstockError
from penstock_engine.api import EngineRequest
from penstock_engine.trtllm.feed import CacheFeed
from penstock_engine.trtllm.llm_args import Build
from penstock_engine.trtllm.package import Llm, Output, Package
from penstock_engine.trtllm.sampling import Abilities, ends, sampling_params
from penstock_engine.trtllm.settings import Lora


@dataclass(frozen=True, slots=True)
class Loaded:
    """The package and the model it has loaded."""

    package: Package
    llm: Llm


class EngineSubmitter:
    """See ``job.Submitter``. ``failed`` hears why, once the engine is dead."""

    def __init__(
        self,
        loaded: Loaded,
        abilities: Abilities,
        feed: CacheFeed,
        lora: Lora | None,
        failed: Callable[[EngineFailed], None],
    ) -> None:
        self.has_failed = False
        self._loaded = loaded
        self._abilities = abilities
        self._feed = feed
        self._failed = failed
        adapters = lora.adapters if lora is not None else ()
        self._adapters = {
            adapter.name: Build("LoRARequest", {
                "lora_name": adapter.name, "lora_int_id": number, "lora_path": str(adapter.path),
            })
            for number, adapter in enumerate(adapters, 1)
        }  # fmt: skip

    def end_id(self, request: EngineRequest) -> int:
        """The token that ends it without being named as a stop token."""
        end = ends(request, self._abilities)["end_id"]
        assert isinstance(end, int)
        return end

    def submit(self, request: EngineRequest, choice: int, trace: Mapping[str, str]) -> Output:
        """Submit it on the running loop.

        Raises:
            InvalidRequest: the engine refuses it.
            RuntimeError: the engine is dead, or shuts down.
        """
        package = self._loaded.package
        emitted = request.emitted[choice] if request.emitted else ()
        prompt = [*request.prompt, *emitted]
        try:
            return self._loaded.llm.generate_async(
                {"prompt_token_ids": prompt},
                package.build(sampling_params(request, choice, self._abilities)),
                lora_request=package.build(self._adapters.get(request.adapter)),
                streaming=True,
                trace_headers=dict(trace) or None,
                scheduling_params=package.build(self._rank(request, prompt)),
                cache_salt=self._feed.salt(request.chain_start),
            )
        except (package.request_error, ValueError, TypeError) as error:
            # Of this request only: one that we failed to refuse must not end the others.
            raise InvalidRequest(f"the engine refuses it: {error}", field="prompt") from error

    def failure(self, error: Exception) -> PenstockError:
        """What an exception from the engine means; a fatal one ends the engine."""
        if isinstance(error, self._loaded.package.request_error):
            return InternalError(f"the engine failed this request: {error}")
        dead = EngineFailed(f"TensorRT-LLM failed: {error!r}")
        self.has_failed = True
        self._failed(dead)
        return dead

    def _rank(self, request: EngineRequest, prompt: list[int]) -> Build | None:
        """The attention-data-parallel rank that holds most of the prompt, if any holds some."""
        ranks = self._feed.mirror.ranks
        depths = {r: self._feed.depth(prompt, request.chain_start, r) for r in ranks}
        if not depths or not max(depths.values()):
            return None
        best = max(depths, key=lambda r: depths[r])
        chosen = {"attention_dp_rank": best, "attention_dp_relax": True}
        return Build("SchedulingParams", chosen)
