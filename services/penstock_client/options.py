"""What a caller may ask of a generation. Knows no wire types: ``translate`` does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Priority = Literal["system", "interactive", "standard", "batch"]
ResponseCacheMode = Literal["off", "use", "refresh"]
Pooling = Literal["last", "mean"]
ConstraintKind = Literal["json_schema", "json_object", "regex", "grammar", "choice"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: system, developer, user, assistant or tool.
        content: the text of the turn.
        name: the speaker's name, where the model's template uses it.
    """

    role: str
    content: str
    name: str = ""


# Plain text, token ids (nothing is added to them), or a conversation.
Prompt = str | Sequence[int] | Sequence[Message]


# One text, several, or the token ids of several.
Inputs = str | Sequence[str] | Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Constraint:
    """A shape the output must have.

    Attributes:
        kind: what ``text`` is: a JSON Schema, a regular expression or a Lark grammar;
            ``json_object`` needs no text and ``choice`` takes ``options`` instead.
        text: the schema, expression or grammar.
        options: the allowed answers of a ``choice``.
    """

    kind: ConstraintKind
    text: str = ""
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """How tokens are drawn and when generation ends. None takes the model's default.

    Attributes:
        max_tokens: upper bound on new tokens a sample; None fills the context.
        min_tokens: no end of sequence and no stop before this many new tokens.
        temperature: softmax temperature; 0 is greedy.
        top_p: keep the smallest set of tokens with at least this probability.
        top_k: keep the k likeliest tokens; 0 keeps all.
        min_p: keep tokens at least this fraction as likely as the likeliest.
        frequency_penalty: subtracted from a token's logit for each time it was emitted.
        presence_penalty: subtracted from a token's logit once it was emitted.
        repetition_penalty: divides logits of tokens seen in prompt or output; 1 is off.
        seed: equal seeds give equal tokens.
        n: independent samples of the prompt.
        best_of: samples drawn, of which the n likeliest are returned.
        logit_bias: added to a token's logit, by token id.
        ignore_eos: continue past the model's end-of-sequence token.
        stop: strings that end a sample; not part of its text.
        stop_token_ids: token ids that end a sample.
        logprobs: log-probabilities of each token and of this many alternatives.
        echo: return the prompt's text before the first token.
        constraint: a shape the output must have.
        adapter: LoRA adapter; empty for the base model.
        priority: who goes first when capacity is short.
        speculation: whether drafts may be used; None lets the engine decide.
        majority_vote: return the most frequent answer of the n samples with its votes.
        vote_field: JSON field that is voted on; empty votes on the whole text.
        response_cache: ``use`` may give the kept answer of an identical request that was greedy or
            seeded, and keeps a computed one; ``refresh`` only keeps.
        request_id: id for logs, traces and ``explain``; made by the server if empty.
    """

    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    n: int | None = None
    best_of: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    echo: bool = False
    constraint: Constraint | None = None
    adapter: str = ""
    priority: Priority = "standard"
    speculation: bool | None = None
    majority_vote: bool = False
    vote_field: str = ""
    request_id: str = ""
    response_cache: ResponseCacheMode = "off"


DEFAULTS = GenerateOptions()
