"""Streams under fire: what clients get while workers are killed midway, against what they would get.

Half of the requests draw with a seed, a quarter is held to a shape. Whoever compares two runs sees
every lost, doubled or changed token.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from penstock_client import (
    AsyncClient,
    Completed,
    Constraint,
    Delta,
    Finished,
    GenerateOptions,
    Mode,
    Started,
)
from penstock_testing.processes.fleet import ManagedProcess, ProcessFleet

_SCHEMA = """{"type": "object", "properties": {"name": {"type": "string", "maxLength": 40},
"sizes": {"type": "array", "items": {"type": "integer"}, "minItems": 8, "maxItems": 20}},
"required": ["name", "sizes"], "additionalProperties": false}"""
_SHAPES = (
    Constraint("json_schema", _SCHEMA),
    Constraint("regex", r"(def [a-z_]{4,12}\([a-z]+\):\n    return [a-z0-9 +*]{8,30}\n){3,6}"),
)
_PROMPTS = (
    "def add(a, b):\n    ",
    "import os\nimport sys\n\n\ndef main():\n    ",
    "class Stack:\n    def __init__(self):\n        ",
    "for name in names:\n    ",
    '"""Reads a file line by line."""\n\n\ndef read(path):\n    ',
)


@dataclass(frozen=True, slots=True)
class Job:
    """One request."""

    prompt: str
    options: GenerateOptions


@dataclass(slots=True)
class Told:
    """What a client got: of each sample its tokens and text, and how it ended."""

    tokens: dict[int, tuple[int, ...]] = field(default_factory=dict)
    text: dict[int, str] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    completion_tokens: int = 0


@dataclass(slots=True)
class Streams:
    """Streams that have begun and not ended, by the worker that began them."""

    open: Counter[str] = field(default_factory=Counter)
    touched: int = 0


def jobs(count: int, max_tokens: int = 64, seed: int = 0) -> list[Job]:
    """Requests: every second one seeded, every fourth constrained, some of two samples."""
    made = []
    for number in range(count):
        options = GenerateOptions(
            max_tokens=max_tokens,
            min_tokens=max_tokens // 2 if number % 4 else None,
            temperature=0.9 if number % 2 else 0.0,
            seed=seed * 1000 + number if number % 2 else None,
            n=2 if number % 10 == 7 else None,
            logprobs=1 if number % 10 == 3 else None,
            constraint=_SHAPES[number // 4 % len(_SHAPES)] if number % 4 == 0 else None,
        )
        made.append(Job(f"# {number}\n{_PROMPTS[number % len(_PROMPTS)]}", options))
    return made


async def run(
    target: str, mode: Mode, work: Sequence[Job], streams: Streams, concurrency: int = 16
) -> list[Told]:
    """Stream all of it; raises AssertionError if a position is lost or doubled."""
    places = asyncio.Semaphore(concurrency)
    async with AsyncClient(target, mode=mode) as client:

        async def one(job: Job) -> Told:
            async with places:
                return await _stream(client, job, streams)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(job)) for job in work]
        return [task.result() for task in tasks]


async def settled(
    target: str, work: Sequence[Job], concurrency: int = 16
) -> tuple[list[Job], list[Told]]:
    """The requests that say the same with a cold cache and with a warm one, and what they say.

    Where two tokens are all but equally likely, the last bits of a sum decide, and those depend on
    who shares the step: such requests differ without anybody being killed, and prove nothing.
    """
    cold = await run(target, "proxy", work, Streams(), concurrency)
    warm = await run(target, "proxy", work, Streams(), max(concurrency // 2, 1))
    same = [index for index, told in enumerate(cold) if told == warm[index]]
    return [work[index] for index in same], [cold[index] for index in same]


async def kill_at_random(fleet: ProcessFleet, streams: Streams, seed: int, least: int = 2) -> int:
    """Kill -9 a worker with open streams, start it anew, again and again until cancelled.

    Returns:
        How many died; on cancellation, since it never ends by itself.
    """
    rng, kills = random.Random(seed), 0
    try:
        while True:
            victim = await _busy_worker(fleet, streams, rng, least)
            streams.touched += streams.open[victim.name]
            await victim.kill()
            kills += 1
            streams.open[victim.name] = 0
            await victim.start()
            await fleet.live()
    except asyncio.CancelledError:
        return kills


async def _busy_worker(
    fleet: ProcessFleet, streams: Streams, rng: random.Random, least: int
) -> ManagedProcess:
    while True:
        busy = sorted(name for name, count in streams.open.items() if count >= least)
        if busy:
            return fleet.worker(rng.choice(busy))
        await asyncio.sleep(0.005)


async def _stream(client: AsyncClient, job: Job, streams: Streams) -> Told:
    told, worker = Told(), ""
    async with aclosing(client.stream(job.prompt, options=job.options)) as events:
        async for event in events:
            match event:
                case Started():
                    assert not worker, "it started twice"
                    worker = event.worker_id
                    streams.open[worker] += 1
                case Delta():
                    had = told.tokens.get(event.choice_index, ())
                    assert event.first_position == len(had), "a position is lost or doubled"
                    told.tokens[event.choice_index] = had + event.token_ids
                    said = told.text.get(event.choice_index, "")
                    told.text[event.choice_index] = said + event.text
                case Finished():
                    assert event.choice_index not in told.reasons, "it ended twice"
                    told.reasons[event.choice_index] = event.reason
                case Completed():
                    told.completion_tokens = event.usage.completion_tokens
    streams.open[worker] -= 1
    assert told.completion_tokens == sum(map(len, told.tokens.values())), "usage does not add up"
    return told
