"""The page's server, for one person on this machine."""

from __future__ import annotations

import re
import secrets
import socket
import sys
import webbrowser
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fairhuman.common.errors import DataError, OutputError, UserError
from fairhuman.common.extras import install_line
from fairhuman.curation.inspection.findings import KINDS, NOTES
from fairhuman.curation.inspection.inspect import View
from fairhuman.curation.inspection.thumbnails import colour
from fairhuman.curation.review.edit import LARGEST, parse_edit
from fairhuman.curation.review.pictures import LARGEST_MASK, SIDES
from fairhuman.curation.review.session import ConflictError, NotThereError, Session

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Mount, Route
    from starlette.staticfiles import StaticFiles
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
except ImportError as error:
    raise UserError(f"fairhuman review: {error}; install it: {install_line('review')}") from None

_HOST = re.compile(r"(127\.0\.0\.1|localhost)(:\d+)?")  # any port: a tunnel may have another
STATIC = Path(__file__).parent / "static"
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "same-origin",  # the address holds the token
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}


def serve(root: Path, view: View, port: int, *, open_page: bool) -> None:
    """Serve the page on 127.0.0.1 until Ctrl-C.

    Args:
        root: the data set's folder.
        view: how the trainer sees it.
        port: 0 takes a free one.
        open_page: open it in the user's browser.

    Raises:
        UserError: the data set cannot be reviewed, or the port is taken.
    """
    session = Session(root, view)
    try:
        with listening(port) as listener:
            token = secrets.token_urlsafe(24)
            address = f"http://127.0.0.1:{listener.getsockname()[1]}/{token}/"
            print(f"{len(session.samples)} images; open {address}", flush=True)
            print("Ctrl-C ends it", file=sys.stderr)
            if open_page:
                webbrowser.open(address)
            # The log of requests would hold the token.
            config = uvicorn.Config(
                make_app(session, token), log_level="warning", access_log=False, lifespan="on"
            )
            uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        pass
    finally:
        session.close()


def listening(port: int) -> socket.socket:
    """Return a socket that listens on a port of 127.0.0.1; 0 takes a free one.

    Raises:
        UserError: the port is taken, or not for everybody.
    """
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen()  # before the address is printed
    except OSError as error:
        listener.close()
        raise UserError(f"--port {port}: {error.strerror}; choose another, or 0") from None
    return listener


def make_app(session: Session, token: str) -> ASGIApp:
    """Return the application: everything is below /TOKEN/, for pages of this machine alone."""
    endpoints = _Endpoints(session)
    api = [
        Route("/session", endpoints.overview),
        Route("/at/{number:int}", endpoints.go_to, methods=["PUT"]),
        Route("/images/{number:int}", endpoints.image, methods=["GET", "PUT"]),
        Route("/images/{number:int}/photograph/{side:int}", endpoints.photograph),
        Route("/images/{number:int}/trained", endpoints.trained),
        Route("/images/{number:int}/mask", endpoints.mask),
        Route("/images/{number:int}/masks/{region}", endpoints.add_mask, methods=["POST"]),
    ]

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(session.close)

    inner = Starlette(
        routes=[
            Mount(
                f"/{token}",
                routes=[
                    Mount("/api", routes=api),
                    Mount("/", StaticFiles(directory=STATIC, html=True)),
                ],
            )
        ],
        exception_handlers={
            NotThereError: _told(404),
            DataError: _told(422),
            OutputError: _told(507),
            ConflictError: _conflict,
        },
        lifespan=lifespan,
    )
    return _Guard(inner, token)


class _Guard:
    """Refuses what another page or machine may have sent, before anything looks at it."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        refusal = self._refusal(Request(scope))

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message = message | {"headers": [*message["headers"], *extra]}
            await send(message)

        await (refusal or self._app)(scope, receive, send_with_headers)

    def _refusal(self, request: Request) -> Response | None:
        host = request.headers.get("host", "")
        # A name that leads to 127.0.0.1 would make this server another site's own (DNS rebinding).
        if _HOST.fullmatch(host) is None:
            return _error(403, "this server is for 127.0.0.1")
        origin = request.headers.get("origin")
        if origin is None and request.method not in ("GET", "HEAD"):
            return _error(403, "a change must have an Origin header")
        if origin is not None and origin != f"http://{host}":
            return _error(403, "another page may not ask for this")
        first = request.scope["path"].split("/")[1]
        if not secrets.compare_digest(first.encode(), self._token.encode()):
            return _error(404, "open the address that `fairhuman review` has printed")
        return None


class _Endpoints:
    """What the page asks for. The session reads files, so it works in threads."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def overview(self, request: Request) -> Response:
        overview = await run_in_threadpool(self._session.overview)
        regions = {name: "rgb({}, {}, {})".format(*colour(name)) for name in overview["regions"]}
        view = self._session.view
        kinds = {kind: [text, kind in NOTES] for kind, text in KINDS.items()}
        about = {
            "folder": self._session.root.resolve().name,
            "regions": regions,
            "kinds": kinds,
            "resolution": view.data.resolution,
        }
        return JSONResponse(overview | about)

    async def go_to(self, request: Request) -> Response:
        await run_in_threadpool(self._session.go_to, _number(request))
        return Response(status_code=204)

    async def image(self, request: Request) -> Response:
        number = _number(request)
        if request.method != "PUT":
            return JSONResponse(await run_in_threadpool(self._session.state, number))
        edit = parse_edit(await _body(request, LARGEST))
        return JSONResponse(await run_in_threadpool(self._session.save, number, edit))

    async def photograph(self, request: Request) -> Response:
        side = request.path_params["side"]
        if side not in SIDES:
            raise NotThereError(side)
        content = await run_in_threadpool(self._session.photograph, _number(request), side)
        return Response(content, media_type="image/jpeg")

    async def trained(self, request: Request) -> Response:
        content = await run_in_threadpool(self._session.trained, _number(request))
        return Response(content, media_type="image/png")

    async def mask(self, request: Request) -> Response:
        name = request.query_params.get("name", "")
        content = await run_in_threadpool(self._session.mask, _number(request), name)
        return Response(content, media_type="image/png")

    async def add_mask(self, request: Request) -> Response:
        body = await _body(request, LARGEST_MASK)
        region = request.path_params["region"]
        name = await run_in_threadpool(self._session.add_mask, _number(request), region, body)
        return JSONResponse({"mask": name})


def _number(request: Request) -> int:
    number: int = request.path_params["number"]
    return number


async def _body(request: Request, limit: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise HTTPException(413)
    return bytes(body)


def _error(status: int, message: str, **more: Any) -> Response:
    return JSONResponse({"error": message, **more}, status_code=status)


def _told(status: int) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def handle(request: Request, error: Exception) -> Response:
        message = "there is no such image" if status == 404 else str(error)
        return _error(status, message)

    return handle


async def _conflict(request: Request, error: Exception) -> Response:
    assert isinstance(error, ConflictError)
    return _error(409, "somebody else has changed this image", state=error.state)
