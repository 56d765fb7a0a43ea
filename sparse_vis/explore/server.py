"""The page's server: its files, and requests that each have a picture, a resolution and a list of edits."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from sparse_vis.explore.guard import Guard
from sparse_vis.explore.page import EXAMPLES, SCRIPTS, SIDES, STYLES, default_side, html, path_of
from sparse_vis.explore.saved import png, to_npz
from sparse_vis.explore.shelf import NotHeld, Shelf
from sparse_vis.runtime.errors import UserError

FILES = {name: path_of(name) for name in (*SCRIPTS, "server.js", *STYLES)}
LARGEST_FILE, LARGEST_REQUEST = 32 * 2**20, 4 * 2**20  # bytes of a picture's file, and of a list of edits


async def body_of(request: Request, limit: int) -> bytes:
    """The body of a request. Raises UserError as soon as more bytes than the limit have come."""
    parts, size = [], 0
    async for part in request.stream():
        parts.append(part)
        size += len(part)
        if size > limit:
            raise UserError(f"this has more than {limit >> 20} MiB; give a smaller picture or fewer edits.")
    return b"".join(parts)


def answered(endpoint: Callable) -> Callable:
    """The endpoint, with errors turned into a status and one sentence."""

    @functools.wraps(endpoint)
    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except UserError as error:
            return JSONResponse({"error": str(error)}, status_code=400)
        except NotHeld as error:
            what = "the server does not hold this picture any more; open it again."
            asked = str(error).encode("ascii", "replace").decode()  # JSON may name what UTF-8 cannot
            return JSONResponse({"error": what, "picture": asked}, status_code=404)
        except (ClientDisconnect, asyncio.CancelledError):
            return Response(status_code=499)  # nobody reads it, as page or server was closed

    return answer


def asks(function: Callable[[str, int, Any], Any], kind: type[Response]) -> Callable:
    """An endpoint that calls a function with the picture, side and edits in the request's JSON."""

    async def endpoint(request: Request) -> Response:
        try:
            asked = json.loads(await body_of(request, LARGEST_REQUEST))
            picture, side, edits = (asked[name] for name in ("picture", "side", "edits"))
            if type(side) is not int:
                raise TypeError
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            if isinstance(error, UserError):
                raise
            what = "the request is not JSON with picture, side and edits"
            raise UserError(f"{what}; reload the page.") from None
        return kind(await run_in_threadpool(function, str(picture), side, edits))

    return answered(endpoint)


def make_app(shelf: Shelf, name: str, token: str, port: int) -> Starlette:
    """The application: the page of a model of this name, and the answers to its requests."""
    query, settings = f"?token={token}", {"token": token, "maxBytes": LARGEST_FILE}
    rendered = html(
        shelf.model, name, ("server.js",), default_side(shelf.model), settings, query=query,
        policy=None, gallery=shelf.gallery is not None, sides=SIDES,
    )  # fmt: skip

    async def page(request: Request) -> Response:
        return HTMLResponse(rendered)

    async def file(request: Request) -> Response:
        path = {**FILES, **EXAMPLES}.get(request.path_params["name"])
        return FileResponse(path) if path else Response(status_code=404)

    @answered
    async def put(request: Request) -> Response:
        data = await body_of(request, LARGEST_FILE)
        named = request.query_params.get("name", "")[:200]
        return JSONResponse({"picture": await run_in_threadpool(shelf.put, data, named)})

    def photograph(picture: str, side: int, edits: Any) -> bytes:
        return png(shelf.encoded(picture, side).pixels)

    def save(picture: str, side: int, edits: Any) -> bytes:
        found, resolved = shelf.encoded(picture, side), shelf.resolved(edits)
        shelf.edited(picture, side, resolved)  # raises UserError, so that only valid edits are saved
        return to_npz(found.S, found.L, (side, side), resolved)

    async def similar(request: Request) -> Response:
        search = functools.partial(shelf.similar, request.path_params["token"])
        return await asks(search, JSONResponse)(request)

    routes = [
        Route("/", page),
        Route("/files/{name}", file),
        Route("/picture", put, methods=["POST"]),
        Route("/photograph", asks(photograph, Response), methods=["POST"]),
        Route("/edit", asks(shelf.shown, JSONResponse), methods=["POST"]),
        Route("/again", asks(shelf.again, JSONResponse), methods=["POST"]),
        Route("/similar/{token:int}", similar, methods=["POST"]),
        Route("/save", asks(save, Response), methods=["POST"]),
    ]
    return Starlette(routes=routes, middleware=[Middleware(Guard, token=token, port=port)])
