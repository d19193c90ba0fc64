"""The draft model: what it follows, what it holds, and which pairs are refused."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from penstock_core.errors import InvalidRequest
from penstock_engine.api import EngineRequest, Sampling
from penstock_engine.native.engine import NativeEngine
from penstock_engine.native.execution.runner import Runner
from penstock_engine.native.loading import draw_up, load_runner
from penstock_engine.native.scheduling.plan import Chunk, StepPlan
from penstock_engine.native.scheduling.request import Phase, Request, Sample
from penstock_engine.native.settings import NativeSettings
from penstock_engine.speculative.draft import DraftLimits, DraftModel, Guesses, Wanted
from penstock_testing.engines.checkpoints import write_checkpoint

BLOCK = 4
PAGES = 24


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("draft"))


@pytest.fixture(scope="module")
def runner(model: Path) -> Runner:
    return load(model, PAGES)


def load(model: Path, pages: int) -> Runner:
    settings = NativeSettings(model, device="cpu", kv_blocks=pages, block_tokens=BLOCK)
    return load_runner(draw_up(settings))


def drafter(runner: Runner, *, pages: int = PAGES, context: int = 500) -> DraftModel:
    return DraftModel(runner, DraftLimits(context, pages, BLOCK))


def running(prompt: Sequence[int], sampling: Sampling | None = None) -> Sample:
    spec = EngineRequest("r", prompt, 99, sampling or Sampling(temperature=0.0))
    sample = Request(spec, 0, 0.0).samples[0]
    sample.phase = Phase.RUNNING
    return sample


def decoded(model: Path, sample: Sample, count: int) -> list[int]:
    """What the model itself says next, computed from scratch token by token."""
    twin = Request(sample.request.spec, 0, 0.0).samples[0]
    twin.tokens, twin.pages = sample.tokens[:], list(range(40))
    runner = load(model, 40)
    for _ in range(count):
        plan = StepPlan((Chunk(twin, 0, len(twin.tokens), 1, (twin,)),))
        twin.tokens.append(runner.run(plan).drawn[0].token_ids[0])
    return twin.tokens[len(sample.tokens) :].tolist()


def propose(draft: DraftModel, *wanted: tuple[Sample, int]) -> Guesses:
    return draft.propose([Wanted(sample, count) for sample, count in wanted])


@pytest.mark.parametrize("sampling", [Sampling(temperature=0.0), Sampling(seed=5, top_k=20)])
def test_guesses_are_what_the_model_would_draw(
    model: Path, runner: Runner, sampling: Sampling
) -> None:
    draft = drafter(runner)
    first, second = running(range(9), sampling), running(range(40, 46), sampling)

    guesses = propose(draft, (first, 4), (second, 2))

    assert guesses.drafts == [tuple(decoded(model, first, 4)), tuple(decoded(model, second, 2))]
    assert not guesses.is_steady, "prompts had to be computed"


@pytest.mark.parametrize("stood", [0, 1, 3])
def test_it_goes_on_where_guesses_fell(model: Path, runner: Runner, stood: int) -> None:
    draft, sample = drafter(runner), running(range(9))
    (guessed,) = propose(draft, (sample, 3)).drafts
    sample.tokens.extend([*guessed[:stood], 77])

    again = propose(draft, (sample, 3))

    assert again.drafts == [tuple(decoded(model, sample, 3))]
    assert again.is_steady


def test_it_goes_on_where_fewer_were_checked_than_guessed(model: Path, runner: Runner) -> None:
    draft, sample = drafter(runner), running(range(9))
    (guessed,) = propose(draft, (sample, 5)).drafts
    sample.tokens.extend(guessed[:2])

    assert propose(draft, (sample, 3)).drafts == [tuple(decoded(model, sample, 3))]


def test_a_long_prompt_is_caught_up_with_over_several_steps(model: Path) -> None:
    settings = NativeSettings(model, device="cpu", kv_blocks=40, block_tokens=32, max_context=512)
    draft = DraftModel(load_runner(draw_up(settings)), DraftLimits(512, 40, 32))
    sample = running([i % 250 for i in range(505)] + [1] * 5)
    long = running([i % 250 for i in range(20)])

    crowded = propose(draft, (sample, 2), (long, 2))

    assert [len(drafts) for drafts in crowded.drafts] == [2, 0]
    assert [len(drafts) for drafts in propose(draft, (sample, 2), (long, 2)).drafts] == [2, 2]


def test_nothing_is_guessed_beyond_its_context(runner: Runner) -> None:
    draft = drafter(runner, context=12)

    assert [len(d) for d in propose(draft, (running(range(9)), 9)).drafts] == [4]
    assert propose(draft, (running(range(13)), 9)).drafts == [()]


def test_who_finds_no_pages_gets_no_guesses(runner: Runner) -> None:
    draft = drafter(runner, pages=3)

    guesses = propose(draft, (running(range(8)), 2), (running(range(8)), 2))

    assert [len(drafts) for drafts in guesses.drafts] == [2, 0]


def test_pages_of_sequences_that_left_come_back(runner: Runner) -> None:
    draft = drafter(runner)
    gone, preempted, stays = running(range(9)), running(range(9)), running(range(4))
    propose(draft, (gone, 2), (preempted, 2), (stays, 1))
    assert draft.used_pages == 3 + 3 + 1
    gone.phase, preempted.phase = Phase.FINISHED, Phase.WAITING

    propose(draft, (stays, 1))
    assert draft.used_pages == 1
    draft.release()
    assert draft.used_pages == 0


def test_a_draft_model_of_another_vocabulary_is_refused(model: Path, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path, {"vocab_size": 300})
    settings = NativeSettings(model, device="cpu", speculation="draft", draft_model=other)

    with pytest.raises(InvalidRequest, match=r"300 tokens and .* one of 257.*same tokenizer"):
        NativeEngine(settings)


def test_a_draft_model_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    paths = [write_checkpoint(tmp_path / name) for name in ("a", "b", "c")]
    for path, words in zip(paths, ({"x": 1}, {"y": 1}, {"x": 1}), strict=True):
        content = {"model": {"vocab": words}, "padding": path.name}
        (path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    settings = NativeSettings(paths[0], device="cpu", speculation="auto", draft_model=paths[1])

    with pytest.raises(InvalidRequest, match="another tokenizer"):
        NativeEngine(settings)
    assert draw_up(replace(settings, draft_model=paths[2])).info.speculation == "ngram+draft"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"speculation": "draft"}, "needs a draft_model"),
        ({"speculation": "magic"}, "'magic' is unknown"),
        ({"speculation": "ngram", "max_draft_tokens": 0}, "at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_told(
    model: Path, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(InvalidRequest, match=said):
        NativeEngine(NativeSettings(model, device="cpu", **changes))  # type: ignore[arg-type]


def test_info_says_what_runs(model: Path) -> None:
    def info(kind: str, draft: Path | None = None) -> str:
        settings = NativeSettings(model, device="cpu", speculation=kind, draft_model=draft)
        return NativeEngine(settings).info().speculation

    assert [info("none"), info("none", model), info("ngram"), info("auto")] == [
        "none", "none", "ngram", "ngram",
    ]  # fmt: skip
    assert [info("draft", model), info("auto", model)] == ["draft", "ngram+draft"]


def test_both_models_share_the_budget_of_kv_memory(model: Path) -> None:
    alone = draw_up(NativeSettings(model, device="cpu", kv_memory_bytes=1 << 20))
    paired = draw_up(
        NativeSettings(
            model, device="cpu", kv_memory_bytes=1 << 20, speculation="draft", draft_model=model
        )
    )

    assert paired.info.capacity_blocks == alone.info.capacity_blocks // 2
