"""The messages about a request as a whole: the echoed prompt, usage, timing, the vote."""

from collections.abc import Sequence

from penstock.common.v1 import sampling_pb2, usage_pb2
from penstock.inference.v1 import generate_pb2
from penstock_core.cost.pricing import add_costs
from penstock_engine.api import RequestDone, Share
from penstock_text.tokenizer import Tokenizer
from penstock_worker.accounting.report import Progress
from penstock_worker.generation.sample import Sample
from penstock_worker.generation.vote import majority
from penstock_worker.intake.plan import Plan


def echoes(plan: Plan, tokenizer: Tokenizer) -> list[generate_pb2.GenerateResponse]:
    """The prompt's text for each sample to be returned that an earlier attempt had not begun."""
    text = plan.request.text or tokenizer.decode(plan.engine_request.prompt)
    begun = {state.choice_index for state in plan.request.resume.choices}
    return [
        generate_pb2.GenerateResponse(
            delta=generate_pb2.Delta(choice_index=index, text=text, is_echo=True)
        )
        for index in range(plan.num_returned)
        if index not in begun
    ]


def usage(plan: Plan, samples: Sequence[Sample], done: RequestDone | None) -> usage_pb2.Usage:
    """Tokens of this attempt over all samples that were drawn."""
    num_prompt = len(plan.engine_request.prompt)
    return usage_pb2.Usage(
        prompt_tokens=num_prompt,
        completion_tokens=sum(sample.num_new_tokens for sample in samples),
        cached_tokens=min(done.cached_tokens, num_prompt) if done else 0,
        drafted_tokens=done.drafted_tokens if done else 0,
        accepted_draft_tokens=done.accepted_draft_tokens if done else 0,
    )


def timing(
    progress: Progress, steps: int, done: RequestDone | None, share: Share
) -> usage_pb2.Timing:
    """Where the time of this attempt went; ``steps`` are the longest sample's new tokens."""
    total_s, ttft_s = progress.now_s(), progress.ttft_s
    decode_s = 0.0 if ttft_s is None else total_s - ttft_s
    return usage_pb2.Timing(
        queue_s=done.queue_s if done else progress.queue_s or 0.0,
        prefill_s=done.prefill_s if done else 0.0,
        ttft_s=ttft_s or 0.0,
        tpot_s=decode_s / (steps - 1) if steps > 1 else 0.0,
        total_s=total_s,
        worker_s=share.seconds,
    )


def over_all_attempts(
    plan: Plan, used: usage_pb2.Usage, times: usage_pb2.Timing, samples: Sequence[Sample]
) -> tuple[usage_pb2.Usage, usage_pb2.Timing]:
    """What the client is told: earlier attempts' share added to this one's."""
    before = plan.request.resume
    used.completion_tokens = sum(sample.num_tokens for sample in samples)
    if not before.attempt:
        return used, times
    if before.HasField("usage"):  # that of the prompt counts once, as it was told first
        used.cached_tokens = before.usage.cached_tokens
    used.drafted_tokens += before.usage.drafted_tokens
    used.accepted_draft_tokens += before.usage.accepted_draft_tokens
    times.ttft_s = before.timing.ttft_s or before.timing.total_s + times.ttft_s
    times.total_s += before.timing.total_s
    times.worker_s += before.timing.worker_s
    longest = max(sample.num_tokens for sample in samples)
    times.tpot_s = (times.total_s - times.ttft_s) / (longest - 1) if longest > 1 else 0.0
    return used, times


def price_over_all_attempts(plan: Plan, own: usage_pb2.Cost) -> usage_pb2.Cost | None:
    """What the client is told that it cost: earlier attempts' part added; None if nothing has a price."""
    before = plan.request.resume
    total = add_costs(before.cost, own) if before.attempt else own
    return total if total.currency else None


def completed(
    plan: Plan, used: usage_pb2.Usage, times: usage_pb2.Timing, samples: Sequence[Sample]
) -> generate_pb2.Completed:
    """The last message; figures over all attempts."""
    message = generate_pb2.Completed(usage=used, timing=times)
    if plan.request.aggregation == sampling_pb2.AGGREGATION_MAJORITY_VOTE:
        vote = majority([sample.text for sample in samples], plan.request.vote_field)
        message.vote.choice_index = vote.index
        message.vote.answer = vote.answer
        message.vote.votes = vote.votes
        message.vote.total = vote.total
    return message
