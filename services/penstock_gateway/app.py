"""The HTTP application: which path goes to which endpoint, and how refusals look."""

from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, ExceptionHandler

from penstock_core.errors import Aborted, InternalError, PenstockError
from penstock_core.security.auth import Authenticator
from penstock_core.telemetry.exposition import Exposition
from penstock_gateway.batches import BatchEndpoint
from penstock_gateway.chat import ChatEndpoint
from penstock_gateway.completions import CompletionEndpoint
from penstock_gateway.edge import Edge
from penstock_gateway.embeddings import EmbeddingEndpoint
from penstock_gateway.errors import response_of, response_of_http
from penstock_gateway.files import FileEndpoint
from penstock_gateway.gate import Gate
from penstock_gateway.health import HealthEndpoint
from penstock_gateway.inference import Inference
from penstock_gateway.models import ModelEndpoint
from penstock_gateway.settings import GatewaySettings
from penstock_gateway.upstream import BatchClient, RouterClient


@dataclass(frozen=True, slots=True)
class Upstreams:
    """What the gateway stands on. Without a batch service there are no file and batch paths."""

    router: RouterClient
    batches: BatchClient | None
    exposition: Exposition | None = None


def build_app(
    upstreams: Upstreams,
    gate: Gate,
    settings: GatewaySettings,
    callers: Authenticator | None = None,
) -> ASGIApp:
    """The whole application. Without ``callers`` only the services behind it ask for keys."""
    routes = [
        *_inference_routes(upstreams.router, settings),
        *_health_routes(upstreams, gate),
    ]
    if upstreams.batches is not None:
        routes += _batch_routes(upstreams.batches, settings)
    app = Starlette(routes=routes, exception_handlers=_handlers())
    # A redirect would turn a POST into a GET; a wrong path is a wrong path.
    app.router.redirect_slashes = False
    return Edge(app, gate, settings.request_timeout_s, callers)


def _inference_routes(router: RouterClient, settings: GatewaySettings) -> list[Route]:
    inference = Inference(router)
    chat = ChatEndpoint(inference, settings.max_body_bytes)
    completions = CompletionEndpoint(inference, settings.max_body_bytes)
    embeddings = EmbeddingEndpoint(router, settings.max_body_bytes)
    models = ModelEndpoint(router)
    return [
        Route("/v1/chat/completions", chat.create, methods=["POST"]),
        Route("/v1/completions", completions.create, methods=["POST"]),
        Route("/v1/embeddings", embeddings.create, methods=["POST"]),
        Route("/v1/models", models.list, methods=["GET"]),
        Route("/v1/models/{model:path}", models.get, methods=["GET"]),
    ]


def _batch_routes(client: BatchClient, settings: GatewaySettings) -> list[Route]:
    files = FileEndpoint(client, settings.max_upload_bytes)
    batches = BatchEndpoint(client, settings.max_body_bytes)
    return [
        Route("/v1/files", files.create, methods=["POST"]),
        Route("/v1/files", files.list, methods=["GET"]),
        Route("/v1/files/{file_id}", files.get, methods=["GET"]),
        Route("/v1/files/{file_id}", files.delete, methods=["DELETE"]),
        Route("/v1/files/{file_id}/content", files.content, methods=["GET"]),
        Route("/v1/batches", batches.create, methods=["POST"]),
        Route("/v1/batches", batches.list, methods=["GET"]),
        Route("/v1/batches/{batch_id}", batches.get, methods=["GET"]),
        Route("/v1/batches/{batch_id}/cancel", batches.cancel, methods=["POST"]),
    ]


def _health_routes(upstreams: Upstreams, gate: Gate) -> list[Route]:
    health = HealthEndpoint(upstreams.router, gate, upstreams.exposition)
    return [
        Route("/healthz", health.alive, methods=["GET"]),
        Route("/readyz", health.ready, methods=["GET"]),
        Route("/metrics", health.metrics, methods=["GET"]),
    ]


def _handlers() -> dict[type[Exception], ExceptionHandler]:
    return {
        PenstockError: _on_error,
        HTTPException: _on_http_error,
        ClientDisconnect: _on_disconnect,
        Exception: _on_defect,
    }


async def _on_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, PenstockError)
    return response_of(error)


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    url = f"{request.method} {request.url.path}"
    if error.status_code == 404:
        error = HTTPException(404, f"Invalid URL ({url})")
    elif error.status_code == 405:
        error = HTTPException(405, f"Not allowed: {url}", error.headers)
    return response_of_http(error)


async def _on_disconnect(_request: Request, _error: Exception) -> JSONResponse:
    return response_of(Aborted("the client closed the connection"))


async def _on_defect(_request: Request, _error: Exception) -> JSONResponse:
    # ``Edge`` logs what comes out of the application.
    return response_of(InternalError("internal error; see the server's log"))
