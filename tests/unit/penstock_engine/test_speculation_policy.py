"""When drafts are worth their cost: the policy against steps whose costs are known."""

from collections.abc import Callable

import pytest

from penstock_engine.speculative.policy import DraftPolicy, Option
from penstock_engine.speculative.rates import Rates

MOST = 7


class Machine:
    """Steps that take ``plain_s``, ``row_s`` for each drafted row and ``draft_s`` a depth of the model."""

    def __init__(self, plain_s: float, row_s: float, draft_s: float = 0.0) -> None:
        self.plain_s, self.row_s, self.draft_s = plain_s, row_s, draft_s
        self.policy = DraftPolicy(MOST)
        self.seconds = self.tokens = self.carried = 0.0

    def step(self, batch: int, *options: Option) -> int:
        """One step in which sequences draft as the policy says; returns the depth."""
        depth, rows, model = 0, 0, False
        gained = float(batch)
        needs_model = all(option.uses_model for option in options)
        if self.policy.may_pay(batch, needs_model=needs_model):
            verdict = self.policy.decide(batch, options)
            depth, option = verdict.depth, options[verdict.option]
            drafting = [rate for rate in option.rates if rate >= verdict.least_rate]
            rows, model = depth * len(drafting), option.uses_model and depth > 0
            gained += sum(rate**i for rate in drafting for i in range(1, depth + 1))
        if model:
            self.policy.note_draft(batch, depth, depth * self.draft_s, is_steady=True)
        seconds = self.plain_s + rows * self.row_s + model * depth * self.draft_s
        # Tokens come whole; fractions of expected ones are carried over to the next step.
        self.carried += gained
        tokens, self.carried = divmod(self.carried, 1.0)
        self.policy.note_step(batch, rows, int(tokens), seconds)
        self.seconds += seconds
        self.tokens += gained
        return depth

    def run(self, steps: int, batch: int, *options: Option) -> list[int]:
        self.seconds = self.tokens = 0.0
        return [self.step(batch, *options) for _ in range(steps)]

    def speedup(self, batch: int) -> float:
        return self.tokens / self.seconds * self.plain_s / batch


def test_plain_steps_are_measured_before_anything_is_drafted() -> None:
    depths = Machine(2.0, 0.1).run(6, 1, Option([0.9]))

    assert depths[:3] == [0, 0, 0]
    assert depths[3] > 0


def test_the_depth_follows_the_rate() -> None:
    def settled(rate: float) -> int:
        machine = Machine(2.0, 0.1)
        return max(machine.run(40, 1, Option([rate]))[-5:])

    assert settled(0.02) == 0
    assert 0 < settled(0.4) < settled(0.7) < settled(0.95) == MOST


@pytest.mark.parametrize("rate", [0.5, 0.8, 0.95])
def test_cheap_rows_make_it_faster(rate: float) -> None:
    machine = Machine(2.0, 0.1)
    machine.run(1000, 1, Option([rate]))

    assert machine.speedup(1) > 0.9 * (1 + sum(rate**i for i in range(1, 5))) / 1.2


def test_a_plain_step_may_stand_for_several() -> None:
    """What drafts lost is earned back in the time of them all."""

    def told_until_drafts_may_pay(standing_for: int) -> int:
        policy, told = DraftPolicy(MOST), 0
        for _ in range(5):
            policy.note_step(16, 0, 0, 10.0)
        for _ in range(10):
            policy.note_step(16, 16, 16, 20.0)
        while not (
            policy.may_pay(16, needs_model=False) and policy.decide(16, [Option([0.5] * 16)]).depth
        ):
            policy.note_step(16, 0, 0, 10.0, standing_for)
            told += 1
        return told

    assert told_until_drafts_may_pay(4) == pytest.approx(told_until_drafts_may_pay(1) / 4, rel=0.2)


def test_rows_that_cost_what_a_token_costs_are_given_up() -> None:
    """As in a large batch on a CPU: whatever is drafted is computed for nothing."""
    machine = Machine(16.0, 1.0)
    options = Option([0.8] * 16)
    machine.run(300, 16, options)

    assert sum(depth > 0 for depth in machine.run(3000, 16, options)) <= 20
    assert machine.speedup(16) > 0.99


def test_it_begins_again_when_drafting_pays_again() -> None:
    machine = Machine(16.0, 1.0)
    machine.run(500, 16, Option([0.8] * 16))
    machine.row_s = 0.05

    depths = machine.run(3000, 16, Option([0.8] * 16))

    assert sum(depth > 0 for depth in depths[-100:]) > 90


def test_it_stops_when_plain_steps_have_become_cheap() -> None:
    """Drafting hides what a plain step costs, so it is measured now and then."""
    machine = Machine(2.0, 0.1)
    assert machine.run(200, 1, Option([0.6]))[-1] > 0
    machine.plain_s, machine.row_s = 0.2, 0.2

    assert sum(depth > 0 for depth in machine.run(2000, 1, Option([0.6]))[1000:]) < 40


def test_batches_of_other_sizes_are_judged_apart() -> None:
    machine = Machine(2.0, 0.1)
    machine.run(40, 1, Option([0.8]))
    machine.plain_s, machine.row_s = 16.0, 1.0
    machine.run(300, 16, Option([0.8] * 16))
    machine.plain_s, machine.row_s = 2.0, 0.1

    assert all(depth > 0 for depth in machine.run(5, 1, Option([0.8])))


def test_sequences_with_poor_drafts_are_left_out() -> None:
    machine = Machine(4.0, 0.5)
    machine.run(40, 4, Option([0.9] * 4))

    verdict = machine.policy.decide(4, [Option([0.9, 0.9, 0.1, 0.2])])

    assert verdict.depth > 0
    assert 0.2 < verdict.least_rate < 0.9


def test_a_draft_model_must_be_worth_its_own_time() -> None:
    def chosen(draft_s: float) -> int:
        machine = Machine(2.0, 0.1, draft_s)
        options = (Option([0.5]), Option([0.8], uses_model=True))
        machine.run(60, 1, *options)
        return machine.policy.decide(1, options).option

    assert chosen(0.1) == 1
    assert chosen(1.5) == 0


def test_a_slow_draft_model_alone_is_given_up() -> None:
    machine = Machine(2.0, 0.1, 3.0)
    machine.run(300, 1, Option([0.9], uses_model=True))

    assert sum(depth > 0 for depth in machine.run(3000, 1, Option([0.9], uses_model=True))) <= 16


def test_drafts_that_stand_less_than_they_promise_are_given_up() -> None:
    """The rates told are wrong, or the costs vary: what counts is what came of it."""
    policy = DraftPolicy(MOST)
    drafted = 0
    for _ in range(3000):
        depth = 0
        if policy.may_pay(16, needs_model=False):
            depth = policy.decide(16, [Option([0.9] * 16)]).depth
        policy.note_step(16, 16 * depth, 16, 10.0 + 0.5 * depth)
        drafted += depth > 0

    assert drafted < 150


@pytest.mark.parametrize("batch", [1, 16])
def test_drafting_never_costs_more_than_its_share(batch: int) -> None:
    """Steps turn dear just when drafts are checked, and none stands: the forecast is always wrong."""
    policy = DraftPolicy(MOST)
    seconds = 0.0
    for _ in range(2000):
        depth = 0
        if policy.may_pay(batch, needs_model=False):
            depth = policy.decide(batch, [Option([0.9] * batch)]).depth
        step_s = 10.0 if depth == 0 else 10.0 + 40.0 * (depth % 3)
        policy.note_step(batch, batch * depth, batch, step_s)
        seconds += step_s

    assert seconds < 2000 * 10.0 * 1.03


def test_what_cannot_be_paid_for_is_not_looked_for_at_every_step() -> None:
    machine, batch = Machine(2.0, 0.01), 16
    machine.run(20, batch, Option([0.9] * batch))
    looks = 0
    for _ in range(200):
        if machine.policy.may_pay(batch, needs_model=False):
            looks += 1
            assert machine.policy.decide(batch, [Option([])]).depth == 0
        machine.policy.note_step(batch, 0, batch, 2.0)

    assert looks < 30


def test_a_single_slow_step_changes_little() -> None:
    machine = Machine(2.0, 0.1)
    machine.run(40, 1, Option([0.8]))
    machine.policy.note_step(1, 4, 3, 50.0)

    assert machine.step(1, Option([0.8])) > 0


def judged(outcomes: list[tuple[int, int]]) -> Callable[[Rates], float]:
    def of(rates: Rates) -> float:
        for drafted, accepted in outcomes:
            rates.note(3, drafted, accepted)
        return rates.of(3)

    return of


def test_rates_approach_what_is_seen() -> None:
    assert judged([(4, 4)] * 50)(Rates()) > 0.95
    assert judged([(4, 0)] * 50)(Rates()) < 0.05
    # Of three drafts the first stood and the second fell; the third was not judged.
    assert judged([(3, 1)] * 200)(Rates()) == pytest.approx(0.5, abs=0.06)


def test_a_new_sequence_starts_from_what_others_saw() -> None:
    everybody = Rates()
    judged([(4, 0)] * 50)(Rates(everybody))

    assert Rates(everybody).of(3) < 0.05
    assert Rates(everybody).of(2) == Rates().of(2)
