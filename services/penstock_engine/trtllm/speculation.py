"""Kinds of speculative decoding that a configuration can ask for, with defaults that work.

Owns what each kind needs and what follows from it (overlap scheduler, sampling, weights that
draft). Knows no class of TensorRT-LLM; ``llm_args`` does. Left out on purpose: draft trees, which
1.2.1 marks as not to be used, and relaxed acceptance, which changes what a model says.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Speculation(BaseModel):
    """What all kinds share.

    Attributes:
        max_concurrency: speculate only while at most this many requests run.
        acceptance_window: requests over which acceptance is watched.
        acceptance_length_threshold: mean accepted length below which speculation is switched off
            for good; needs ``acceptance_window``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_concurrency: int | None = Field(None, ge=1)
    acceptance_window: int | None = Field(None, ge=1)
    acceptance_length_threshold: float | None = Field(None, ge=0)

    @property
    def draft_tokens(self) -> int:
        """Most tokens drafted in a step; 0 where the package decides."""
        return 0

    @property
    def has_draft_weights(self) -> bool:
        """Whether weights beside the model's own take GPU memory."""
        return False

    @property
    def needs_overlap_off(self) -> bool:
        """Whether the overlap scheduler must be off: wherever drafting is no part of the model."""
        return True

    @property
    def ignores_sampling(self) -> bool:
        """Whether tokens are drawn greedily whatever a request asks for."""
        return False

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        if (self.acceptance_window is None) != (self.acceptance_length_threshold is None):
            raise ValueError("acceptance_window and acceptance_length_threshold come together")
        return self


class _Drafts(Speculation):
    """Kinds with a number of drafted tokens, which a schedule may lower by batch size."""

    max_draft_tokens: int = Field(4, ge=1, le=64)
    draft_len_schedule: dict[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=0)]] | None = None

    @model_validator(mode="after")
    def _schedule_starts_at_the_maximum(self) -> Self:
        schedule = self.draft_len_schedule
        if schedule is None:
            return self
        if schedule.get(1) != self.max_draft_tokens or max(schedule.values()) > schedule[1]:
            raise ValueError(
                "draft_len_schedule maps batch sizes to draft lengths: it holds batch size 1 with "
                f"max_draft_tokens ({self.max_draft_tokens}), and nothing longer"
            )
        return self

    @property
    def draft_tokens(self) -> int:
        """As set."""
        return self.max_draft_tokens

    @property
    def may_stop_drafting(self) -> bool:
        """Whether the schedule reaches a draft length of none."""
        return 0 in (self.draft_len_schedule or {}).values()


class NGram(_Drafts):
    """Looks drafts up in what the request has said so far.

    ``public_pool`` shares what was seen between requests, and so between tenants: off by default.
    """

    mode: Literal["ngram"]
    max_ngram: int = Field(3, ge=1, le=64)
    keep_all: bool = True
    use_oldest: bool = True
    public_pool: bool = False


class DraftTarget(_Drafts):
    """A small model with the same tokenizer drafts."""

    mode: Literal["draft_target"]
    draft_model: str = Field(min_length=1)

    @property
    def has_draft_weights(self) -> bool:
        """The draft model's."""
        return True


class Eagle3(_Drafts):
    """A head trained for the model drafts from its hidden states.

    ``one_model`` puts the head into the model's own graph. Only then does sampling need to be
    allowed: without ``allow_advanced_sampling`` such a model draws greedily.
    """

    mode: Literal["eagle3"]
    draft_model: str = Field(min_length=1)
    max_draft_tokens: int = Field(3, ge=1, le=64)
    one_model: bool = True
    allow_advanced_sampling: bool = True
    layers_to_capture: frozenset[int] | None = None
    architecture: Literal["llama3", "mistral_large3"] = "llama3"

    @property
    def has_draft_weights(self) -> bool:
        """The head's."""
        return True

    @property
    def needs_overlap_off(self) -> bool:
        """As in every example of the two-model kind."""
        return not self.one_model

    @property
    def ignores_sampling(self) -> bool:
        """One model falls back to greedy decoding unless sampling is allowed."""
        return self.one_model and not self.allow_advanced_sampling


class Mtp(Speculation):
    """Layers of the checkpoint itself predict further tokens (DeepSeek and its kin)."""

    mode: Literal["mtp"]
    num_layers: int = Field(1, ge=1, le=8)
    allow_advanced_sampling: bool = True

    @property
    def draft_tokens(self) -> int:
        """One of each layer."""
        return self.num_layers

    @property
    def needs_overlap_off(self) -> bool:
        """The layers are part of the model's own graph."""
        return False

    @property
    def ignores_sampling(self) -> bool:
        """One model falls back to greedy decoding unless sampling is allowed."""
        return not self.allow_advanced_sampling


class Auto(Speculation):
    """TensorRT-LLM's own heuristic, without draft weights. It ignores the fields that all share."""

    mode: Literal["auto"]

    @model_validator(mode="after")
    def _has_no_fields(self) -> Self:
        if self.model_fields_set - {"mode"}:
            raise ValueError("auto takes no further settings: TensorRT-LLM would ignore them")
        return self


class NoSpeculation(BaseModel):
    """Each step gives each request one token."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["none"] = "none"


AnySpeculation = Annotated[
    NoSpeculation | NGram | DraftTarget | Eagle3 | Mtp | Auto, Field(discriminator="mode")
]
