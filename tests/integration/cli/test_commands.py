"""The command line as a person runs it, against a scripted router."""

import asyncio
import json
import signal
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from penstock_cli.__main__ import build_app
from penstock_core.errors import InvalidRequest
from penstock_core.version import VERSION
from penstock_testing.servers.scripted_fleet import API_KEY, FleetFactory, Script, scripted_fleets


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    status: int
    out: str
    err: str


async def penstock(*arguments: str, stdin: str = "") -> Done:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "penstock_cli", *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(30):
        out, err = await process.communicate(stdin.encode())
    assert process.returncode is not None
    return Done(process.returncode, out.decode(), err.decode())


@pytest.fixture
async def fleet() -> AsyncIterator[FleetFactory]:
    async with scripted_fleets() as start:
        yield start


async def test_generate_writes_only_the_text_to_standard_output(fleet: FleetFactory) -> None:
    running = await fleet(Script())
    done = await penstock("generate", "hi", "--target", running.target, "--api-key", API_KEY)

    assert (done.status, done.out) == (0, "0 1 2 \n")
    assert "2 of 4 prompt tokens from the cache" in done.err
    assert "penstock explain req_routed" in done.err


async def test_generate_reads_a_prompt_from_standard_input_and_prints_json(
    fleet: FleetFactory,
) -> None:
    running = await fleet(Script())
    options = ("--target", running.target, "--api-key", API_KEY, "--json", "--mode", "proxy")
    done = await penstock("generate", "-", *options, stdin="from a pipe")

    assert json.loads(done.out)["choices"][0]["text"] == "0 1 2 "
    assert running.proxied.requests[0].text == "from a pipe"


async def test_chat_keeps_the_conversation_from_turn_to_turn(fleet: FleetFactory) -> None:
    running = await fleet(Script())
    options = ("--target", running.target, "--api-key", API_KEY, "--mode", "proxy")
    done = await penstock("chat", "--system", "Be brief.", *options, stdin="one\ntwo\n\n")

    assert done.status == 0
    turns = [(m.role, m.content) for m in running.proxied.requests[1].chat.messages]
    assert turns == [
        ("system", "Be brief."),
        ("user", "one"),
        ("assistant", "0 1 2 "),
        ("user", "two"),
    ]


async def test_fleet_and_explain_answer_in_json(fleet: FleetFactory) -> None:
    running = await fleet(Script())
    options = ("--target", running.target, "--api-key", API_KEY, "--json")
    workers, decision = await asyncio.gather(
        penstock("fleet", *options), penstock("explain", "dec_1", *options)
    )

    assert len(json.loads(workers.out)) == 1
    assert json.loads(decision.out)["decision"]["decision_id"] == "dec_1"


async def test_failures_are_one_sentence_and_status_1(fleet: FleetFactory) -> None:
    running = await fleet(Script(error=InvalidRequest("top_p is 2", field="sampling.top_p")))
    options = ("--target", running.target, "--api-key", API_KEY)
    with socket.socket() as closed:  # bound and not listening: refuses connections
        closed.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{closed.getsockname()[1]}"
        answers = await asyncio.gather(
            penstock("generate", "hi", *options),
            penstock("generate", "hi", "--target", running.target, "--api-key", "pk-bad"),
            penstock("explain", "req_unknown", *options),
            penstock("fleet", "--target", nobody),
            penstock("batch", "submit", "/no/such/file.jsonl"),
        )

    sentences = ("top_p is 2", "--api-key", "no such decision", "penstock up", "No such file")
    for done, sentence in zip(answers, sentences, strict=True):
        assert (done.status, done.out) == (1, "")
        assert sentence in done.err
        assert "Traceback" not in done.err


async def test_usage_errors_are_status_2() -> None:
    answers = await asyncio.gather(
        penstock("generate"), penstock("nonsense"), penstock("up", "--workers", "0")
    )

    assert [done.status for done in answers] == [2, 2, 2]


async def test_version_is_told() -> None:
    assert (await penstock("--version")).out == f"penstock {VERSION}\n"


@pytest.mark.parametrize(
    ("command", "number", "status"),
    [
        (("generate", "hi"), signal.SIGINT, 130),
        (("generate", "hi"), signal.SIGTERM, 143),
        (("chat", "--message", "hi"), signal.SIGINT, 130),
    ],
)
async def test_stopped_command_ends_its_request_and_says_how_by_its_status(
    fleet: FleetFactory, command: tuple[str, ...], number: signal.Signals, status: int
) -> None:
    running = await fleet(Script(hangs=True))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "penstock_cli", *command, "--target", running.target),
        *("--api-key", API_KEY),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(30):
        assert await process.stdout.readexactly(2) == b"0 "
        process.send_signal(number)
        _, err = await process.communicate()
        await running.workers[0].ended.wait()

    assert process.returncode == status
    assert b"Traceback" not in err


def test_every_command_has_an_example() -> None:
    app = build_app()
    commands = list(app.registered_commands)
    for group in app.registered_groups:
        assert group.typer_instance is not None
        commands += group.typer_instance.registered_commands

    assert len(commands) > 8
    for command in commands:
        assert command.epilog is not None
        assert command.epilog.startswith("Example: penstock ")
