"""llguidance by its C interface: matchers that threads without Python's lock can ask.

Owns the mirror of ``llguidance.h``'s structs and the lives of its tokenizer and matchers. The wheel's
extension exports that interface beside its Python one, and both give the same masks; the C one is
used where it is known to be as mirrored here, and only for what ``fused.following`` does with it.
Knows no requests.
"""

import ctypes
import weakref
from collections.abc import Callable, Sequence
from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    c_bool,
    c_char_p,
    c_int32,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
)
from typing import ClassVar

import llguidance._lib
import numpy as np

_KNOWN = "llguidance@1.9."
_ERROR_BYTES = 1024

Cut = Callable[[bytes], Sequence[int]]
"""How the model's tokenizer cuts bytes."""

_Tokenize = CFUNCTYPE(c_size_t, c_void_p, c_void_p, c_size_t, POINTER(c_uint32), c_size_t)


class _TokenizerInit(Structure):
    """``LlgTokenizerInitV2``; the library reads as much as ``struct_size`` says."""

    _fields_: ClassVar = [
        ("struct_size", c_size_t),
        ("vocab_size", c_uint32),
        ("tok_eos", c_uint32),
        ("token_lens", c_void_p),
        ("token_bytes", c_char_p),
        ("tokenizer_json", c_char_p),
        ("tokenize_assumes_string", c_bool),
        ("tokenize_fn", _Tokenize),
        ("use_approximate_greedy_tokenize_fn", c_bool),
        ("tokenize_user_data", c_void_p),
        ("slices", c_void_p),
    ]


class _Limits(Structure):
    """``LlgParserLimits``."""

    _fields_: ClassVar = [
        ("max_items_in_row", c_size_t),
        ("initial_lexer_fuel", c_uint64),
        ("step_lexer_fuel", c_uint64),
        ("step_max_items", c_size_t),
        ("max_lexer_states", c_size_t),
        ("max_grammar_size", c_size_t),
        ("precompute_large_lexemes", c_bool),
        ("verbose_errors", c_bool),
    ]


class _ConstraintInit(Structure):
    """``LlgConstraintInit``."""

    _fields_: ClassVar = [
        ("tokenizer", c_void_p),
        ("log_buffer_level", c_uint32),
        ("log_stderr_level", c_uint32),
        ("ff_tokens_ok", c_bool),
        ("backtrack_ok", c_bool),
        ("limits", _Limits),
    ]


_SIGNATURES = {
    "llg_new_tokenizer_v2": (c_void_p, POINTER(_TokenizerInit), c_char_p, c_size_t),
    "llg_free_tokenizer": (None, c_void_p),
    "llg_constraint_init_set_defaults": (None, POINTER(_ConstraintInit), c_void_p),
    "llg_new_matcher": (c_void_p, POINTER(_ConstraintInit), c_char_p, c_char_p),
    "llg_clone_matcher": (c_void_p, c_void_p),
    "llg_free_matcher": (None, c_void_p),
    "llg_matcher_get_error": (c_char_p, c_void_p),
    "llg_matcher_compute_mask": (c_int32, c_void_p),
    "llg_matcher_compute_mask_into": (c_int32, c_void_p, c_void_p, c_size_t),
    "llg_matcher_consume_token": (c_int32, c_void_p, c_uint32),
    "llg_matcher_validate_tokens": (c_int32, c_void_p, c_void_p, c_size_t),
    "llg_matcher_reset": (c_int32, c_void_p),
    "llg_matcher_rollback": (c_int32, c_void_p, c_size_t),
    "llg_matcher_compute_ff_tokens": (c_int32, c_void_p, c_void_p, c_size_t),
    "llg_matcher_is_stopped": (c_bool, c_void_p),
    "llg_matcher_is_error": (c_bool, c_void_p),
}


class GrammarLibrary:
    """The interface, loaded."""

    def __init__(self, functions: ctypes.CDLL) -> None:
        self.functions = functions

    def address(self, name: str) -> int:
        """Of a function, for others than Python to call."""
        found = ctypes.cast(getattr(self.functions, name), c_void_p).value
        assert found is not None, f"{name} was found and has no address"
        return found


def open_grammar_library() -> GrammarLibrary | None:
    """What the wheel exports; None if it exports less, or is of a version that may differ."""
    try:
        found = ctypes.CDLL(llguidance._lib.__file__)
        found.llg_get_version.restype = c_char_p
        if not found.llg_get_version().decode().startswith(_KNOWN):
            return None
        for name, (result, *arguments) in _SIGNATURES.items():
            function = getattr(found, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError):
        return None
    return GrammarLibrary(found)


class CTokenizer:
    """A vocabulary as the library reads it, with one token more, which stands for "may end here"."""

    def __init__(self, library: GrammarLibrary, tokens: Sequence[bytes], cut: Cut) -> None:
        """Raises ValueError if the library refuses it."""
        self.library = library
        # A byte that no text has marks what no grammar can ask for.
        every = [*tokens, b"\xff"]
        lengths = np.array([len(token) for token in every], dtype=np.uint32)
        self._tokenize = _Tokenize(_tokenize_with(cut))
        init = _TokenizerInit(
            struct_size=ctypes.sizeof(_TokenizerInit),
            vocab_size=len(every),
            tok_eos=len(tokens),
            token_lens=lengths.ctypes.data,
            token_bytes=b"".join(every),
            tokenize_fn=self._tokenize,
        )
        complaint = ctypes.create_string_buffer(_ERROR_BYTES)
        functions = library.functions
        address = functions.llg_new_tokenizer_v2(init, complaint, _ERROR_BYTES)
        if address is None:
            raise ValueError(complaint.value.decode(errors="replace"))
        self._init = _ConstraintInit()
        functions.llg_constraint_init_set_defaults(self._init, address)
        self._init.log_stderr_level = 0
        self._init.limits.verbose_errors = False
        weakref.finalize(self, functions.llg_free_tokenizer, address)

    def matcher(self, grammar: str) -> "CMatcher":
        """At a grammar's beginning, in llguidance's own notation; it may be in error."""
        make = self.library.functions.llg_new_matcher
        return CMatcher(self, make(self._init, b"llguidance", grammar.encode()))


class CMatcher:
    """A grammar as far as some tokens have followed it; names are those of ``LLMatcher``."""

    def __init__(self, tokenizer: CTokenizer, address: int) -> None:
        self.address = address
        self._tokenizer = tokenizer
        self._functions = tokenizer.library.functions
        weakref.finalize(self, self._functions.llg_free_matcher, address)

    @property
    def library(self) -> GrammarLibrary:
        """Whose matcher it is."""
        return self._tokenizer.library

    def deep_copy(self) -> "CMatcher":
        """One that goes on from here by itself."""
        return CMatcher(self._tokenizer, self._functions.llg_clone_matcher(self.address))

    def compute_bitmask(self) -> None:
        """Find out what may follow, for what that teaches the lexer."""
        self._functions.llg_matcher_compute_mask(self.address)

    def consume_token(self, token: int) -> bool:
        """Follow a token; False if it is not allowed, which is an error for good."""
        consumed: int = self._functions.llg_matcher_consume_token(self.address, token)
        return consumed == 0

    def reset(self) -> bool:
        """Back to the beginning; False if it is in error."""
        done: int = self._functions.llg_matcher_reset(self.address)
        return done == 0 and not self.is_error()

    def is_stopped(self) -> bool:
        """Whether nothing may follow."""
        stopped: bool = self._functions.llg_matcher_is_stopped(self.address)
        return stopped

    def is_error(self) -> bool:
        """Whether it was broken, or too much for the library's limits."""
        failed: bool = self._functions.llg_matcher_is_error(self.address)
        return failed

    def get_error(self) -> str:
        """What is wrong, if something is."""
        complaint = self._functions.llg_matcher_get_error(self.address)
        return "" if complaint is None else complaint.decode(errors="replace")


def _tokenize_with(cut: Cut) -> Callable[[object, int, int, "ctypes._Pointer[c_uint32]", int], int]:
    def tokenize(
        _: object, text: int, size: int, to: "ctypes._Pointer[c_uint32]", room: int
    ) -> int:
        tokens = cut(ctypes.string_at(text, size))
        for index, token in enumerate(tokens[:room]):
            to[index] = token
        return len(tokens)

    return tokenize
