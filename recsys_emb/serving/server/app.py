"""The server's paths.

POST /predict   rows -> logits and probabilities
POST /reload    serve what is in the artifact's folder now
GET  /health    200 while it serves
GET  /schema    the fields that rows must have
GET  /metrics   for Prometheus
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from recsys_emb.data.frame import roles
from recsys_emb.errors import UserError
from recsys_emb.serving.server.batcher import Batcher
from recsys_emb.serving.server.bodies import ARROW, JSON, Refused, read_rows, write_answer
from recsys_emb.serving.server.holder import Holder
from recsys_emb.serving.server.limits import Limits
from recsys_emb.serving.server.metrics import Metrics

Answer = Callable[[Request], Awaitable[Response]]


def build_app(path: Path, limits: Limits, device: str = "auto") -> Starlette:
    """The ASGI application that serves an artifact.

    Args:
        path: the artifact's folder, or a link to it.
        limits: what it takes.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        UserError: not an artifact, or damaged.
    """
    metrics = Metrics()
    holder = Holder(path, device, metrics)
    batcher = Batcher(holder.artifact, limits, metrics.batch_rows.observe)

    async def predict(request: Request) -> Response:
        body = await read_body(request, limits)
        rows = await asyncio.to_thread(read_rows, request.headers.get("content-type", JSON), body)
        if rows.count > limits.rows:
            too_many = f"{rows.count:,} rows; a request may have {limits.rows:,}"
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, too_many)
        kind, answer = write_answer(request.headers.get("accept", JSON), await batcher.predict(rows))
        return Response(answer, media_type=kind)

    async def reload(request: Request) -> Response:
        try:
            loaded = await holder.reload()
        except UserError as error:
            raise Refused(HTTPStatus.CONFLICT, f"{error}; the artifact from before is served on") from None
        return JSONResponse({"artifact": str(loaded.path), "serving_bytes": loaded.serving_bytes})

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok", "artifact": str(holder.artifact().path)})

    async def schema(request: Request) -> Response:
        fields = [{"name": name, "role": role} for name, role in roles(holder.artifact().schema)]
        return JSONResponse({"fields": fields, "bodies": [JSON, ARROW], "max_rows": limits.rows})

    async def text(request: Request) -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    def counted(answer: Answer) -> Answer:
        async def wrapped(request: Request) -> Response:
            started, where = time.perf_counter(), request.url.path
            try:
                response = await answer(request)
            except UserError as error:
                status = error.status if isinstance(error, Refused) else HTTPStatus.UNPROCESSABLE_ENTITY
                response = JSONResponse({"error": str(error)}, status)
            except ClientDisconnect:
                response = Response(status_code=HTTPStatus.BAD_REQUEST)  # nobody reads it
            metrics.seconds.labels(where).observe(time.perf_counter() - started)
            metrics.requests.labels(where, response.status_code).inc()
            return response

        return wrapped

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        running = asyncio.create_task(batcher.run())
        yield
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running

    return Starlette(
        routes=[
            Route("/predict", counted(predict), methods=["POST"]),
            Route("/reload", counted(reload), methods=["POST"]),
            Route("/health", counted(health)),
            Route("/schema", counted(schema)),
            Route("/metrics", counted(text)),
        ],
        exception_handlers={HTTPException: _as_json},
        lifespan=lifespan,
    )


async def read_body(request: Request, limits: Limits) -> bytes:
    """The body. Raises Refused when it is too large (413) or does not come in time (408)."""
    parts, size = [], 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for part in request.stream():
                size += len(part)
                if size > limits.body_bytes:
                    too_large = f"body: larger than {limits.body_bytes:,} bytes"
                    raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, too_large)
                parts.append(part)
    except TimeoutError:
        late = f"body: it did not come within {limits.body_seconds:g} s"
        raise Refused(HTTPStatus.REQUEST_TIMEOUT, late) from None
    return b"".join(parts)


async def _as_json(request: Request, error: Exception) -> Response:
    """Paths and methods that there are not."""
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)
