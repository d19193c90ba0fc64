"""What one body asks of the router and how its answer will look. Pure.

The one place where a body gets its meaning: online and in a batch's line it is the same.
"""

from dataclasses import dataclass

from penstock.inference.v1 import generate_pb2
from penstock_core.requests.tool_calls import FREE_CHOICES
from penstock_openai.bodies import validated
from penstock_openai.formats import (
    ChatFormat,
    CompletionFormat,
    Format,
    ToolCallFormat,
    WrittenCallFormat,
)
from penstock_openai.responses import Shape
from penstock_openai.schemas import ChatBody, CompletionBody
from penstock_openai.translate import chat_request, completion_requests

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Generation:
    """One wire request for each prompt, and the answer's looks."""

    requests: tuple[generate_pb2.GenerateRequest, ...]
    form: Format
    shape: Shape
    model: str


def completion_generation(body: CompletionBody) -> Generation:
    """What a completion asks for. Raises InvalidRequest, NotSupported."""
    requests = completion_requests(body)
    return Generation(
        requests=tuple(requests),
        form=CompletionFormat(logprobs=body.logprobs is not None),
        shape=Shape(prompts=len(requests), samples=body.n or 1),
        model=body.model,
    )


def chat_generation(body: ChatBody) -> Generation:
    """What a conversation asks for. Raises InvalidRequest, NotSupported."""
    request = chat_request(body)
    return Generation(
        requests=(request,),
        form=_chat_format(body, request),
        shape=Shape(prompts=1, samples=body.n or 1),
        model=body.model,
    )


def _chat_format(body: ChatBody, request: generate_pb2.GenerateRequest) -> Format:
    chat, logprobs = request.chat, bool(body.logprobs)
    if chat.tool_choice not in FREE_CHOICES:
        return ToolCallFormat(logprobs=logprobs)
    # What ``response_format`` held the output to is the answer that was asked for, and no call.
    if not chat.tools or chat.tool_choice == "none" or request.HasField("constraint"):
        return ChatFormat(logprobs=logprobs)
    return WrittenCallFormat(
        logprobs=logprobs,
        tools={tool.name for tool in chat.tools},
        is_parallel=body.parallel_tool_calls is not False,
    )


def generation_of(path: str, value: object) -> Generation:
    """What a body of parsed JSON asks for that was posted to ``path``, one of the two above.

    Raises:
        InvalidRequest: it has not the form of the endpoint's bodies, or contradicts itself.
        NotSupported: it asks for what Penstock does not do.
    """
    if path == CHAT:
        return chat_generation(validated(value, ChatBody))
    return completion_generation(validated(value, CompletionBody))
