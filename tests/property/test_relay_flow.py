"""Whatever the order of things, a relay says everything once and in order, and keeps to the room given."""

from hypothesis import given
from hypothesis import strategies as st

from penstock_core.rpc.credit import Allowance, Window
from penstock_worker.relay.queue import RelayQueue

SIZES = st.lists(st.integers(1, 200), max_size=60)


@given(sizes=SIZES, window=st.integers(1, 300))
def test_a_stream_that_is_read_never_stops_and_one_that_is_not_is_bounded(
    sizes: list[int], window: int
) -> None:
    writer, reader = Allowance(window), Window(window)
    on_the_way = 0
    for size in sizes:
        while not writer.may_send:
            assert on_the_way, "nothing to read, nothing to send: they wait for each other"
            writer.given(reader.took(on_the_way))
            on_the_way = 0
        writer.sent(size)
        on_the_way += size
        assert on_the_way < window + size, "more than the room and one message"


@given(sizes=SIZES)
def test_room_is_given_back_to_the_last_byte_but_half_a_window(sizes: list[int]) -> None:
    window = Window(100)
    given_back = sum(window.took(size) for size in sizes)
    assert 0 <= sum(sizes) - given_back < 50


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("event"), st.integers(0, 4), st.integers(1, 60)),
        st.tuples(st.sampled_from(["end", "drop"]), st.integers(0, 4), st.just(0)),
        st.tuples(st.just("take"), st.just(0), st.just(0)),
    ),
    max_size=80,
)


@given(steps=STEPS)
def test_a_queue_says_everything_once_in_order_and_ends_last(
    steps: list[tuple[str, int, int]],
) -> None:
    queue = RelayQueue(message_bytes=100)
    wanted: dict[int, list[bytes]] = {}
    heard: dict[int, list[bytes]] = {}
    over, ended = set[int](), set[int]()

    def take() -> bool:
        message = queue.take()
        if message is None:
            return False
        events = [raw for some in message.events for raw in some.events]
        assert len(events) == 1 or sum(map(len, events)) <= 100
        assert events or message.ends
        for some in message.events:
            assert some.stream_id not in ended
            heard.setdefault(some.stream_id, []).extend(some.events)
        ended.update(end.stream_id for end in message.ends)
        return True

    for number, (what, stream, size) in enumerate(steps):
        if what == "take":
            take()
        elif stream in over:
            continue  # an ended stream says nothing
        elif what == "event":
            raw = number.to_bytes(4, "big") * size
            wanted.setdefault(stream, []).append(raw)
            queue.event(stream, raw[:size])
            wanted[stream][-1] = raw[:size]
        elif what == "end":
            over.add(stream)
            queue.end(stream, b"")
        else:
            over.add(stream)
            queue.drop(stream)
            wanted[stream] = heard.get(stream, [])[:]
            ended.add(stream)
    while take():
        pass

    assert {s: w for s, w in wanted.items() if w} == {s: h for s, h in heard.items() if h}
    assert ended == over
    assert len(queue) == 0
