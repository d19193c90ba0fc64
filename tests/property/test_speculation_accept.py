"""The acceptance rule: what it keeps, and that it keeps the distribution.

The statistical tests draw with fixed seeds, so they pass or fail for good; bounds are quantiles
that a correct rule exceeds once in ten thousand seeds.
"""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from penstock_engine.api import EngineRequest, Sampling
from penstock_engine.native.execution.sampling import Drawer, Sampler
from penstock_engine.native.scheduling.request import Ahead, Request, Sample
from penstock_engine.speculative.accept import num_accepted

VOCAB = 6
ROUNDS = 6000
DEPTH = 2


@pytest.mark.parametrize(
    ("drafts", "draws", "accepted"),
    [
        ([], [4], 0),
        ([1, 2, 3], [1, 2, 3, 4], 3),
        ([1, 2, 3], [1, 9, 3, 4], 1),
        ([1, 2, 3], [9, 2, 3, 4], 0),
        ([1, 1], [1, 2, 1], 1),
    ],
)
def test_drafts_stand_up_to_the_first_that_differs(
    drafts: list[int], draws: list[int], accepted: int
) -> None:
    assert num_accepted(drafts, draws) == accepted


@pytest.mark.parametrize("draws", [[], [1], [1, 2, 3]])
def test_there_is_one_draw_more_than_drafts(draws: list[int]) -> None:
    with pytest.raises(ValueError, match="1 drafts need 2 draws"):
        num_accepted([1], draws)


TABLE = torch.randn(VOCAB, VOCAB, VOCAB, generator=torch.Generator().manual_seed(3))
"""A toy language model: the logits depend on the last two tokens."""


def model(history: Sequence[int]) -> Tensor:
    first, second = ([0, 0, *history])[-2:]
    return TABLE[first, second].clone()


def guesser(history: Sequence[int]) -> Tensor:
    """Another, which has seen something of the first."""
    return 0.6 * model(history) + 0.3 * torch.arange(VOCAB)


def sample(seed: int, sampling: Sampling) -> Sample:
    settings = Sampling(sampling.temperature, sampling.top_p, sampling.top_k, seed=seed)
    return Request(EngineRequest("r", [0], 9, settings), 0, 0.0).samples[0]


def draw(places: Sequence[Drawer], logits_of: Callable[[Sequence[int]], Tensor]) -> list[int]:
    if not places:
        return []
    logits = torch.stack([logits_of(place.tokens) for place in places])
    return [drawn.token_ids[0] for drawn in Sampler().draw(logits, places)]


def speculate(samples: Sequence[Sample], drafts: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """What a step that checks each sample's drafts emits."""
    places: list[Drawer] = []
    for one, guessed in zip(samples, drafts, strict=True):
        places += [one, *(Ahead(one, guessed[:i]) for i in range(1, len(guessed) + 1))]
    rows = iter(draw(places, model))
    emitted = []
    for guessed in drafts:
        draws = [next(rows) for _ in range(len(guessed) + 1)]
        emitted.append(draws[: num_accepted(guessed, draws) + 1])
    return emitted


def decode(samples: Sequence[Sample]) -> None:
    """A plain step."""
    for one, emitted in zip(samples, speculate(samples, [()] * len(samples)), strict=True):
        one.tokens.extend(emitted)


def guess(samples: Sequence[Sample]) -> list[tuple[int, ...]]:
    """Drafts of the other model, drawn with the numbers of their positions."""
    drafts: list[tuple[int, ...]] = [()] * len(samples)
    for _ in range(DEPTH):
        places = [Ahead(one, guessed) for one, guessed in zip(samples, drafts, strict=True)]
        rows = draw(places, guesser)
        drafts = [(*guessed, token) for guessed, token in zip(drafts, rows, strict=True)]
    return drafts


def probabilities(history: Sequence[int], sampling: Sampling) -> Tensor:
    logits = model(history) / sampling.temperature
    if sampling.top_k:
        logits[logits < logits.sort(descending=True).values[sampling.top_k - 1]] = -math.inf
    return logits.softmax(-1)


def chi_square(counts: Tensor, expected: Tensor) -> float:
    possible = expected > 0
    assert counts[~possible].sum() == 0, "a token came that cannot"
    return float(((counts - expected)[possible] ** 2 / expected[possible]).sum())


@pytest.mark.parametrize("drafter", ["right", "wrong", "model"])
@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(0.7, top_k=4)])
def test_the_distribution_is_that_of_plain_decoding(drafter: str, sampling: Sampling) -> None:
    """Pairs of tokens, against what the model's own probabilities say of each pair."""
    ranked = model([0]).argsort(descending=True).tolist()
    same = {"right": (ranked[0], ranked[0]), "wrong": (ranked[3], ranked[2])}
    samples = [sample(seed, sampling) for seed in range(ROUNDS)]
    drafts = [same[drafter]] * ROUNDS if drafter in same else guess(samples)
    emitted = speculate(samples, drafts)
    for one, tokens in zip(samples, emitted, strict=True):
        one.tokens.extend(tokens)
    decode([one for one in samples if one.num_output == 1])

    counts = torch.zeros(VOCAB, VOCAB)
    for one in samples:
        counts[one.tokens[1], one.tokens[2]] += 1
    firsts = probabilities([0], sampling)
    seconds = torch.stack([probabilities([0, first], sampling) for first in range(VOCAB)])
    # 35 degrees of freedom; fewer where top-k leaves fewer pairs, which only widens the margin.
    assert chi_square(counts, ROUNDS * firsts.unsqueeze(1) * seconds) < 77
    assert sum(map(len, emitted)) > ROUNDS, "no draft ever stood"


def test_a_deterministic_draft_stands_as_often_as_rejection_sampling_says() -> None:
    """With q(x) = 1 that is min(1, p(x) / q(x)) = p(x); the rest follows p without x."""
    draft, sampling = 3, Sampling(1.0)
    p = probabilities([0], sampling)
    samples = [sample(seed, sampling) for seed in range(ROUNDS)]
    emitted = speculate(samples, [(draft,)] * ROUNDS)
    counts = torch.bincount(torch.tensor([tokens[0] for tokens in emitted]), minlength=VOCAB)
    counts = counts.double()

    share = float(p[draft])
    spread = math.sqrt(share * (1 - share) / ROUNDS)
    assert float(counts[draft]) / ROUNDS == pytest.approx(share, abs=4 * spread)
    counts[draft], p[draft] = 0, 0
    assert chi_square(counts, counts.sum() * p / p.sum()) < 24  # 4 degrees of freedom


@pytest.mark.parametrize("temperature", [0.0, 0.8, 1.5])
def test_every_token_is_the_one_of_plain_decoding(temperature: float) -> None:
    plain = [sample(seed, Sampling(temperature)) for seed in range(200)]
    drafted = [sample(seed, Sampling(temperature)) for seed in range(200)]
    for _ in range(DEPTH + 1):
        decode(plain)

    for one, truth, tokens in zip(drafted, plain, speculate(drafted, guess(drafted)), strict=True):
        one.tokens.extend(tokens)
        assert one.tokens == truth.tokens[: len(one.tokens)]


def test_drafts_that_foretell_the_draws_stand_all() -> None:
    truth, one = sample(1, Sampling(1.0)), sample(1, Sampling(1.0))
    for _ in range(4):
        decode([truth])

    foretold = tuple(truth.tokens[1:4])

    assert speculate([one], [foretold]) == [list(truth.tokens[1:])]
