"""Constraints of requests, compiled: which tokens may follow in which state.

Owns the compiler and its bounded cache, and what one sample has of a constraint (``GrammarMatcher``).
Compiling runs in a thread of its own, so that neither a step nor the event loop waits for it. Knows
no logits; ``masks`` does.

Why llguidance: it needs no other package (xgrammar asks for torch, transformers and triton), and
it does at run time what xgrammar does ahead. Measured on one core, a schema of seven fields: compiling takes
0.7-5 ms with the demo model's 4,096 tokens and 1.2 ms with 128,256 (xgrammar: 50-57 ms and 2.3-2.7
s, which a first answer would wait for); a mask takes 8-10 us and 21-36 us in the median (xgrammar: 2
us and 4-7 us), the dearest 0.1-4 ms and 2-12 ms (xgrammar: 0.03-0.1 ms and 4-7 ms).
"""

import asyncio
import json
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from penstock_core.errors import InvalidRequest, NotSupported, Overloaded
from penstock_engine.api import Constraint, EngineRequest, FinishReason
from penstock_engine.native.vocabulary import Cutter, Vocabulary

_MAX_CACHED = 64
_MAX_CHARS = 1 << 18
_MAX_COMPLAINT = 400
# Models tend to write white space for ever where a grammar lets them.
_WHITE_SPACE = "[ \\n\\t]{1,32}"


class GrammarMatcher:
    """A constraint as far as one sample has followed it. Owned by the step thread once made."""

    __slots__ = ("ended", "raw")

    def __init__(self, raw: LLMatcher) -> None:
        self.raw = raw
        self.ended: FinishReason | None = None
        """STOP once nothing may follow, CONSTRAINT once it cannot be followed any more."""

    def advance(self, token: int) -> None:
        """The sample has one token more."""
        if not self.raw.consume_token(token) or self.raw.is_error():
            self.ended = FinishReason.CONSTRAINT
        elif self.raw.is_stopped():
            self.ended = FinishReason.STOP

    def permitted(self, tokens: Sequence[int]) -> int:
        """How many of these tokens could follow, in order."""
        return self.raw.validate_tokens(list(tokens))


class Grammars:
    """Makes matchers. Closed by its owner."""

    def __init__(self, vocabulary: Vocabulary | None, vocab_size: int, max_waiting: int) -> None:
        self._vocabulary = vocabulary
        self._vocab_size = vocab_size
        self._max_waiting = max_waiting
        self._num_waiting = 0
        self._thread = ThreadPoolExecutor(1, "engine-grammars")
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[Constraint, LLMatcher] = OrderedDict()

    async def matchers(self, request: EngineRequest) -> tuple[GrammarMatcher, ...]:
        """One for each sample, behind the tokens that it emitted before a resume.

        Raises:
            InvalidRequest: the constraint is no good, or the emitted tokens do not follow it.
            NotSupported: the engine was given no vocabulary.
            Overloaded: too many requests wait for theirs.
        """
        constraint = request.constraint
        if constraint is None:
            return ()
        if self._vocabulary is None:
            raise NotSupported(f"constraint {constraint.kind}: this engine knows no vocabulary")
        if self._num_waiting >= self._max_waiting:
            raise Overloaded(f"{self._num_waiting} constraints wait to be compiled")
        self._num_waiting += 1
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, self._make, constraint, request)
        finally:
            self._num_waiting -= 1

    def close(self) -> None:
        """End the thread; what waits in it is dropped."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    # In the thread.

    def _make(self, constraint: Constraint, request: EngineRequest) -> tuple[GrammarMatcher, ...]:
        template = self._compiled.get(constraint)
        if template is None:
            template = self._compiled[constraint] = self._compile(constraint)
            if len(self._compiled) > _MAX_CACHED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(constraint)
        matchers = tuple(GrammarMatcher(template.deep_copy()) for _ in range(request.n))
        for matcher, emitted in zip(matchers, request.emitted, strict=False):
            _replay(matcher, emitted)
        return matchers

    def _compile(self, constraint: Constraint) -> LLMatcher:
        if self._tokenizer is None:
            self._tokenizer = self._tokenizer_of()
        limits = LLParserLimits(verbose_errors=False)
        matcher = LLMatcher(self._tokenizer, _grammar(constraint), log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()  # the first takes longest, and its copies share what it learnt
        if matcher.is_error():
            raise _refusal(constraint, matcher.get_error())
        return matcher

    def _tokenizer_of(self) -> LLTokenizer:
        assert self._vocabulary is not None, "a constraint is compiled without a vocabulary"
        tokens = self._vocabulary.padded(self._vocab_size)
        return LLTokenizer(TokenizerWrapper(_Tokens(tokens, self._vocabulary)))


class _Tokens:
    """The vocabulary as llguidance reads it, with one token more, which stands for "may end here".

    The model's own stop tokens are not told: which of them end a sample is its request's to say.
    """

    def __init__(self, tokens: list[bytes], vocabulary: Vocabulary) -> None:
        self.tokens = [*tokens, b""]
        self.eos_token_id = len(tokens)
        self.bos_token_id = None
        self.special_token_ids = [len(tokens)]
        self._cut = Cutter(vocabulary)

    def __call__(self, text: str | bytes) -> list[int]:
        return self._cut(text)


def _replay(matcher: GrammarMatcher, emitted: Sequence[int]) -> None:
    for position, token in enumerate(emitted):
        if matcher.ended is None:
            matcher.advance(token)
        if matcher.ended is FinishReason.CONSTRAINT:
            raise InvalidRequest(
                f"emitted token {position} does not follow the constraint", field="resume.choices"
            )


def _grammar(constraint: Constraint) -> str:
    """The constraint in llguidance's own notation; most mistakes are found only in compiling it."""
    if len(constraint.text) + sum(map(len, constraint.options)) > _MAX_CHARS:
        raise _refusal(constraint, f"it is longer than {_MAX_CHARS} characters")
    match constraint.kind:
        case "json_schema":
            return _json_grammar(constraint, constraint.text)
        case "json_object":
            return _json_grammar(constraint, '{"type": "object"}')
        case "regex":
            return LLMatcher.grammar_from_regex(constraint.text)
        case "grammar":
            return LLMatcher.grammar_from_lark(constraint.text)
        case "choice" if constraint.options:
            options = (json.dumps(option, ensure_ascii=False) for option in constraint.options)
            return LLMatcher.grammar_from_lark(f"start: {' | '.join(options)}")
        case "choice":
            raise _refusal(constraint, "there is nothing to choose from")
        case unknown:
            raise NotSupported(f"constraint {unknown!r} is not supported")


def _json_grammar(constraint: Constraint, schema: str) -> str:
    try:
        value = json.loads(schema)
        if not isinstance(value, dict):
            raise _refusal(constraint, "a schema is an object")
        return LLMatcher.grammar_from_json_schema(
            json.dumps(value), overrides={"whitespace_pattern": _WHITE_SPACE}
        )
    except (ValueError, RecursionError) as error:
        raise _refusal(constraint, f"it is no JSON: {error}") from error


def _refusal(constraint: Constraint, complaint: str) -> InvalidRequest:
    return InvalidRequest(
        f"constraint {constraint.kind}: {complaint.strip()[:_MAX_COMPLAINT]}",
        field=f"constraint.{constraint.kind}",
    )
