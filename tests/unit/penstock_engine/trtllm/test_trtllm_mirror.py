"""The mirror of the engine's cache: from its events to our blocks."""

from collections.abc import Sequence
from itertools import count

import pytest

from penstock_core.blocks import chain, pack_tokens
from penstock_engine.api import KvEvent, KvMoved, KvRemoved, KvStored
from penstock_engine.trtllm.cache_events import parse_events
from penstock_engine.trtllm.mirror import KvMirror, Tainted
from penstock_engine.trtllm.roots import Roots

BLOCK = 4
Json = dict[str, object]


class Source:
    """Writes events as the engine does, with hashes of its own."""

    def __init__(self) -> None:
        self.ids = count()
        self.roots = Roots(BLOCK)
        self.mirror = KvMirror(BLOCK, self.roots)

    def event(self, data: Json, *, window: int = 4096, rank: int | None = None) -> list[KvEvent]:
        raw: Json = {"event_id": next(self.ids), "data": data, "window_size": window}
        if rank is not None:
            raw["attention_dp_rank"] = rank
        return [change for e in parse_events(raw) for change in self.mirror.apply(e)]

    def stored(
        self, first_key: int, tokens: Sequence[int], parent: int | None = None, **where: int
    ) -> list[KvEvent]:
        """A run of blocks with keys from ``first_key`` on."""
        parts = [tokens[at : at + BLOCK] for at in range(0, len(tokens), BLOCK)]
        level = where.pop("level", 0)
        blocks = [block(first_key + i, part, level) for i, part in enumerate(parts)]
        data: Json = {"type": "stored", "parent_hash": parent, "blocks": blocks}
        return self.event(data, **where)

    def removed(self, *keys: int, **where: int) -> list[KvEvent]:
        return self.event({"type": "removed", "block_hashes": list(keys)}, **where)

    def moved(self, key: int, level: int) -> list[KvEvent]:
        diff = {"type": "event_diff", "new_value": level, "old_value": 1 - level}
        return self.event({"type": "updated", "block_hash": key, "cache_level": diff})


def block(key: int, tokens: Sequence[int], level: int) -> Json:
    units = [{"type": "unique_token", "token_id": t, "token_extra_id": 0} for t in tokens]
    return {"type": "stored_block", "block_hash": key, "tokens": units, "cache_level": level}


def names(tokens: Sequence[int], start: int) -> tuple[int, ...]:
    return tuple(chain(pack_tokens(tokens), start, BLOCK))


@pytest.fixture
def source() -> Source:
    return Source()


TOKENS = list(range(10, 22))


def test_a_stored_run_hangs_on_the_chain_of_the_request_that_asked(source: Source) -> None:
    source.roots.expect(lambda: TOKENS, 77)

    assert source.stored(1, TOKENS) == [KvStored(77, names(TOKENS, 77))]
    assert source.mirror.depth(names(TOKENS, 77)) == 3


def test_children_follow_their_parent(source: Source) -> None:
    source.roots.expect(lambda: TOKENS, 77)
    source.stored(1, TOKENS[:8])

    assert source.stored(3, TOKENS[8:], parent=2) == [
        KvStored(names(TOKENS, 77)[1], names(TOKENS, 77)[2:])
    ]


def test_a_partial_block_is_swallowed_and_so_is_its_removal(source: Source) -> None:
    source.roots.expect(lambda: TOKENS, 77)
    whole = names(TOKENS[:8], 77)

    assert source.stored(1, TOKENS[:10]) == [KvStored(77, whole)]
    assert source.mirror.num_swallowed == 1
    assert source.removed(3) == []
    assert source.removed(2, 1) == [KvRemoved((whole[1], whole[0]))]
    assert source.mirror.num_swallowed == len(source.mirror) == 0


def test_what_nobody_asked_for_is_swallowed_with_its_children(source: Source) -> None:
    assert source.stored(1, TOKENS[:4]) == []
    assert source.stored(2, TOKENS[4:], parent=1) == []
    assert source.stored(8, TOKENS, parent=999) == []
    assert source.removed(3, 2, 1) == []


def test_tenants_with_the_same_tokens_keep_their_own_chains(source: Source) -> None:
    source.roots.expect(lambda: TOKENS, 1)
    source.roots.expect(lambda: TOKENS, 2)

    first, second = source.stored(10, TOKENS), source.stored(20, TOKENS)

    assert first == [KvStored(1, names(TOKENS, 1))]
    assert second == [KvStored(2, names(TOKENS, 2))]
    assert source.removed(12) == [KvRemoved(names(TOKENS, 1)[2:])]


def test_who_found_the_block_cached_is_not_its_owner(source: Source) -> None:
    source.roots.expect(lambda: TOKENS, 1).settle()
    source.roots.expect(lambda: TOKENS, 2)

    assert source.stored(1, TOKENS) == [KvStored(2, names(TOKENS, 2))]


def test_a_prompt_shorter_than_a_block_is_known_by_its_output(source: Source) -> None:
    said = [10]
    source.roots.expect(lambda: [9, 9], 1)
    source.roots.expect(lambda: said, 2)
    said += [11, 12]

    assert source.stored(1, TOKENS[:4]) == [KvStored(2, names(TOKENS[:4], 2))]


def test_an_ended_request_is_expected_a_little_longer(source: Source) -> None:
    source.roots.expect(lambda: TOKENS, 1).end(100.0)

    source.roots.sweep(104.0)
    assert len(source.roots) == 1
    source.roots.sweep(106.0)
    assert len(source.roots) == 0
    assert source.stored(1, TOKENS) == []


def test_moves_between_memories_are_told(source: Source) -> None:
    source.roots.expect(lambda: TOKENS, 1)
    source.stored(1, TOKENS[:4])
    key = names(TOKENS[:4], 1)

    assert source.moved(1, 1) == [KvMoved(key, "device", "host")]
    assert source.moved(1, 1) == []
    assert source.moved(1, 0) == [KvMoved(key, "host", "device")]
    assert source.moved(99, 1) == []


def test_a_block_may_be_stored_in_host_memory(source: Source) -> None:
    source.roots.expect(lambda: TOKENS, 1)
    key = names(TOKENS[:4], 1)

    assert source.stored(1, TOKENS[:4], level=1) == [
        KvStored(1, key),
        KvMoved(key, "device", "host"),
    ]


def test_an_update_without_a_new_level_changes_nothing(source: Source) -> None:
    for diff in (None, {"type": "event_diff", "new_value": None}):
        assert source.event({"type": "updated", "block_hash": 1, "cache_level": diff}) == []


def test_only_the_largest_window_counts(source: Source) -> None:
    created: Json = {"type": "created", "num_blocks_per_cache_level": [10, 0]}
    source.event(created, window=512)
    source.event({**created, "num_blocks_per_cache_level": [40, 5]}, window=4096)
    source.roots.expect(lambda: TOKENS, 1)

    assert source.stored(1, TOKENS, window=512) == []
    assert source.stored(1, TOKENS, window=4096) == [KvStored(1, names(TOKENS, 1))]
    assert source.mirror.capacity_blocks == 40


def test_what_was_learnt_of_a_smaller_window_is_dropped(source: Source) -> None:
    source.roots.expect(lambda: TOKENS, 1)
    source.stored(1, TOKENS, window=512)

    created: Json = {"type": "created", "num_blocks_per_cache_level": [40, 0]}
    assert source.event(created, window=4096) == [KvRemoved(tuple(reversed(names(TOKENS, 1))))]


def test_a_block_is_there_while_any_rank_has_it(source: Source) -> None:
    for _ in range(2):
        source.roots.expect(lambda: TOKENS, 1)
    key = names(TOKENS, 1)

    assert source.stored(1, TOKENS, rank=0) == [KvStored(1, key)]
    assert source.stored(1, TOKENS[:8], rank=1) == []
    assert source.mirror.ranks == (0, 1)
    assert (source.mirror.depth(key, 0), source.mirror.depth(key, 1)) == (3, 2)
    assert source.removed(3, 2, 1, rank=0) == [KvRemoved(key[2:])]
    assert source.removed(2, 1, rank=1) == [KvRemoved((key[1], key[0]))]


def test_ids_may_be_counted_by_the_engine_or_by_each_rank(source: Source) -> None:
    for rank in (0, 1, 1, 0):  # counted by the engine
        source.removed(rank=rank)
    source = Source()
    for event_id, rank in ((0, 0), (0, 1), (1, 1), (1, 0), (2, 0), (2, 1)):
        source.ids = count(event_id)
        source.removed(rank=rank)

    source.ids = count(5)
    with pytest.raises(Tainted):
        source.removed(rank=1)


def test_the_count_of_one_rank_hides_no_gap_of_another(source: Source) -> None:
    for event_id, rank in ((0, 0), (0, 1), (1, 0), (1, 1), (2, 0)):
        source.ids = count(event_id)
        source.removed(rank=rank)

    source.ids = count(3)  # what rank 0 would tell next; rank 1 has lost its 2
    with pytest.raises(Tainted) as gap:
        source.removed(rank=1)
    assert gap.value.missing == 1

    source.mirror.clear()
    for event_id, rank in ((4, 1), (9, 0), (5, 1), (10, 0)):
        source.ids = count(event_id)
        source.removed(rank=rank)
    source.ids = count(11)
    with pytest.raises(Tainted):
        source.removed(rank=1)


def test_a_gap_taints_and_clearing_starts_anew(source: Source) -> None:
    source.roots.expect(lambda: TOKENS, 1)
    source.stored(1, TOKENS)
    next(source.ids)
    next(source.ids)

    with pytest.raises(Tainted) as gap:
        source.removed(3)

    assert gap.value.missing == 2
    assert source.mirror.clear() == [KvRemoved(tuple(reversed(names(TOKENS, 1))))]
    assert source.removed(3) == []
    assert source.stored(9, TOKENS[8:], parent=2) == []


def test_ids_that_go_back_taint_too(source: Source) -> None:
    source.removed()
    source.ids = count(0)

    with pytest.raises(Tainted):
        source.removed()


def test_unsigned_hashes_and_newer_fields_are_read(source: Source) -> None:
    source.roots.expect(lambda: TOKENS, 1)
    big = (1 << 64) - 1
    stored = {"type": "stored", "parent_hash": None, "blocks": [block(big, TOKENS[:4], 0)]}

    assert source.event({**stored, "layer_group_id": 0}) == [KvStored(1, names(TOKENS[:4], 1))]
    assert source.removed(big) == [KvRemoved(names(TOKENS[:4], 1))]


def test_blocks_with_more_than_tokens_are_not_ours(source: Source) -> None:
    source.roots.expect(lambda: TOKENS, 1)
    picture = {**block(1, TOKENS[:4], 0), "mm_keys": [{"hash": "ff"}]}

    assert source.event({"type": "stored", "parent_hash": None, "blocks": [picture]}) == []


def test_an_unknown_kind_of_event_still_counts(source: Source) -> None:
    assert source.event({"type": "defragmented"}) == []
    assert source.removed() == []


@pytest.mark.parametrize("item", [3, {}, {"event_id": 1}, {"event_id": "1", "data": {}}])
def test_what_is_no_event_is_refused(item: object) -> None:
    with pytest.raises(ValueError, match="cache event"):
        parse_events(item)


def test_an_item_may_be_a_list_of_events() -> None:
    raw = {"event_id": 1, "data": {"type": "removed", "block_hashes": [2]}, "window_size": 8}

    assert [e.event_id for e in parse_events([raw, {**raw, "event_id": 2}])] == [1, 2]
