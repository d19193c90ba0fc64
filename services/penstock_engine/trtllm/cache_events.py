"""TensorRT-LLM's KV cache events, from their JSON. Pure.

Owns the names of their fields. What is optional or differs between versions is read with care:
unknown kinds are kept as such, so that their ids still count.
"""

from dataclasses import dataclass

HOST_LEVEL = 1


@dataclass(frozen=True, slots=True)
class StoredBlock:
    """A block that can be reused now. ``key`` is the engine's own hash, unsigned; level 1 is host memory.

    ``tokens`` may be fewer than a block holds. ``is_plain``: token ids tell all of its content.
    """

    key: int
    tokens: tuple[int, ...]
    level: int
    is_plain: bool = True


@dataclass(frozen=True, slots=True)
class Created:
    """A pool of blocks was made, by memory level."""

    blocks_per_level: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Stored:
    """A run of blocks, each the child of the one before; the first hangs on ``parent`` (None: a root)."""

    parent: int | None
    blocks: tuple[StoredBlock, ...]


@dataclass(frozen=True, slots=True)
class Removed:
    """Blocks that can be reused no more."""

    keys: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Updated:
    """A block changed its level, or something that we do not follow (None)."""

    key: int
    level: int | None


@dataclass(frozen=True, slots=True)
class Unknown:
    """An event of a kind that we do not know."""

    kind: str


Change = Created | Stored | Removed | Updated | Unknown


@dataclass(frozen=True, slots=True)
class CacheEvent:
    """One event. ``rank`` is the attention-data-parallel rank, None without such ranks."""

    event_id: int
    window: int
    rank: int | None
    change: Change


def parse_events(item: object) -> list[CacheEvent]:
    """Events of one item of the engine's stream: one event, or a list of them.

    Raises:
        ValueError: it is something else.
    """
    items = item if isinstance(item, list) else [item]
    return [_event(raw) for raw in items if raw is not None]


def _event(raw: object) -> CacheEvent:
    match raw:
        case {"event_id": int(event_id), "data": dict(data), **rest}:
            window, rank = rest.get("window_size"), rest.get("attention_dp_rank")
            return CacheEvent(
                event_id,
                window if isinstance(window, int) else 0,
                rank if isinstance(rank, int) else None,
                _change(data),
            )
    raise ValueError("the engine told a cache event without event_id or data")


def _change(data: dict[str, object]) -> Change:
    match data:
        case {"type": "created", "num_blocks_per_cache_level": list(levels)}:
            return Created(tuple(levels))
        case {"type": "stored", "blocks": list(blocks)}:
            parent = data.get("parent_hash")
            above = parent if isinstance(parent, int) else None
            return Stored(above, tuple(map(_block, blocks)))
        case {"type": "removed", "block_hashes": list(keys)}:
            return Removed(tuple(keys))
        case {"type": "updated", "block_hash": int(key)}:
            return Updated(key, _new_level(data.get("cache_level")))
    return Unknown(str(data.get("type")))


def _block(raw: dict[str, object]) -> StoredBlock:
    tokens = raw.get("tokens")
    units = tokens if isinstance(tokens, list) else []
    key, level = raw.get("block_hash"), raw.get("cache_level")
    if not isinstance(key, int):
        raise ValueError("the engine stored a block without block_hash")  # noqa: TRY004 - of its JSON
    return StoredBlock(
        key,
        tuple(unit["token_id"] for unit in units),
        level if isinstance(level, int) else 0,
        # Images and prompt tuning put more than the token ids into a block's identity.
        not raw.get("mm_keys") and not any(unit.get("token_extra_id") for unit in units),
    )


def _new_level(diff: object) -> int | None:
    """The serializer writes null where nothing changed, and has crashed at it."""
    value = diff.get("new_value") if isinstance(diff, dict) else None
    return value if isinstance(value, int) else None
