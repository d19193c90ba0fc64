"""What one HTTP request's generations have come to: choices, usage, timing. Pure.

Built from wire events; knows nothing of OpenAI's two answer shapes (``formats`` does).
"""

from dataclasses import dataclass, field
from functools import reduce

from penstock.common.v1 import tokens_pb2, usage_pb2
from penstock.inference.v1 import generate_pb2
from penstock_core.cost.pricing import add_costs
from penstock_openai.json_object import Json
from penstock_openai.tool_calls import CallReader
from penstock_openai.written_calls import WrittenCalls

FINISH_REASONS = {
    generate_pb2.FINISH_REASON_UNSPECIFIED: "stop",
    generate_pb2.FINISH_REASON_STOP: "stop",
    generate_pb2.FINISH_REASON_LENGTH: "length",
    generate_pb2.FINISH_REASON_TOOL_CALLS: "tool_calls",
    generate_pb2.FINISH_REASON_ABORTED: "abort",
    generate_pb2.FINISH_REASON_CONSTRAINT: "constraint",
}


@dataclass(slots=True)
class Choice:
    """One sample so far. ``chars`` counts the characters its tokens stand for, echo included.

    ``forced`` or ``written`` reads tool calls, where the answer's format expects any.
    """

    index: int
    has_begun: bool = False
    chars: int = 0
    text: list[str] = field(default_factory=list)
    tokens: list[tokens_pb2.TokenLogprob] = field(default_factory=list)
    echo_chars: int = 0
    finish_reason: str | None = None
    matched_stop: str | int | None = None
    forced: CallReader | None = None
    written: WrittenCalls | None = None

    def finish(self, event: generate_pb2.Finished) -> None:
        """Note why the sample ended."""
        self.finish_reason = FINISH_REASONS.get(event.reason, "stop")
        kind = event.WhichOneof("matched_stop")
        if kind is not None:
            self.matched_stop = getattr(event, kind)


class Summary:
    """Usage and timing over all prompts of a request."""

    def __init__(self, prompts: int) -> None:
        self._started = [generate_pb2.Started() for _ in range(prompts)]
        self._completed = [generate_pb2.Completed() for _ in range(prompts)]

    def note(self, prompt: int, event: generate_pb2.GenerateResponse) -> None:
        """Take an event of a prompt; only its first and last matter here."""
        kind = event.WhichOneof("event")
        if kind == "started":
            self._started[prompt] = event.started
        elif kind == "completed":
            self._completed[prompt] = event.completed

    def total(self) -> usage_pb2.Usage:
        """Tokens used."""
        parts = [done.usage for done in self._completed]
        return usage_pb2.Usage(
            prompt_tokens=sum(part.prompt_tokens for part in parts),
            completion_tokens=sum(part.completion_tokens for part in parts),
            cached_tokens=sum(part.cached_tokens for part in parts),
            drafted_tokens=sum(part.drafted_tokens for part in parts),
            accepted_draft_tokens=sum(part.accepted_draft_tokens for part in parts),
        )

    def cost(self) -> usage_pb2.Cost | None:
        """What all prompts cost; None if workers have no price."""
        costs = [done.cost for done in self._completed if done.HasField("cost")]
        return reduce(add_costs, costs) if costs else None

    def usage(self) -> Json:
        """OpenAI's ``usage`` object."""
        total = self.total()
        drafted, accepted = total.drafted_tokens, total.accepted_draft_tokens
        return {
            "prompt_tokens": total.prompt_tokens,
            "completion_tokens": total.completion_tokens,
            "total_tokens": total.prompt_tokens + total.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": total.cached_tokens},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "accepted_prediction_tokens": accepted,
                "rejected_prediction_tokens": max(drafted - accepted, 0),
            },
        }

    @property
    def is_kept(self) -> bool:
        """Whether every prompt was answered from memory."""
        return all(done.from_response_cache for done in self._completed)

    def extension(self) -> Json:
        """The ``penstock`` object: who served the request, where its time went, what it cost.

        With several prompts, a list of them under ``prompts``, and what they cost together.
        """
        each = [_facts(s, c) for s, c in zip(self._started, self._completed, strict=True)]
        if len(each) == 1:
            return each[0]
        cost = self.cost()
        return {"prompts": each} if cost is None else {"prompts": each, "cost": cost_object(cost)}


def cost_object(cost: usage_pb2.Cost) -> Json:
    """A cost as every answer shows it: the amount in millionths, and the workers' seconds."""
    return {
        "micros": cost.micros,
        "currency": cost.currency,
        "prefill_s": cost.prefill_s,
        "decode_s": cost.decode_s,
    }


def _facts(started: generate_pb2.Started, completed: generate_pb2.Completed) -> Json:
    timing = completed.timing
    facts: Json = {
        "request_id": started.request_id,
        "worker": started.worker_id,
        "decision_id": started.decision_id,
        "seed": started.seed,
        "queue_s": timing.queue_s,
        "prefill_s": timing.prefill_s,
        "ttft_s": timing.ttft_s,
        "tpot_s": timing.tpot_s,
        "total_s": timing.total_s,
        "worker_s": timing.worker_s,
    }
    if completed.from_response_cache:
        facts["from_response_cache"] = True
        facts["response_age_s"] = completed.response_age_s
    if completed.HasField("cost"):
        cost = completed.cost
        facts["cost"] = cost_object(cost)
    if completed.HasField("vote"):
        vote = completed.vote
        facts["vote"] = {
            "choice": vote.choice_index,
            "answer": vote.answer,
            "votes": vote.votes,
            "total": vote.total,
        }
    return facts
