"""Texts between steps: pieces, pages, order, cancellation; the decoder is a function of the tokens."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from penstock_core.errors import Overloaded
from penstock_engine.api import Embedded, EmbedRequest, Pooling, Priority, Vector
from penstock_engine.native.execution.embedding import Embeddings, EmbedLimits
from penstock_engine.native.scheduling.plan import StepPlan

PAGES = range(100, 108)
LIMITS = EmbedLimits(PAGES, block_tokens=4, max_step_tokens=16, max_waiting_tokens=200)


class Reader:
    """Plays the decoder: a position's state is made of its token; notes what it was asked for."""

    def __init__(self) -> None:
        self.plans: list[StepPlan] = []

    def __call__(self, plan: StepPlan) -> Tensor:
        self.plans.append(plan)
        held = [page for chunk in plan.chunks for page in chunk.sample.pages]
        assert len(set(held)) == len(held), "two texts share a page"
        assert set(held) <= set(PAGES)
        wanted: list[int] = []
        for chunk in plan.chunks:
            assert chunk.start + chunk.count <= 4 * len(chunk.sample.pages)
            wanted += list(chunk.tokens)[chunk.count - chunk.num_logits :]
        rows = torch.tensor(wanted, dtype=torch.float32)
        return torch.stack([rows + 1, -rows, torch.ones_like(rows)], dim=1)


def make(pooling: Pooling = Pooling.LAST) -> Embeddings:
    return Embeddings(LIMITS, pooling)


def run(embeddings: Embeddings, reader: Reader, *, beside: bool = False) -> None:
    while embeddings.has_work:
        assert embeddings.step(reader, beside=beside) > 0


def answers(embeddings: Embeddings, *requests: EmbedRequest) -> dict[str, Sequence[Vector]]:
    got: dict[str, Sequence[Vector]] = {}
    for request in requests:

        def keep(embedded: Embedded, name: str = request.request_id) -> None:
            got[name] = embedded.vectors

        embeddings.submit(request, keep)
    return got


def unit(*values: float) -> list[float]:
    vector = torch.tensor(values, dtype=torch.float64)
    return (vector / vector.norm()).float().tolist()  # type: ignore[no-any-return]


def test_the_last_token_or_the_mean_of_all_is_taken_at_length_one() -> None:
    texts = [[1, 2, 3], [5] * 30]
    embeddings, reader = make(), Reader()
    got = answers(embeddings, EmbedRequest("l", texts), EmbedRequest("m", texts, Pooling.MEAN))

    run(embeddings, reader)

    assert [list(vector) for vector in got["l"]] == [unit(4, -3, 1), unit(6, -5, 1)]
    assert [list(vector) for vector in got["m"]] == [unit(3, -2, 1), unit(6, -5, 1)]


def test_leading_dimensions_are_normalised_again() -> None:
    embeddings = make()
    got = answers(embeddings, EmbedRequest("r", [[2]], dimensions=2))

    run(embeddings, Reader())

    assert list(got["r"][0]) == unit(3, -2)


@given(
    st.lists(st.integers(1, 32), min_size=1, max_size=12),
    st.sampled_from(list(Pooling)),
    st.booleans(),
)
def test_any_texts_fit_and_no_page_is_lost(
    lengths: list[int], pooling: Pooling, beside: bool
) -> None:
    texts = [[7 * i + j for j in range(length)] for i, length in enumerate(lengths)]
    alone = []
    for text in texts:
        embeddings = make(pooling)
        got = answers(embeddings, EmbedRequest("a", [text]))
        run(embeddings, Reader())
        alone.append(list(got["a"][0]))
    embeddings, reader = make(pooling), Reader()

    got = answers(embeddings, EmbedRequest("r", texts))
    run(embeddings, reader, beside=beside)

    assert [list(vector) for vector in got["r"]] == alone
    most = LIMITS.beside_step_tokens if beside else LIMITS.max_step_tokens
    assert max(plan.num_tokens for plan in reader.plans) <= most
    assert sum(plan.num_tokens for plan in reader.plans) == sum(lengths)
    whole = answers(embeddings, EmbedRequest("w", [[1] * 32]))
    run(embeddings, reader)
    assert whole, "pages were lost"


def test_pieces_beside_a_generation_are_small() -> None:
    embeddings, reader = make(), Reader()
    answers(embeddings, EmbedRequest("r", [[1] * 20]))

    run(embeddings, reader, beside=True)

    assert [plan.num_tokens for plan in reader.plans] == [4] * 5


def test_better_classes_go_first() -> None:
    embeddings, reader = make(), Reader()
    got = answers(
        embeddings,
        EmbedRequest("batch", [[1] * 16], priority=Priority.BATCH),
        EmbedRequest("person", [[2] * 16], priority=Priority.INTERACTIVE),
    )

    embeddings.step(reader, beside=False)

    assert list(got) == ["person"]


def test_a_cancelled_request_is_forgotten_even_while_it_is_computed() -> None:
    embeddings = make()
    got = answers(embeddings, EmbedRequest("gone", [[1] * 3, [1] * 20]), EmbedRequest("r", [[3]]))

    class Interrupting(Reader):
        def __call__(self, plan: StepPlan) -> Tensor:
            embeddings.cancel("gone")
            return super().__call__(plan)

    run(embeddings, Interrupting())

    assert list(got) == ["r"]
    assert embeddings.queued_tokens == 0
    whole = answers(embeddings, EmbedRequest("w", [[1] * 32]))
    run(embeddings, Reader())
    assert whole, "pages were lost"


def test_what_waits_is_bounded_but_one_request_always_may() -> None:
    embeddings = make()
    answers(embeddings, EmbedRequest("large", [[1] * 32] * 10))
    assert embeddings.queued_tokens == 320

    with pytest.raises(Overloaded, match="320 tokens wait"):
        embeddings.submit(EmbedRequest("more", [[1]]), lambda _: None)


def test_the_time_of_reading_is_divided_by_tokens() -> None:
    embeddings = make()
    kept: dict[str, float] = {}
    for name, length in (("short", 4), ("long", 20)):
        request = EmbedRequest(name, [[1] * length])
        embeddings.submit(request, lambda e, name=name: kept.update({name: e.share.prefill_s}))  # type: ignore[misc]
    run(embeddings, Reader())

    assert sum(kept.values()) == pytest.approx(embeddings.busy_s)
    assert kept["long"] > kept["short"] > 0
