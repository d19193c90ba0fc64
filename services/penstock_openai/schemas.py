"""OpenAI's request bodies, with vLLM's names for what OpenAI lacks. Shapes only, no meaning.

A parameter that is not declared is refused, as OpenAI does. Ranges are the router's to check: it
answers gRPC callers the same.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

Int32 = Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]
Int64 = Annotated[int, Field(ge=-(2**63), le=2**64 - 1)]
TokenId = Annotated[int, Field(ge=0, le=2**32 - 1)]
Name = Annotated[str, Field(min_length=1, max_length=256)]
Prompts = str | list[TokenId] | list[str] | list[list[TokenId]]


class Body(BaseModel):
    """Strict about types and unknown parameters."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Tolerant(BaseModel):
    """A nested object that SDKs extend freely, e.g. by handing an answer's message back."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class StreamOptions(Tolerant):
    """What a stream carries besides the tokens."""

    include_usage: bool | None = None


class GenerationBody(Body):
    """What completions and chat completions share."""

    model: Name
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    max_tokens: Int32 | None = None
    n: Int32 | None = None
    seed: Int64 | None = None
    stop: str | list[str] | None = Field(
        None, json_schema_extra={"forms": "a string or an array of strings"}
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    # vLLM's extensions.
    top_k: Int32 | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: Int32 | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[TokenId] | None = None
    # Penstock's: whether an answer from before may be given again.
    response_cache: Literal["off", "use", "refresh"] | None = None
    # Penstock's: count equal answers of the n samples, whole ones or a field of JSON ones.
    majority_vote: bool | None = None
    vote_field: str | None = None
    # Accepted and without effect here.
    user: str | None = None


class CompletionBody(GenerationBody):
    """``POST /v1/completions``."""

    prompt: Prompts = Field(
        json_schema_extra={
            "forms": "a string, an array of strings, an array of token ids or an array of these"
        }
    )
    best_of: Int32 | None = None
    echo: bool | None = None
    logprobs: Int32 | None = None
    suffix: str | None = None


class EmbeddingBody(Body):
    """``POST /v1/embeddings``."""

    model: Name
    input: Prompts = Field(
        json_schema_extra={
            "forms": "a string, an array of strings, an array of token ids or an array of these"
        }
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    # Penstock's extension: how the tokens' vectors become one; without it, the model's own way.
    pooling: Literal["last", "mean"] | None = None
    # Accepted and without effect here.
    user: str | None = None


class ContentPart(Tolerant):
    """A part of a message's content."""

    type: str
    text: str | None = None
    refusal: str | None = None


class FunctionCall(Tolerant):
    """What a tool call calls."""

    name: str
    arguments: str


class ToolCallBody(Tolerant):
    """A call that an assistant turn made."""

    id: str
    type: str = "function"
    function: FunctionCall


class Message(Tolerant):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCallBody] | None = None
    tool_call_id: str | None = None


class Function(Tolerant):
    """A function that the model may call."""

    name: Name
    description: str | None = None
    parameters: dict[str, JsonValue] | None = None
    strict: bool | None = None


class ToolBody(Tolerant):
    """An offered tool."""

    type: str
    function: Function | None = None


class FunctionName(Tolerant):
    """Names a function."""

    name: Name


class NamedTool(Tolerant):
    """Forces one function."""

    type: Literal["function"]
    function: FunctionName


class JsonSchemaFormat(Tolerant):
    """The schema of ``response_format``."""

    name: str
    schema_: dict[str, JsonValue] | None = Field(None, alias="schema")
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Tolerant):
    """The form that the answer must have."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class ChatBody(GenerationBody):
    """``POST /v1/chat/completions``."""

    messages: list[Message]
    max_completion_tokens: Int32 | None = None
    logprobs: bool | None = None
    top_logprobs: Int32 | None = None
    tools: list[ToolBody] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = Field(
        None, json_schema_extra={"forms": "'none', 'auto', 'required' or a named function"}
    )
    # False: what follows a first call that the model chose to make is text.
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    # Would change the answer, so refused unless they ask for what is given anyway.
    modalities: list[str] | None = None
    audio: JsonValue = None
    functions: JsonValue = None
    function_call: JsonValue = None
    web_search_options: JsonValue = None
    moderation: JsonValue = None
    # Accepted and without effect here.
    metadata: dict[str, str] | None = None
    prediction: JsonValue = None
    prompt_cache_key: str | None = None
    prompt_cache_options: JsonValue = None
    prompt_cache_retention: str | None = None
    reasoning_effort: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    verbosity: str | None = None


class BatchBody(Body):
    """``POST /v1/batches``."""

    input_file_id: Name
    endpoint: Name
    completion_window: str
    metadata: dict[str, str] | None = None
    output_expires_after: JsonValue = None
