"""No RPC and no route admits strangers, nor one tenant to another's; found by asking the servers.

A new RPC is found by reflection, a new route in the application's table: one without a check fails.
"""

from contextlib import aclosing
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from penstock.batch.v1 import batch_service_pb2 as batch_pb
from penstock.routing.v1 import routing_service_pb2 as routing_pb
from penstock_client import AsyncBatchClient, AsyncClient, Started
from penstock_core.errors import NotFound, PermissionDenied, Unauthenticated
from penstock_core.rpc.channels import channel
from penstock_core.security.leases import internal_key
from penstock_gateway.app import Upstreams, build_app
from penstock_gateway.edge import Edge
from penstock_gateway.gate import Gate
from penstock_gateway.settings import GatewaySettings
from penstock_gateway.upstream import BatchClient, RouterClient
from penstock_testing.callers.reflection import Method, methods_of, refusal
from penstock_testing.servers.guarded import LEASE_SECRET, Guarded, guarded_platform

OPEN_SERVICES = {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
OPEN_ROUTES = {"/healthz", "/readyz", "/metrics"}
ACME = (("authorization", "Bearer pk-acme"),)
RIVAL = (("authorization", "Bearer pk-rival"),)
AS_ACME = (*RIVAL, ("x-penstock-tenant", "acme"))
STRANGERS = {
    "nobody": (),
    "an unknown key": (("authorization", "Bearer pk-nobody"),),
    "another scheme": (("authorization", "Basic pk-acme"),),
}


async def guarded_methods(platform: Guarded) -> list[tuple[str, Method]]:
    found = []
    for target in (platform.worker.endpoint, platform.router, platform.batch):
        methods = await methods_of(target)
        assert {m.service for m in methods} >= OPEN_SERVICES
        found += [(target, m) for m in methods if m.service not in OPEN_SERVICES]
    return found


@pytest.mark.parametrize("who", STRANGERS)
async def test_every_rpc_refuses_strangers(tmp_path: Path, redis_url: str, who: str) -> None:
    async with guarded_platform(tmp_path, redis_url) as platform:
        methods = await guarded_methods(platform)
        admitted = []
        for target, method in methods:
            error = await refusal(target, method, STRANGERS[who])
            if not isinstance(error, Unauthenticated | PermissionDenied):
                admitted.append((method.path, error))
    assert len({m.path for _, m in methods}) >= 26
    assert admitted == []


async def test_every_rpc_refuses_a_tenant_that_asks_in_anothers_name(
    tmp_path: Path, redis_url: str
) -> None:
    async with guarded_platform(tmp_path, redis_url) as platform:
        admitted = []
        for target, method in await guarded_methods(platform):
            error = await refusal(target, method, AS_ACME)
            if not isinstance(error, Unauthenticated | PermissionDenied):
                admitted.append((method.path, error))
    assert admitted == []


async def test_a_tenants_key_opens_nothing_of_a_workers_own(tmp_path: Path, redis_url: str) -> None:
    async with guarded_platform(tmp_path, redis_url) as platform:
        methods = await methods_of(platform.worker.endpoint)
        guarded = [m for m in methods if m.service not in OPEN_SERVICES]
        errors = [await refusal(platform.worker.endpoint, m, ACME) for m in guarded]
        ours = (("authorization", f"Bearer {internal_key(LEASE_SECRET.encode())}"),)
        control = next(m for m in guarded if m.path.endswith("/GetWorker"))
        admitted = await refusal(platform.worker.endpoint, control, ours)
    assert all(isinstance(e, Unauthenticated | PermissionDenied) for e in errors)
    assert admitted is None


async def test_what_belongs_to_a_tenant_does_not_exist_for_another(
    tmp_path: Path, redis_url: str
) -> None:
    """Every RPC that takes the id of something a tenant owns; the ids are real ones."""
    source = tmp_path / "in.jsonl"
    source.write_text(
        '{"custom_id": "a", "method": "POST", "url": "/v1/completions", '
        '"body": {"model": "fake", "prompt": "x"}}\n'
    )
    async with guarded_platform(tmp_path, redis_url) as platform:
        async with AsyncBatchClient(platform.batch, api_key="pk-acme") as batches:
            file = await batches.upload(source)
            batch = await batches.create(file.id, endpoint="/v1/completions")
        async with AsyncClient(platform.router, api_key="pk-acme") as client:
            request_id = (await started(client)).request_id
        requests = {
            "GetBatch": batch_pb.GetBatchRequest(batch_id=batch.id),
            "CancelBatch": batch_pb.CancelBatchRequest(batch_id=batch.id),
            "WatchBatch": batch_pb.WatchBatchRequest(batch_id=batch.id),
            "StreamResults": batch_pb.StreamResultsRequest(batch_id=batch.id),
            "CreateBatch": batch_pb.CreateBatchRequest(
                input_file_id=file.id, endpoint="/v1/completions", completion_window_s=86400
            ),
            "GetFile": batch_pb.GetFileRequest(file_id=file.id),
            "DownloadFile": batch_pb.DownloadFileRequest(file_id=file.id),
            "DeleteFile": batch_pb.DeleteFileRequest(file_id=file.id),
            "ExplainDecision": routing_pb.ExplainDecisionRequest(request_id=request_id),
        }
        methods = {m.path.rpartition("/")[2]: (t, m) for t, m in await guarded_methods(platform)}
        seen = {}
        for name, request in requests.items():
            target, method = methods[name]
            seen[name] = await refusal(target, method, RIVAL, request.SerializeToString())
        mine = await refusal(
            *methods["ExplainDecision"], ACME, requests["ExplainDecision"].SerializeToString()
        )
    assert {name for name, error in seen.items() if not isinstance(error, NotFound)} == set()
    assert mine is None


async def started(client: AsyncClient) -> Started:
    """The start of a fresh stream: it names the request."""
    events = client.stream("hello again", model="fake", max_tokens=2)
    async with aclosing(events):
        async for event in events:
            assert isinstance(event, Started)
            return event
    raise AssertionError("an empty stream")


async def test_every_route_refuses_strangers_before_it_reads_their_body(
    tmp_path: Path, redis_url: str
) -> None:
    async with (
        guarded_platform(tmp_path, redis_url) as platform,
        httpx.AsyncClient(base_url=platform.gateway) as http,
    ):
        routes = await declared_routes(platform)
        admitted = []
        for path, method in routes:
            for headers in ({}, {"authorization": "Bearer pk-nobody"}, dict(AS_ACME)):
                answer = await http.request(method, path, headers=headers, content=b"\xff{")
                if answer.status_code not in (401, 403):
                    admitted.append((path, method, answer.status_code))
        probes = {path: (await http.get(path)).status_code for path in sorted(OPEN_ROUTES)}
        nowhere = await http.get("/v1/none")
    assert len(routes) >= 14
    assert admitted == []
    assert probes == dict.fromkeys(sorted(OPEN_ROUTES), 200)
    assert nowhere.status_code == 401


async def declared_routes(platform: Guarded) -> list[tuple[str, str]]:
    """Every path with each of its methods, save those that are open to all."""
    settings = GatewaySettings()
    async with channel(platform.router) as router, channel(platform.batch) as batch:
        upstreams = Upstreams(RouterClient(router, 1.0), BatchClient(batch, 1.0))
        edge = build_app(upstreams, Gate(1), settings)
    assert isinstance(edge, Edge)
    app = edge.app
    assert isinstance(app, Starlette)
    found = []
    for route in app.routes:
        assert isinstance(route, Route), "a mount or a socket needs a check of its own here"
        if route.path not in OPEN_ROUTES:
            path = route.path.replace("{model:path}", "m").replace("{", "").replace("}", "")
            found += [(path, method) for method in route.methods or ()]
    return found


async def test_a_tenants_files_and_batches_do_not_exist_for_another_over_http(
    tmp_path: Path, redis_url: str
) -> None:
    async with (
        guarded_platform(tmp_path, redis_url) as platform,
        httpx.AsyncClient(base_url=platform.gateway) as http,
    ):
        line = b'{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {}}\n'
        mine, theirs = dict(ACME), dict(RIVAL)
        stored = await http.post(
            "/v1/files",
            headers=mine,
            data={"purpose": "batch"},
            files={"file": ("in.jsonl", line)},
        )
        file_id = stored.json()["id"]
        paths = [("GET", f"/v1/files/{file_id}"), ("GET", f"/v1/files/{file_id}/content"),
                 ("DELETE", f"/v1/files/{file_id}")]  # fmt: skip
        theirs_seen = [(await http.request(m, p, headers=theirs)).status_code for m, p in paths]
        listed = (await http.get("/v1/files", headers=theirs)).json()["data"]
        mine_seen = (await http.get(f"/v1/files/{file_id}", headers=mine)).status_code
    assert theirs_seen == [404, 404, 404]
    assert listed == []
    assert mine_seen == 200
