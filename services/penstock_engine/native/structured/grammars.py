"""Constraints of requests, compiled: which tokens may follow in which state.

Owns the compiler and its bounded cache, which learns from the samples that used it, and what one sample has of a constraint (``GrammarMatcher``;
beside the fused kernel ``fused.following`` has its own).
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
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Generic, Protocol, TypeVar

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from penstock_core.errors import InvalidRequest, NotSupported, Overloaded
from penstock_engine.api import Constraint, EngineRequest, FinishReason
from penstock_engine.native.scheduling.request import Matcher
from penstock_engine.native.structured.vocabulary import Cutter, Vocabulary

_MAX_CACHED = 64
_MAX_DONE = 8
_MAX_LEARNT = 1024
"""Tokens that a template's lexer learns from: most schemas are known by then, and what is learnt takes memory in
each copy and counts for the library's limits."""
_MAX_CHARS = 1 << 18
_MAX_COMPLAINT = 400
# Models tend to write white space for ever where a grammar lets them.
_WHITE_SPACE = "[ \\n\\t]{1,32}"


class GrammarMatcher:
    """A constraint as far as one sample has followed it. Owned by the step thread once made."""

    __slots__ = ("_followed", "_num_tokens", "ended", "raw")

    def __init__(self, raw: LLMatcher, followed: "Followed") -> None:
        self.raw = raw
        self._followed = followed
        self._num_tokens = followed.num_tokens
        self.ended = followed.ended
        """STOP once nothing may follow, CONSTRAINT once it cannot be followed any more."""

    def __del__(self) -> None:
        """Nobody asks any more."""
        self._followed.done(self._num_tokens)

    def advance(self, token: int) -> None:
        """The sample has one token more."""
        self._num_tokens += 1
        self.ended = _follow(self.raw, token)

    def permitted(self, tokens: Sequence[int]) -> int:
        """How many of these tokens could follow, in order."""
        return self.raw.validate_tokens(list(tokens))

    def foreseen(self, limit: int) -> Sequence[int]:
        """See ``Matcher.foreseen``."""
        if self.ended or self._followed.request.speculation is False:
            return ()
        return self.raw.compute_ff_tokens()[:limit]


class Raw(Protocol):
    """A grammar of llguidance's as far as some tokens have followed it."""

    def compute_bitmask(self) -> object:
        """Find out what may follow."""
        ...

    def consume_token(self, token: int, /) -> bool:
        """Follow a token; False if it is not allowed."""
        ...

    def is_stopped(self) -> bool:
        """Whether nothing may follow."""
        ...

    def is_error(self) -> bool:
        """Whether it can be followed no more."""
        ...

    def get_error(self) -> str:
        """Why not."""
        ...


R = TypeVar("R", bound=Raw)


@dataclass(frozen=True, slots=True)
class Followed:
    """How far a request's sample is when its matcher is made.

    ``done`` is to be told once that nobody uses the grammar any more, and how many tokens it followed.
    """

    request: EngineRequest
    num_tokens: int
    ended: FinishReason | None
    done: Callable[[int], None]


class Compiler(Protocol[R]):
    """Makes matchers for one vocabulary, by one of llguidance's interfaces."""

    def compile(self, grammar: str) -> R:
        """At the beginning of a grammar in llguidance's own notation; it may be in error."""
        ...

    def copy(self, raw: R) -> R:
        """One that goes on from there by itself."""
        ...

    def reset(self, raw: R) -> bool:
        """Back to the beginning, knowing what was learnt on the way; False if that is not possible."""
        ...

    def matcher(self, raw: R, followed: Followed) -> Matcher:
        """What a sample follows."""
        ...


@dataclass(frozen=True, slots=True)
class _Taught(Generic[R]):
    """A grammar whose lexer went through so many tokens."""

    raw: R
    num_tokens: int = 0


class Grammars(Generic[R]):
    """Makes matchers. Closed by its owner."""

    def __init__(
        self,
        vocabulary: Vocabulary | None,
        vocab_size: int,
        max_waiting: int,
        make_compiler: Callable[[Sequence[bytes], Cutter], Compiler[R]],
    ) -> None:
        self._make_compiler = make_compiler
        self._vocabulary = vocabulary
        self._vocab_size = vocab_size
        self._max_waiting = max_waiting
        self._num_waiting = 0
        self._thread = ThreadPoolExecutor(1, "engine-grammars")
        self._compiler: Compiler[R] | None = None
        self._compiled: OrderedDict[Constraint, _Taught[R]] = OrderedDict()
        self._done: deque[tuple[Constraint, _Taught[R]]] = deque(maxlen=_MAX_DONE)

    async def matchers(self, request: EngineRequest) -> tuple[Matcher, ...]:
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

    def _make(self, constraint: Constraint, request: EngineRequest) -> tuple[Matcher, ...]:
        if self._compiler is None:
            self._compiler = self._new_compiler()
        self._learn(self._compiler)
        template = self._compiled.get(constraint)
        if template is None:
            template = _Taught(_compile(self._compiler, constraint))
            self._compiled[constraint] = template
            if len(self._compiled) > _MAX_CACHED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(constraint)
        made = []
        for index in range(request.n):
            raw = self._compiler.copy(template.raw)
            emitted = request.emitted[index] if index < len(request.emitted) else ()
            done = partial(self._keep, constraint, raw, template.num_tokens)
            followed = Followed(request, len(emitted), _replay(raw, emitted), done)
            made.append(self._compiler.matcher(raw, followed))
        return tuple(made)

    def _learn(self, compiler: Compiler[R]) -> None:
        """Copy those from now on that went furthest: a lexer finds out its states as it comes to them."""
        while self._done:
            constraint, taught = self._done.popleft()
            known = self._compiled.get(constraint)
            if (
                known is not None
                and known.num_tokens < taught.num_tokens
                and compiler.reset(taught.raw)
            ):
                self._compiled[constraint] = taught

    # In any thread.

    def _keep(self, constraint: Constraint, raw: R, learnt: int, num_tokens: int) -> None:
        if learnt < _MAX_LEARNT:
            self._done.append((constraint, _Taught(raw, learnt + num_tokens)))

    def _new_compiler(self) -> Compiler[R]:
        assert self._vocabulary is not None, "a constraint is compiled without a vocabulary"
        tokens = self._vocabulary.padded(self._vocab_size)
        return self._make_compiler(tokens, Cutter(self._vocabulary))


class LibraryCompiler:
    """llguidance by its Python interface."""

    def __init__(self, tokens: Sequence[bytes], cut: Cutter) -> None:
        self._tokenizer = LLTokenizer(TokenizerWrapper(_Tokens(tokens, cut)))

    def compile(self, grammar: str) -> LLMatcher:
        """See ``Compiler.compile``."""
        limits = LLParserLimits(verbose_errors=False)
        return LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)

    def copy(self, raw: LLMatcher) -> LLMatcher:
        """See ``Compiler.copy``."""
        return raw.deep_copy()

    def reset(self, raw: LLMatcher) -> bool:
        """See ``Compiler.reset``."""
        return raw.reset() and not raw.is_error()

    def matcher(self, raw: LLMatcher, followed: Followed) -> GrammarMatcher:
        """See ``Compiler.matcher``."""
        return GrammarMatcher(raw, followed)


class _Tokens:
    """The vocabulary as llguidance reads it, with one token more, which stands for "may end here".

    The model's own stop tokens are not told: which of them end a sample is its request's to say.
    """

    def __init__(self, tokens: Sequence[bytes], cut: Cutter) -> None:
        self.tokens = [*tokens, b""]
        self.eos_token_id = len(tokens)
        self.bos_token_id = None
        self.special_token_ids = [len(tokens)]
        self._cut = cut

    def __call__(self, text: str | bytes) -> list[int]:
        return self._cut(text)


def _compile(compiler: Compiler[R], constraint: Constraint) -> R:
    raw = compiler.compile(_grammar(constraint))
    if not raw.is_error():
        raw.compute_bitmask()  # the first takes longest, and its copies share what it learnt
    if raw.is_error():
        raise _refusal(constraint, raw.get_error())
    return raw


def _follow(raw: Raw, token: int) -> FinishReason | None:
    """Follow a token; why nothing may follow it, if nothing may."""
    if not raw.consume_token(token) or raw.is_error():
        return FinishReason.CONSTRAINT
    return FinishReason.STOP if raw.is_stopped() else None


def _replay(raw: Raw, emitted: Sequence[int]) -> FinishReason | None:
    ended = None
    for position, token in enumerate(emitted):
        if ended is None:
            ended = _follow(raw, token)
        if ended is FinishReason.CONSTRAINT:
            raise InvalidRequest(
                f"emitted token {position} does not follow the constraint", field="resume.choices"
            )
    return ended


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
