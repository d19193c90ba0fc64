"""Throws malformed requests at a whole platform: gRPC bytes, HTTP bodies and heads, JSONL.

What must hold is told by ``Report``: nothing answered as a defect, everybody still serves, and what
the platform held before (tasks, open requests, pages, descriptors) it holds after.
"""

import asyncio
import gc
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx
import psutil

from penstock.batch.v1 import batch_service_pb2 as batch_pb
from penstock.inference.v1 import generate_pb2
from penstock.inference.v1 import inference_service_pb2 as inference_pb
from penstock.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from penstock.routing.v1 import routing_service_pb2 as routing_pb
from penstock.worker.v1 import relay_pb2
from penstock.worker.v1 import worker_service_pb2 as worker_pb
from penstock_core.rpc.channels import channel
from penstock_core.security.leases import internal_key
from penstock_core.telemetry.tracing import Metadata
from penstock_testing.callers.reflection import Method, methods_of
from penstock_testing.servers.guarded import LEASE_SECRET, Guarded

_TIMEOUT_S = 1.0
_DEFECTS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS}
_SETTLE_S = 20.0
_AT_ONCE = 8
# It would end the worker, as it should.
_NEVER = "/Drain"
_MODEL = "fake"


@dataclass(slots=True)
class Report:
    """What came of it. ``defects`` must be empty."""

    answers: Counter[str] = field(default_factory=Counter)
    defects: list[str] = field(default_factory=list)
    tasks: tuple[int, int] = (0, 0)
    descriptors: tuple[int, int] = (0, 0)
    memory_mib: tuple[float, float] = (0.0, 0.0)
    memory_by_tenth: list[float] = field(default_factory=list)
    open_requests: int = 0
    used_blocks: int = 0

    @property
    def count(self) -> int:
        """Requests that were sent."""
        return self.answers.total()


class Fuzzer:
    """Makes and sends requests; equal seeds make equal ones."""

    def __init__(self, platform: Guarded, seed: int) -> None:
        self._platform = platform
        self._random = random.Random(seed)
        self._report = Report()
        self._methods: list[tuple[str, Method]] = []
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._open: set[asyncio.StreamWriter] = set()

    async def run(self, count: int) -> Report:
        """Send so many; measured against what the platform held after a tenth of them."""
        targets = (self._platform.worker.endpoint, self._platform.router, self._platform.batch)
        for target in targets:
            self._methods += [(target, m) for m in await methods_of(target)]
        report, tenth = self._report, max(count // 10, 1)
        await self._warm()
        await self._send(tenth)
        before = after = await self._measured()
        report.memory_by_tenth.append(before[2])
        while (left := count - report.count) > 0:
            await self._send(min(left, tenth))
            after = await self._measured()
            report.memory_by_tenth.append(after[2])
        report.tasks, report.descriptors, report.memory_mib = zip(before, after, strict=True)  # type: ignore[assignment]
        engine = self._platform.worker.engine.state()
        report.open_requests = engine.running + engine.waiting
        report.used_blocks = engine.used_blocks
        return report

    async def _warm(self) -> None:
        """What begins with the first good request and stays is no leak."""
        async with channel(self._platform.router) as to:
            request = generate_pb2.GenerateRequest(model=_MODEL, text="warm")
            request.stop.max_tokens = 1
            key = (("authorization", "Bearer pk-acme"),)
            async for _ in InferenceServiceStub(to).Generate(request, metadata=key, timeout=10):
                pass

    async def _send(self, count: int) -> None:
        kinds: list[Callable[[httpx.AsyncClient], Awaitable[str]]] = [
            self._rpc, self._rpc, self._rpc, self._http, self._http, self._head, self._jsonl, self._garbage
        ]  # fmt: skip
        targets = {target for target, _ in self._methods}
        self._channels = {target: channel(target) for target in targets}
        async with httpx.AsyncClient(base_url=self._platform.gateway, timeout=10) as http:

            async def some(first: int) -> None:
                for number in range(first, count, _AT_ONCE):
                    kind = kinds[self._random.randrange(len(kinds))]
                    try:
                        self._report.answers[await kind(http)] += 1
                    except AssertionError as error:
                        self._report.answers["defect"] += 1
                        self._report.defects.append(f"{number}: {error}")

            # Not a task for each request: what they take all at once would pass for a leak.
            async with asyncio.TaskGroup() as group:
                for first in range(_AT_ONCE):
                    group.create_task(some(first))
        for to in self._channels.values():
            await to.close()

    async def _measured(self) -> tuple[int, int, float]:
        """Tasks, descriptors and memory once everything has come to rest."""
        process = psutil.Process()
        async with asyncio.timeout(_SETTLE_S):
            while self._platform.worker.engine.state().running:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await asyncio.sleep(1.0)
        gc.collect()
        memory = process.memory_info().rss / 2**20
        return len(asyncio.all_tasks()), process.num_fds(), memory

    async def _rpc(self, _http: httpx.AsyncClient) -> str:
        target, method = self._random.choice(self._methods)
        request, metadata = self._message(method), self._metadata(target, method)
        code = await _code(self._channels[target], method, request, metadata)
        if code in _DEFECTS:
            raise AssertionError(f"{method.path} {code.name}: {request[:200]!r} {metadata}")
        return f"grpc {code.name}"

    def _message(self, method: Method) -> bytes:
        name = method.path.rpartition("/")[2]
        valid = _valid(name, self._random)
        return self._mutated(valid) if self._random.random() < 0.8 else self._bytes(200)

    def _metadata(self, target: str, method: Method) -> Metadata:
        r = self._random
        is_workers = target == self._platform.worker.endpoint
        key = internal_key(LEASE_SECRET.encode()) if is_workers else "pk-acme"
        if method.path.endswith(_NEVER):
            key = "pk-acme"
        pairs = [("authorization", f"Bearer {key}")] if r.random() < 0.8 else []
        if r.random() < 0.3:
            name = r.choice(["traceparent", "x-penstock-tenant", "authorization", "baggage", "x-y"])
            pairs.append((name, self._text(r.choice([1, 20, 200, 4000]))))
        if r.random() < 0.1:
            pairs.append(("x-y-bin", self._bytes(50)))  # type: ignore[arg-type]
        return tuple(pairs)

    async def _http(self, http: httpx.AsyncClient) -> str:
        r = self._random
        path = r.choice(["/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/v1/batches",
                         "/v1/files", "/v1/models/x", "/v1/files/x/content", "/v1/batches/x/cancel"])  # fmt: skip
        body = self._mutated(json.dumps(self._body(path)).encode())
        if r.random() < 0.3:
            body = json.dumps(self._wild_body(path)).encode()
        headers = {"authorization": "Bearer pk-acme" if r.random() < 0.9 else self._text(10)}
        headers["content-type"] = "application/json" if r.random() < 0.9 else self._text(10)
        method = r.choice(["POST", "POST", "POST", "GET", "DELETE", "PUT"])
        answer = await http.request(method, path, content=body, headers=headers)
        if answer.status_code in (500, 502):
            raise AssertionError(f"{method} {path} {answer.status_code}: {body[:300]!r}")
        return f"http {answer.status_code}"

    async def _head(self, _http: httpx.AsyncClient) -> str:
        """Bytes on a socket that a client library would never send."""
        r = self._random
        lines = [f"{r.choice(['GET', 'POST', 'BREW', ''])} /v1/{self._text(8)} HTTP/1.1".encode()]
        lines += [b"host: x"] * (r.random() < 0.9)
        for _ in range(r.choice([0, 3, 30, 300])):
            lines.append(self._bytes(20).replace(b"\n", b"") + b": " + self._bytes(40))
        lines.append(b"content-length: " + r.choice([b"0", b"-1", b"99999999999", b"x"]))
        lines.append(b"x-long: " + b"a" * r.choice([0, 10, 70_000, 200_000]))
        raw = b"\r\n".join(lines) + b"\r\n\r\n" * (r.random() < 0.8)
        return "head " + await self._spoken(self._platform.gateway.removeprefix("http://"), raw)

    async def _garbage(self, _http: httpx.AsyncClient) -> str:
        r = self._random
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" if r.random() < 0.5 else b""
        targets = [target for target, _ in self._methods]
        return "garbage " + await self._spoken(r.choice(targets), preface + self._bytes(2000))

    async def _spoken(self, address: str, raw: bytes) -> str:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(raw)
            await writer.drain()
            async with asyncio.timeout(0.3):
                answer = await reader.read(64)
        except TimeoutError:
            return "silence"
        except OSError:
            return "reset"
        finally:
            writer.close()
        if answer.startswith(b"HTTP/1.1 500"):
            raise AssertionError(f"500 for {raw[:300]!r}")
        return (
            answer[9:12].decode("ascii", "replace") if answer.startswith(b"HTTP/1.1") else "frames"
        )

    async def _jsonl(self, http: httpx.AsyncClient) -> str:
        line = {
            "custom_id": "a",
            "method": "POST",
            "url": "/v1/completions",
            "body": self._body(""),
        }
        lines = [json.dumps(line).encode() for _ in range(self._random.randint(1, 5))]
        data = self._mutated(b"\n".join(lines))
        mine = {"authorization": "Bearer pk-acme"}
        stored = await http.post(
            "/v1/files", headers=mine, data={"purpose": "batch"}, files={"file": ("f.jsonl", data)}
        )
        if stored.status_code != 200:
            raise AssertionError(f"upload {stored.status_code}: {data[:200]!r}")
        from penstock_batch.planning.validator import check_input  # noqa: PLC0415 - what `work` runs first

        check_input(data, "/v1/completions")
        file_id = stored.json()["id"]
        await http.delete(f"/v1/files/{file_id}", headers=mine)
        return "jsonl"

    def _body(self, path: str) -> dict[str, object]:
        body: dict[str, object] = {"model": _MODEL, "max_tokens": 2}
        if path.endswith("chat/completions"):
            return body | {"messages": [{"role": "user", "content": "hi"}]}
        if path.endswith("embeddings"):
            return {"model": _MODEL, "input": ["a", "b"]}
        return body | {"prompt": "hello"}

    def _wild_body(self, path: str) -> dict[str, object]:
        r, body = self._random, self._body(path)
        deep: object = 1
        for _ in range(r.choice([5, 100, 900])):
            deep = [deep] if r.random() < 0.5 else {"a": deep}
        wild: list[object] = [
            None,
            -1,
            1e308,
            2**70,
            "",
            "x" * 5000,
            [],
            {},
            deep,
            True,
            "\ud800"[:0],
        ]
        names = [*body, "temperature", "n", "stop", "seed", "logit_bias", "tools", "tool_choice",
                 "response_format", "stream", "logprobs", "user", self._text(9)]  # fmt: skip
        for _ in range(r.randint(1, 3)):
            body[r.choice(names)] = r.choice(wild)
        if r.random() < 0.3:
            schema = {"name": "s", "schema": {"type": "object", "properties": {"a": deep}}}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body

    def _mutated(self, data: bytes) -> bytes:
        r, out = self._random, bytearray(data)
        for _ in range(r.randint(0, 4)):
            at = r.randrange(len(out) + 1)
            kind = r.randrange(4)
            if kind == 0 and out:
                out[at % len(out)] = r.randrange(256)
            elif kind == 1:
                out[at:at] = self._bytes(20)
            elif kind == 2:
                del out[at : at + r.randint(1, 10)]
            else:
                out[at:at] = out[: r.randrange(len(out) + 1)]
        return bytes(out)

    def _bytes(self, most: int) -> bytes:
        return self._random.randbytes(self._random.randint(0, most))

    def _text(self, size: int) -> str:
        return "".join(self._random.choice("abc-_.:/%\\'\"{}09 ") for _ in range(size)).strip()


async def _code(
    to: grpc.aio.Channel, method: Method, request: bytes, metadata: Metadata
) -> grpc.StatusCode:
    """The status that a raw call ends with; its stream is read for a moment."""
    told: dict[str, Any] = {"timeout": _TIMEOUT_S, "metadata": metadata}

    async def requests() -> AsyncIterator[bytes]:
        yield request

    shape = (method.client_streaming, method.server_streaming)
    try:
        if shape == (False, True):
            call = to.unary_stream(method.path, _same, _same)(request, **told)
            for _ in range(20):
                if await call.read() is grpc.aio.EOF:
                    break
            call.cancel()
        elif shape == (True, True):
            both = to.stream_stream(method.path, _same, _same)(requests(), **told)
            await both.read()
            both.cancel()
        elif shape == (True, False):
            await to.stream_unary(method.path, _same, _same)(requests(), **told)
        else:
            await to.unary_unary(method.path, _same, _same)(request, **told)
    except grpc.aio.AioRpcError as error:
        return error.code()
    except (ValueError, TypeError, grpc.aio.UsageError):
        return grpc.StatusCode.CANCELLED  # gRPC itself refuses to send such metadata
    return grpc.StatusCode.OK


def _same(raw: bytes) -> bytes:
    return raw


def _valid(name: str, r: random.Random) -> bytes:
    """A request that the method would take, so that its mutants get past the first check."""
    generate = generate_pb2.GenerateRequest(model=_MODEL, text="hello")
    generate.stop.max_tokens = 2
    if r.random() < 0.3:
        generate.constraint.json_schema = '{"type": "object"}'
    if r.random() < 0.3:
        generate.sampling.n = 2
    made = {
        "Generate": generate,
        "Embed": inference_pb.EmbedRequest(model=_MODEL, texts=["a", "b"]),
        "Tokenize": inference_pb.TokenizeRequest(model=_MODEL, text="hello"),
        "Detokenize": inference_pb.DetokenizeRequest(model=_MODEL),
        "GetModel": inference_pb.GetModelRequest(model=_MODEL),
        "Route": routing_pb.RouteRequest(request=generate, excluded_worker_ids=["w"]),
        "ExplainDecision": routing_pb.ExplainDecisionRequest(request_id="r"),
        "WatchState": worker_pb.WatchStateRequest(subscriber_id="s", epoch="e", resume_after_seq=3),
        "Relay": relay_pb2.RelayRequest(
            opened=[
                relay_pb2.OpenedStream(
                    stream_id=1, request=generate.SerializeToString(), timeout_s=3, credit_bytes=9
                )
            ],
            credits=[relay_pb2.StreamCredit(stream_id=1, bytes=100)],
            cancelled=[2],
        ),
        "Abort": worker_pb.AbortRequest(request_id="r"),
        "CreateBatch": batch_pb.CreateBatchRequest(
            input_file_id="file_1", endpoint="/v1/completions"
        ),
        "ListBatches": batch_pb.ListBatchesRequest(after="batch_1", limit=3),
        "GetBatch": batch_pb.GetBatchRequest(batch_id="batch_1"),
        "ListFiles": batch_pb.ListFilesRequest(after="file_1", limit=3, purpose="batch"),
        "UploadFile": batch_pb.UploadFileRequest(
            description=batch_pb.FileDescription(filename="f", purpose="batch")
        ),
        "DownloadFile": batch_pb.DownloadFileRequest(file_id="file_1", offset=3),
        "StreamResults": batch_pb.StreamResultsRequest(batch_id="batch_1", skip=1),
    }
    message = made.get(name)
    return message.SerializeToString() if message is not None else b"\n\x01a"
