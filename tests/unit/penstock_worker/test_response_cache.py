"""Kept answers stay within their bytes and their time."""

from hypothesis import given
from hypothesis import strategies as st

from penstock_worker.answers.cache import ResponseCache

FRAMES = [b"x" * 100]
SIZE = 356
ROOM = 8 * SIZE


def test_an_answer_is_given_again_until_it_is_too_old() -> None:
    cache = ResponseCache(ROOM, ttl_s=10)
    cache.put(b"k", FRAMES, now=5)

    assert cache.get(b"other", now=5) is None
    found = cache.get(b"k", now=14.9)
    assert found is not None
    assert (found.frames, found.at) == ((FRAMES[0],), 5)
    assert cache.get(b"k", now=15) is None
    assert (len(cache), cache.num_bytes) == (0, 0)


def test_what_was_used_longest_ago_goes_first() -> None:
    cache = ResponseCache(ROOM, ttl_s=10)
    for number in range(8):
        cache.put(bytes([number]), FRAMES, now=0)
    cache.get(b"\0", now=1)
    cache.put(b"new", FRAMES, now=1)

    assert cache.get(b"\0", now=1) is not None
    assert cache.get(b"\1", now=1) is None


def test_a_large_answer_pushes_nothing_out() -> None:
    cache = ResponseCache(ROOM, ttl_s=10)
    cache.put(b"k", FRAMES, now=0)

    assert not cache.put(b"large", [b"x" * 101], now=0)
    assert cache.get(b"k", now=0) is not None


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 150), st.booleans())),
    st.integers(0, 5000),
)
def test_bytes_are_counted_and_bounded(uses: list[tuple[int, int, bool]], room: int) -> None:
    cache, kept = ResponseCache(room, ttl_s=20), {}
    for now, (key, size, puts) in enumerate(uses):
        name = bytes([key])
        if puts and cache.put(name, [b"x" * size], now):
            kept[name] = size
        found = cache.get(name, now)
        if found is not None:
            assert len(found.frames[0]) == kept[name]
        assert cache.num_bytes <= room
        assert (cache.num_bytes == 0) == (len(cache) == 0)
