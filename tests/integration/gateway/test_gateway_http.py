"""Bad HTTP gets a clear answer in OpenAI's shape, whatever is wrong with it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from penstock_testing.servers.gateway import RunningGateway, running_gateway
from penstock_testing.servers.memory_batches import Stored, running_batches
from penstock_testing.servers.scripted_router import MODEL, Script, running_router

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = "/v1/chat/completions"
LIMIT = 4096
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def script() -> Script:
    return Script()


@pytest.fixture(scope="module")
def stored() -> Stored:
    return Stored()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def gateway(script: Script, stored: Stored) -> AsyncIterator[RunningGateway]:
    async with (
        running_router(script) as router,
        running_batches(stored) as batch,
        running_gateway(router, batch, max_body_bytes=LIMIT, max_upload_bytes=2 * LIMIT) as gateway,
    ):
        yield gateway


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def http(gateway: RunningGateway) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=gateway.url, timeout=10) as client:
        yield client


def error_of(response: httpx.Response) -> dict[str, object]:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    found: dict[str, object] = error
    return found


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "could not parse"),
        (b"", "could not parse"),
        (b'{"model": "\xff"}', "no UTF-8"),
        (b'{"model": "\\ud800", "messages": []}', "could not parse"),
        (b"[1]", "object"),
        (b'{"model": "m", "messages": [], "temperature": NaN}', "could not parse"),
        (b'{"messages": []}', "Missing required parameter: 'model'"),
        (b'{"model": "m", "messages": [], "temperature": "hot"}', "'temperature'"),
        (b"[" * 2000, "could not parse"),
    ],
)
async def test_a_body_that_is_no_request_is_a_400(
    http: httpx.AsyncClient, body: bytes, says: str
) -> None:
    response = await http.post(CHAT, content=body, headers=JSON)

    assert response.status_code == 400
    assert says in str(error_of(response)["message"])


async def test_a_nan_never_reaches_the_router(http: httpx.AsyncClient, script: Script) -> None:
    body = f'{{"model": "{MODEL}", "prompt": "x", "temperature": 1e999}}'.encode()

    response = await http.post("/v1/completions", content=body, headers=JSON)

    assert response.status_code == 400


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
async def test_a_body_declared_as_something_else_is_refused(
    http: httpx.AsyncClient, kind: str | None
) -> None:
    headers = {} if kind is None else {"content-type": kind}

    response = await http.post(CHAT, content=b"{}", headers=headers)

    assert response.status_code == 415
    assert error_of(response)["code"] == "unsupported_media_type"


async def test_a_charset_in_the_content_type_does_no_harm(http: httpx.AsyncClient) -> None:
    response = await http.post(
        "/v1/completions",
        content=f'{{"model": "{MODEL}", "prompt": "x"}}'.encode(),
        headers={"content-type": "Application/JSON; charset=utf-8"},
    )

    assert response.status_code == 200


async def _pieces(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b" " * 1024


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_body_beyond_the_limit_is_a_413(http: httpx.AsyncClient, is_chunked: bool) -> None:
    content = _pieces(LIMIT // 1024 + 1) if is_chunked else b" " * (LIMIT + 1)

    response = await http.post(CHAT, content=content, headers=JSON)

    assert response.status_code == 413
    assert error_of(response)["code"] == "request_too_large"


async def test_an_upload_beyond_the_limit_is_a_413_and_stores_nothing(
    http: httpx.AsyncClient, stored: Stored
) -> None:
    before = len(stored.files)

    response = await http.post(
        "/v1/files", files={"file": ("x", b"y" * 3 * LIMIT)}, data={"purpose": "batch"}
    )

    assert response.status_code == 413
    assert len(stored.files) == before


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("GET", "/", 404),
        ("POST", "/v1/chat/completions/", 404),
        ("GET", CHAT, 405),
        ("DELETE", "/v1/models", 405),
        ("PATCH", "/v1/models", 405),
    ],
)
async def test_an_unknown_path_or_method_is_told(
    http: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    response = await http.request(method, path)

    assert response.status_code == status
    assert f"{method} {path}" in str(error_of(response)["message"])


@pytest.mark.parametrize(
    ("given", "is_kept"), [("mine-1", True), ("bad id", False), ("é", False), ("x" * 200, False)]
)
async def test_a_safe_request_id_comes_back(
    http: httpx.AsyncClient, script: Script, given: str, is_kept: bool
) -> None:
    response = await http.post(
        "/v1/completions",
        json={"model": MODEL, "prompt": "x"},
        headers=[(b"x-request-id", given.encode())],
    )

    shown = response.headers["x-request-id"]
    assert (shown == given) is is_kept
    assert script.requests[-1].request_id.startswith(shown)


async def test_a_repeated_request_id_is_two_requests_to_the_router(
    http: httpx.AsyncClient, script: Script
) -> None:
    headers = {"x-request-id": "again"}
    for _ in range(2):
        await http.post("/v1/completions", json={"model": MODEL, "prompt": "x"}, headers=headers)

    first, second = (request.request_id for request in script.requests[-2:])
    assert first != second


async def test_credentials_and_trace_travel_on(http: httpx.AsyncClient, script: Script) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    headers = {
        "authorization": "Bearer k",
        "x-penstock-tenant": "acme",
        "traceparent": f"00-{trace_id}-b7ad6b7169203331-01",
    }
    await http.post("/v1/completions", json={"model": MODEL, "prompt": "x"}, headers=headers)

    sent = script.metadata[-1]
    assert (sent["authorization"], sent["x-penstock-tenant"]) == ("Bearer k", "acme")
    assert trace_id in sent["traceparent"]


async def test_credentials_that_no_header_may_hold_are_a_401(http: httpx.AsyncClient) -> None:
    headers = [(b"authorization", "Bearer é".encode())]

    response = await http.get("/v1/models", headers=headers)

    assert response.status_code == 401


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"data": {"purpose": "batch"}, "files": {"other": b"x"}}, "file"),
        ({"files": {"file": b"x"}}, "purpose"),
        ({"data": {"purpose": "batch", "junk": "1"}, "files": {"file": b"x"}}, "junk"),
        ({"data": {"purpose": "x" * 5000}, "files": {"file": b"x"}}, "purpose"),
    ],
)
async def test_a_wrong_form_names_its_field(
    http: httpx.AsyncClient, stored: Stored, form: dict[str, Any], param: str
) -> None:
    before = len(stored.files)

    response = await http.post("/v1/files", **form)

    assert response.status_code == 400
    assert error_of(response)["param"] == param
    assert len(stored.files) == before


@pytest.mark.parametrize(("purpose", "status"), [("batch", 200), ("vision", 400)])
async def test_the_purpose_may_follow_the_file(
    http: httpx.AsyncClient, stored: Stored, purpose: str, status: int
) -> None:
    before = len(stored.files)
    form: dict[str, Any] = {"file": ("lines.jsonl", b"{}"), "purpose": (None, purpose)}

    response = await http.post("/v1/files", files=form)

    assert response.status_code == status
    assert len(stored.files) - before == (1 if status == 200 else 0)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b""),
        ("multipart/form-data; boundary=b", b"nonsense"),
        ("multipart/form-data; boundary=b", b"--b\r\nContent-Disposition: form-data; name=x\r\n\r\n"),
        ("multipart/form-data; boundary=" + "b" * 500, b""),
    ],
)  # fmt: skip
async def test_a_broken_form_is_a_400(http: httpx.AsyncClient, kind: str, body: bytes) -> None:
    response = await http.post("/v1/files", content=body, headers={"content-type": kind})

    assert response.status_code == 400
    assert "multipart" in str(error_of(response)["message"])


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=x", "limit=99999999999", "order=asc", "colour=red"]
)
@pytest.mark.parametrize("path", ["/v1/files", "/v1/batches"])
async def test_a_wrong_query_is_a_400(http: httpx.AsyncClient, path: str, query: str) -> None:
    response = await http.get(f"{path}?{query}")

    assert response.status_code == 400


async def test_many_requests_at_once_are_all_answered(http: httpx.AsyncClient) -> None:
    body = {"model": MODEL, "prompt": "x"}

    answers = await asyncio.gather(*(http.post("/v1/completions", json=body) for _ in range(50)))

    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["id"] for answer in answers}) == 50
