"""The kernel's C interface as Python sees it.

Owns the mirror of ``kernels/step.h``'s structs and the loading of the library. Knows addresses,
no tensors. A call releases the GIL for its whole length.
"""

import ctypes
from collections.abc import Callable
from ctypes import POINTER, Structure, c_char_p, c_float, c_int32, c_int64, c_uint32, c_void_p
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import ClassVar

from penstock_core.errors import NotSupported
from penstock_engine.native.fused.build import find_or_build


class Element(IntEnum):
    """Types of weights and, but for the last, of keys, values and embeddings."""

    FLOAT = 0
    BFLOAT = 1
    BYTE = 2


class CMatrix(Structure):
    """``penstock::Matrix``."""

    _fields_: ClassVar = [
        ("panels", c_void_p),
        ("scales", c_void_p),
        ("shifts", c_void_p),
        ("bias", c_void_p),
        ("columns", c_int64),
        ("depth", c_int64),
    ]


class CLayer(Structure):
    """``PenstockLayer``."""

    _fields_: ClassVar = [
        ("query_key_value", CMatrix),
        ("output", CMatrix),
        ("gate_up", CMatrix),
        ("down", CMatrix),
        ("attention_norm", c_void_p),
        ("query_norm", c_void_p),
        ("key_norm", c_void_p),
        ("mlp_norm", c_void_p),
    ]


class CLowRank(Structure):
    """``PenstockLowRank``."""

    _fields_: ClassVar = [
        ("down", c_void_p),
        ("up", c_void_p),
        ("halves", c_void_p),
        ("ranks", c_int32),
    ]


class CAdapter(Structure):
    """``PenstockAdapter``."""

    _fields_: ClassVar = [
        ("products", POINTER(CLowRank)),
        ("ranks", c_int32),
    ]


class CModel(Structure):
    """``PenstockModel``."""

    _fields_: ClassVar = [
        *(
            (name, c_int32)
            for name in (
                *("weight_type", "kv_type", "embedding_type"),
                *("layers", "hidden", "inner", "vocabulary", "heads", "kv_heads", "head_dim"),
                *("block", "threads"),
            )
        ),
        ("pages", c_int64),
        ("epsilon", c_float),
        ("embedding", c_void_p),
        ("cosines", c_void_p),
        ("sines", c_void_p),
        ("layer", POINTER(CLayer)),
        ("head", CMatrix),
        ("norm", c_void_p),
        ("kv", c_void_p),
        ("chores", c_void_p),
    ]


class CGrammar(Structure):
    """``PenstockGrammar``."""

    _fields_: ClassVar = [
        (name, c_void_p)
        for name in ("mask", "consume", "validate", "rollback", "stopped", "failed", "forced")
    ]


class CFollower(Structure):
    """``PenstockFollower``."""

    _fields_: ClassVar = [
        ("matcher", c_void_p),
        ("stops", c_void_p),
        *(
            (name, c_int32)
            for name in ("num_stops", "min_tokens", "followed", "vocabulary", "foresight")
        ),
    ]


class CStep(Structure):
    """``PenstockStep``."""

    _fields_: ClassVar = [
        ("rows", c_int32),
        ("chunks", c_int32),
        ("logits", c_int32),
        ("hidden", c_int32),
        ("tokens", c_void_p),
        ("chunk_rows", c_void_p),
        ("positions", c_void_p),
        ("tables", c_void_p),
        ("table_starts", c_void_p),
        ("logit_rows", c_void_p),
        ("out", c_void_p),
        ("adapters", c_void_p),
    ]


@dataclass(frozen=True, slots=True)
class Following:
    """What follows constraints; see ``kernels/follow.h``.

    Attributes:
        chores: who does what followers leave to do, of grammars behind this interface.
        end_chores: forget them, once nobody else knows of them.
        create: a follower.
        end: end it; how many tokens it followed, or negative while somebody is at its chore. This, ``hear``,
            ``foretell`` and ``permitted`` keep the GIL and never wait long.
        heard: where it says what came of its last token; see ``Follower::heard``.
        hear: what came of a token, told now if it was not with its draw.
        foretell: the tokens that one foresees.
        permitted: how many of some tokens could follow.
        wait: for who is at its chore.
        ask: for rows of several, behind drafts too.
        answer: copies of rows.
    """

    chores: Callable[[CGrammar], int]
    end_chores: Callable[[int], None]
    create: Callable[[int, CFollower], int]
    end: Callable[[int], int]
    heard: Callable[[int], int]
    hear: Callable[[int, int], int]
    foretell: Callable[[int, int], None]
    permitted: Callable[[int, int, int], int]
    wait: Callable[[int], None]
    ask: Callable[[int, int, int, int], None]
    answer: Callable[[int, int | None, int, int, int], None]


@dataclass(frozen=True, slots=True)
class Library:
    """A loaded kernel.

    Attributes:
        instructions: what it was compiled to use, such as ``avx512 bf16 vnni``.
        groups: consecutive weights of a column that stand together in a panel, by type.
        create: a model's state and threads, from its description; None if it cannot serve it.
        step: computes one step.
        draw: a token for each row of logits; see ``penstock_draw``.
        draw_followed: the same under what followers allow; see ``penstock_draw_followed``.
        forbid: sets logits of forbidden tokens; see ``penstock_forbid``.
        destroy: ends the threads.
        following: constraints beside the steps.
    """

    instructions: str
    groups: tuple[int, ...]
    create: Callable[[CModel], int | None]
    step: Callable[[int, CStep], None]
    draw: Callable[[int, int, int, int, int, int | None, int | None, int, int], None]
    draw_followed: Callable[[int, int, int, int, int, int, int | None, int, int], int]
    forbid: Callable[[int, int, int, int, int, int], None]
    destroy: Callable[[int], None]
    following: Following


def open_library() -> Library:
    """Load the kernel, compiling it if that was not done.

    Raises:
        NotSupported: it cannot be compiled or loaded here; the message says why.
    """
    return load(find_or_build())


def load(path: Path) -> Library:
    """Load a library. Raises NotSupported if it is none or another version's."""
    try:
        found = ctypes.CDLL(str(path))
    except OSError as error:
        raise NotSupported(f"the kernel cannot be loaded: {error}") from error
    found.penstock_layout.restype = c_int64
    if found.penstock_layout() != ctypes.sizeof(CModel) * 1000 + ctypes.sizeof(CStep):
        raise NotSupported(f"{path} has another interface")
    found.penstock_instructions.restype = c_char_p
    found.penstock_create.restype = c_void_p
    found.penstock_create.argtypes = [POINTER(CModel)]
    found.penstock_step.restype = None
    found.penstock_step.argtypes = [c_void_p, POINTER(CStep)]
    found.penstock_draw.restype = None
    found.penstock_draw.argtypes = [
        *(c_void_p, c_int32, c_int64, c_void_p, c_void_p),
        *(c_void_p, c_void_p, c_int64, c_void_p),
    ]
    found.penstock_draw_followed.argtypes = [
        *(c_void_p, c_int32, c_int64, c_void_p, c_void_p),
        *(c_void_p, c_void_p, c_void_p, c_void_p),
    ]
    found.penstock_forbid.restype = None
    found.penstock_forbid.argtypes = [c_void_p, c_int64, c_void_p, c_int32, c_void_p, c_int64]
    found.penstock_destroy.restype = None
    found.penstock_destroy.argtypes = [c_void_p]
    return Library(
        instructions=found.penstock_instructions().decode(),
        groups=tuple(found.penstock_group(kind) for kind in Element),
        create=found.penstock_create,
        step=found.penstock_step,
        draw=found.penstock_draw,
        draw_followed=found.penstock_draw_followed,
        forbid=found.penstock_forbid,
        destroy=found.penstock_destroy,
        following=_following(found, ctypes.PyDLL(str(path))),
    )


def _following(found: ctypes.CDLL, quick: ctypes.PyDLL) -> Following:
    """``quick`` calls without giving the GIL away, and so must not wait for who may want it."""
    found.penstock_chores.restype = c_void_p
    found.penstock_chores.argtypes = [POINTER(CGrammar)]
    found.penstock_follower.restype = c_void_p
    found.penstock_follower.argtypes = [c_void_p, POINTER(CFollower)]
    quick.penstock_end_follower.argtypes = [c_void_p]
    found.penstock_heard.restype, found.penstock_heard.argtypes = c_void_p, [c_void_p]
    quick.penstock_hear.restype, quick.penstock_hear.argtypes = c_int64, [c_void_p, c_uint32]
    quick.penstock_foretell.restype, quick.penstock_foretell.argtypes = None, [c_void_p] * 2
    quick.penstock_permitted.argtypes = [c_void_p, c_void_p, c_int32]
    found.penstock_ask.restype = found.penstock_answer.restype = None
    found.penstock_ask.argtypes = [c_void_p, c_void_p, c_void_p, c_int32]
    found.penstock_answer.argtypes = [c_void_p, c_void_p, c_int32, c_void_p, c_void_p]
    for nothing in (found.penstock_end_chores, found.penstock_await):
        nothing.restype, nothing.argtypes = None, [c_void_p]
    return Following(
        chores=found.penstock_chores,
        end_chores=found.penstock_end_chores,
        create=found.penstock_follower,
        end=quick.penstock_end_follower,
        heard=found.penstock_heard,
        hear=quick.penstock_hear,
        foretell=quick.penstock_foretell,
        permitted=quick.penstock_permitted,
        wait=found.penstock_await,
        ask=found.penstock_ask,
        answer=found.penstock_answer,
    )
