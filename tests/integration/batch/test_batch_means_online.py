"""A batch's line means exactly what the same body means online."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from penstock_batch.batches import NewBatch
from penstock_batch.state.fold import Status
from penstock_openai.embeddings import EMBEDDINGS
from penstock_openai.generations import CHAT, COMPLETIONS
from penstock_testing.servers.batch import TENANT, batch_bench
from penstock_testing.servers.echo_router import EchoRouter, running_echo
from penstock_testing.servers.gateway import running_gateway

TOOL = {"type": "function", "function": {"name": "f"}}
USER = {"role": "user", "content": "hello"}
CALLS = {"role": "user", "content": '<tool_call>{"name": "f", "arguments": {}}</tool_call>' * 2}
# Goes with a prompt that is refused; whether it is asked for before that is a race.
FINE = "fine"
EMBEDDING_BODIES: list[dict[str, Any]] = [
    {"input": "x"},
    {"input": ["one", "two"], "encoding_format": "base64"},
    {"input": [[1, 2], [3]], "dimensions": 1},
    {"input": [4, 5], "pooling": "mean", "user": "me"},
    {"input": ""},
    {"input": []},
    {"input": "x", "nonsense": 1},
    {"input": "x", "dimensions": 0},
]
OWN_WORDS = ("id", "created", "penstock")

COMPLETION_BODIES: list[dict[str, Any]] = [
    {"prompt": "x"},
    {"prompt": ["one", "two", "three"], "n": 1, "seed": 3},
    {"prompt": [[1, 2], [3]], "max_tokens": 4, "logit_bias": {"7": -1}},
    {"prompt": "x", "logprobs": 1, "echo": True, "stop": ["a", "b"], "user": "me"},
    {"prompt": "x", "max_tokens": None, "stream": False, "suffix": ""},
    {"prompt": ""},
    {"prompt": [FINE, ""]},
    {"prompt": "x", "suffix": "end"},
    {"prompt": "x", "stream_options": {"include_usage": True}},
    {"prompt": "x", "temperature": "hot"},
    {"prompt": "x", "temperature": 99},
    {"prompt": "x", "best_of": 1, "n": 2},
    {"prompt": "x", "stop_token_ids": [-1]},
    {"prompt": "x", "nonsense": 1},
]
CHAT_BODIES: list[dict[str, Any]] = [
    {"messages": [USER]},
    {"messages": [{"role": "system", "content": [{"type": "text", "text": "be"}]}, USER]},
    {"messages": [USER], "logprobs": True, "top_logprobs": 2, "max_completion_tokens": 3},
    {"messages": [USER], "tools": [TOOL], "tool_choice": "auto", "verbosity": "low"},
    {"messages": [CALLS], "tools": [TOOL]},
    {"messages": [CALLS], "tools": [TOOL], "parallel_tool_calls": False},
    {"messages": [CALLS], "tools": [TOOL], "tool_choice": "none"},
    {"messages": [USER], "response_format": {"type": "json_object"}},
    {"messages": [USER], "tools": [TOOL], "tool_choice": "required"},
    {"messages": [USER], "tools": [TOOL], "tool_choice": TOOL},
    {"messages": [USER], "tool_choice": "auto"},
    {"messages": [USER], "top_logprobs": 2},
    {"messages": [{"role": "user"}]},
    {"messages": []},
]


def without_own_words(body: dict[str, Any]) -> dict[str, Any]:
    """A body without what differs between any two answers."""
    for choice in body.get("choices", ()):
        for call in choice.get("message", {}).get("tool_calls", ()):
            del call["id"]
    return {name: value for name, value in body.items() if name not in OWN_WORDS}


def asked(router: EchoRouter) -> list[bytes]:
    """What the router was asked, without ids and priority, in any order."""
    generated = [request for request in router.requests if request.text != FINE]
    requests = [*generated, *router.embeds]
    for request in requests:
        request.ClearField("request_id")
        request.ClearField("priority")
    return sorted(request.SerializeToString(deterministic=True) for request in requests)


async def online(address: str, path: str, bodies: list[dict[str, Any]]) -> list[tuple[int, Any]]:
    async with running_gateway(address) as gateway, httpx.AsyncClient() as http:
        answers = [await http.post(gateway.url + path, json=body) for body in bodies]
        return [(answer.status_code, without_own_words(answer.json())) for answer in answers]


def input_file(path: str, bodies: list[dict[str, Any]]) -> bytes:
    lines = [
        {"custom_id": str(number), "method": "POST", "url": path, "body": body}
        for number, body in enumerate(bodies)
    ]
    return "\n".join(map(json.dumps, lines)).encode()


@pytest.mark.parametrize(
    ("path", "bodies"),
    [(COMPLETIONS, COMPLETION_BODIES), (CHAT, CHAT_BODIES), (EMBEDDINGS, EMBEDDING_BODIES)],
)
async def test_a_line_means_what_its_body_means_online(
    path: str, bodies: list[dict[str, Any]], tmp_path: Path, redis_url: str
) -> None:
    bodies = [{"model": "penstock-demo", **body} for body in bodies]
    by_http, by_batch = EchoRouter(), EchoRouter()
    async with running_echo(by_http) as address:
        wanted = await online(address, path, bodies)

    async with (
        running_echo(by_batch) as address,
        batch_bench(tmp_path, redis_url, address) as bench,
    ):
        file = await bench.upload(input_file(path, bodies))
        batch = await bench.batches.create(TENANT, NewBatch(file.id, path))
        await bench.run_all()
        batch = await bench.batches.get(TENANT, batch.id)
        lines = [*await bench.output(batch), *await bench.errors(batch)]

    assert batch.status is Status.COMPLETED
    responses = {int(line["custom_id"]): line["response"] for line in lines}
    found = [responses[number] for number in range(len(bodies))]
    assert [(r["status_code"], without_own_words(r["body"])) for r in found] == wanted
    assert {status for status, _ in wanted} == {200, 400}
    assert path != CHAT or any("tool_calls" in str(body) for _, body in wanted)
    assert asked(by_batch) == asked(by_http)
