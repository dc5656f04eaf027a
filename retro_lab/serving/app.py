"""The application: its four addresses, and JSON with one sentence for everything that goes wrong."""

import traceback
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from retro_lab import console
from retro_lab.serving import bodies
from retro_lab.serving.bodies import Body, GenerateBody, Limits, SearchBody
from retro_lab.serving.engine import Engine
from retro_lab.serving.guard import Guard
from retro_lab.serving.page import POLICY, page
from retro_lab.serving.refusals import RefusedError
from retro_lab.serving.worker import Worker

JSON = "application/json"
ADDRESSES = "GET /, GET /health, POST /search, POST /generate"


def build_app(engine: Engine, worker: Worker, limits: Limits, allowed_hosts: list[str]) -> Guard:
    """Return the application.

    Args:
        engine: The run, of which the facts are read here.
        worker: Runs it.
        limits: Of requests.
        allowed_hosts: Names by which clients may call this server besides those of loopback.
    """
    facts = engine.facts
    # The pages of FastAPI's own documentation load scripts from elsewhere.
    app = FastAPI(title=f"retro_lab: {facts.run}", docs_url=None, redoc_url=None, redirect_slashes=False)
    _answer_errors(app)
    html = page(facts, limits)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def home() -> HTMLResponse:
        return HTMLResponse(html, headers={"Content-Security-Policy": POLICY})

    @app.get("/health", summary="What is served, and how large requests may be")
    async def health() -> JSONResponse:
        return JSONResponse({"status": "ok", **vars(facts), "limits": vars(limits)})

    @app.post("/search", summary="Texts to their neighbors in the database", openapi_extra=_described(SearchBody))
    async def search(request: Request) -> JSONResponse:
        body = await _read(request, SearchBody, limits.max_body_bytes)
        texts = bodies.searched_texts(body, facts, limits)
        found = await worker.search(texts, body.n_docs)
        return JSONResponse(
            {
                "message": f"Search completed for {len(texts)} text{'s' if len(texts) > 1 else ''} in {facts.corpus}",
                "query": body.query if body.queries is None else body.queries,
                "n_docs": body.n_docs,
                "nprobe": None,
                "results": {
                    # As in massive-serve, larger is nearer.
                    "scores": [[-neighbor.distance for neighbor in each.neighbors] for each in found],
                    "passages": [[neighbor.text for neighbor in each.neighbors] for each in found],
                    "IDs": [[[0, neighbor.chunk] for neighbor in each.neighbors] for each in found],
                },
                "chunks": [each.chunks for each in found],
                "neighbors": [[asdict(neighbor) for neighbor in each.neighbors] for each in found],
            }
        )

    @app.post("/generate", summary="Prompts to their continuations", openapi_extra=_described(GenerateBody))
    async def generate(request: Request) -> JSONResponse:
        body = await _read(request, GenerateBody, limits.max_body_bytes)
        prompts = bodies.prompts(body, limits)
        written = await worker.generate(prompts, bodies.wanted(body, facts, limits))
        return JSONResponse(
            {
                "model": facts.model,
                "texts": [asdict(each) for each in written],
            }
        )

    return Guard(app, allowed_hosts)


def _answer_errors(app: FastAPI) -> None:
    """Answer every error with JSON of one sentence, and none with a traceback."""

    @app.exception_handler(RefusedError)
    async def refuse(request: Request, error: RefusedError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def refuse_address(request: Request, error: HTTPException) -> JSONResponse:
        allowed = (error.headers or {}).get("Allow")
        problem = f"This address is for {allowed}" if allowed else "There is nothing at this address"
        return JSONResponse({"error": f"{problem}; use {ADDRESSES}."}, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> JSONResponse:
        console.error("".join(traceback.format_exception(error)))  # of which clients get to know nothing
        return JSONResponse({"error": "The server failed on this request; its own terminal says why."}, 500)


async def _read(request: Request, kind: type[Body], most: int) -> Body:
    """Read the body of a request, but never more than `most` bytes of it.

    Raises:
        RefusedError: It is no JSON, is too long, or has not the fields of `kind`.
    """
    given = request.headers.get("content-type", "")
    if given.partition(";")[0].strip().lower() != JSON:
        raise RefusedError(f"Content-Type {given[:60]!a} is not read here; send {JSON}.", 415)
    too_long = RefusedError(f"The body has more than {most:,} bytes; send less (task.max_body_bytes).", 413)
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and (len(declared) > 18 or int(declared) > most):
        raise too_long
    body = bytearray()
    try:
        async for part in request.stream():
            body += part
            if len(body) > most:
                raise too_long
    except ClientDisconnect:
        raise RefusedError("The connection ended before the request did.") from None
    return bodies.parsed(kind, bytes(body))


def _described(kind: type[Body]) -> dict[str, Any]:
    """Return what /openapi.json says of a body."""
    return {"requestBody": {"required": True, "content": {JSON: {"schema": kind.model_json_schema()}}}}
