"""The block hash chain: the one name that router and workers give to a cached prefix.

``h0 = xxh3_64(model revision | tokenizer digest | adapter | salt)`` and
``h_i = xxh3_64(tokens_i, seed=h_(i-1))`` over full blocks of little-endian uint32 token ids.
The chain is advisory: a collision costs time, never correctness, since engines compare tokens.
``tests/contract`` holds golden vectors; changing the formula breaks every mixed fleet.

Source: xxHash, https://github.com/Cyan4973/xxHash (XXH3_64bits with seed).
"""

import hashlib
import hmac
import struct
from array import array
from collections.abc import Iterable, Sequence

import xxhash

TOKEN_BYTES = 4
HASH_BYTES = 8
_CUT = 64


def chain_start(
    model_revision: str, tokenizer_digest: str, adapter: str = "", cache_salt: int = 0
) -> int:
    """``h0``, the parent of every first block. Fields are length-prefixed, so none can imitate another."""
    digest = xxhash.xxh3_64()
    for field in (model_revision, tokenizer_digest, adapter):
        raw = field.encode()
        digest.update(len(raw).to_bytes(4, "little") + raw)
    digest.update(cache_salt.to_bytes(8, "little"))
    return digest.intdigest()


def chain(tokens: bytes, start: int, block_tokens: int, max_blocks: int | None = None) -> list[int]:
    """Hashes of the full blocks of ``tokens`` (packed uint32), chained from ``start``."""
    size = block_tokens * TOKEN_BYTES
    count = len(tokens) // size
    if max_blocks is not None:
        count = min(count, max_blocks)
    digest, parent = xxhash.xxh3_64_intdigest, start
    # Cut in C, many at a time: a slice for each block costs as much as its hash.
    whole, block, view = count // _CUT * _CUT, f"{size}s", memoryview(tokens)
    groups = struct.iter_unpack(block * _CUT, view[: whole * size])
    rest = struct.unpack(block * (count - whole), view[whole * size : count * size])
    return [parent := digest(each, parent) for group in (*groups, rest) for each in group]


def reusable_blocks(num_tokens: int, block_tokens: int) -> int:
    """Full blocks of a prompt that a cache may serve: the last token is always computed, for its logits."""
    return max(num_tokens - 1, 0) // block_tokens


def cache_salt(secret: bytes, tenant: str) -> int:
    """Salt that keeps one tenant's blocks apart from every other's: HMAC(secret, tenant), 64 bits."""
    mac = hmac.new(secret, tenant.encode(), hashlib.sha256).digest()
    return int.from_bytes(mac[:8], "little")


def pack_tokens(token_ids: Sequence[int]) -> bytes:
    """Token ids as the wire's little-endian uint32. Raises OverflowError outside [0, 2**32)."""
    packed = array("I", token_ids)
    if packed.itemsize != TOKEN_BYTES:  # pragma: no cover - no platform we run on
        return b"".join(t.to_bytes(TOKEN_BYTES, "little") for t in token_ids)
    return packed.tobytes()


def unpack_tokens(packed: bytes) -> list[int]:
    """Token ids from packed bytes. Raises ValueError if the length is no multiple of 4."""
    if len(packed) % TOKEN_BYTES:
        raise ValueError(f"{len(packed)} bytes are no whole number of uint32 token ids")
    ids = array("I")
    ids.frombytes(packed)
    return ids.tolist()


def pack_hashes(hashes: Iterable[int]) -> bytes:
    """Block hashes as the wire's little-endian uint64."""
    return array("Q", hashes).tobytes()


def unpack_hashes(packed: bytes) -> list[int]:
    """Block hashes from packed bytes. Raises ValueError if the length is no multiple of 8."""
    if len(packed) % HASH_BYTES:
        raise ValueError(f"{len(packed)} bytes are no whole number of uint64 hashes")
    hashes = array("Q")
    hashes.frombytes(packed)
    return hashes.tolist()
