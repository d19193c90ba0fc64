import asyncio

from penstock_batch.running.pressure import Aimd, Gate


def test_a_window_of_successes_adds_one() -> None:
    aimd = Aimd.starting(4, 64)
    for _ in range(4):
        aimd = aimd.succeeded()
    assert aimd.width == 4
    assert aimd.succeeded().width == 5


def test_a_push_back_halves_and_its_companions_do_not_count() -> None:
    aimd = Aimd.starting(16, 64).pushed_back(now=10.0)
    assert aimd.width == 8
    assert aimd.pushed_back(now=10.1).width == 8
    assert aimd.pushed_back(now=11.0).width == 4


def test_the_limit_stays_between_one_and_the_most() -> None:
    low = Aimd.starting(1, 4)
    for second in range(5):
        low = low.pushed_back(now=float(second))
    assert low.width == 1
    high = Aimd.starting(8, 4)
    for _ in range(50):
        high = high.succeeded()
    assert high.width == 4


async def test_the_gate_lets_in_as_many_as_the_limit_says() -> None:
    gate, full, leave = Gate(Aimd.starting(2, 8)), asyncio.Event(), asyncio.Event()
    inside = most = 0

    async def pass_once() -> None:
        nonlocal inside, most
        async with gate.pass_through():
            inside += 1
            most = max(most, inside)
            if inside == 2:
                full.set()
            await leave.wait()
            inside -= 1

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        tasks = [group.create_task(pass_once()) for _ in range(5)]
        await full.wait()
        leave.set()
    assert most == 2
    assert all(task.done() for task in tasks)


async def test_a_cancelled_caller_gives_its_place_back() -> None:
    gate = Gate(Aimd.starting(1, 1))
    holding = asyncio.Event()

    async def hold() -> None:
        async with gate.pass_through():
            holding.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(hold())
    await holding.wait()
    task.cancel()
    async with asyncio.timeout(10), gate.pass_through():
        assert task.done() or task.cancelling()
