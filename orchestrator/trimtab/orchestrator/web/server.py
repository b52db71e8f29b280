"""Serves the dashboard on loopback: the page, its data as JSON, and live changes.

    GET /                         the list of runs         GET /runs/ID     one run
    GET /api/runs                 the list as JSON
    GET /api/runs/ID?rank=R       everything but plans
    GET /api/runs/ID/plans/STEP   one step's plan
    GET /api/runs/ID/stream       server-sent events: what changes after `?after=ID`

Nothing is loaded from another address, and only requests that name this machine are answered,
so that a web page elsewhere cannot read runs through a name it makes point here.
"""

import asyncio
import contextlib
import errno
import ipaddress
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.responses import StreamingResponse as Stream
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trimtab.core.errors import InputError, RunDirError
from trimtab.orchestrator.rundir import NoSuchRunError
from trimtab.orchestrator.web.runs import Runs

STATIC: Final = Path(__file__).parent / "static"
_POLL_S = 0.3
_KEEP_ALIVE_S = 15.0
_LARGEST_INTEGER = 2**63 - 1
"""SQLite's."""

_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "object-src 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def create_app(root: Path, *, host: str = "127.0.0.1") -> Starlette:
    """The dashboard of the runs under `root`, served under the name `host`."""
    runs = Runs(root)
    pages = _Pages(runs)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        runs.close()

    return Starlette(
        routes=[
            Route("/", _page),
            Route("/runs/{run_id}", _page),
            Route("/api/runs", pages.runs),
            Route("/api/runs/{run_id}", pages.run),
            Route("/api/runs/{run_id}/plans/{step:int}", pages.plan),
            Route("/api/runs/{run_id}/stream", pages.stream),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        middleware=[Middleware(_Guard, hosts=frozenset({host, *_own_names()}))],
        exception_handlers={
            NoSuchRunError: _error(404),
            RunDirError: _error(409),
            InputError: _error(400),
            HTTPException: _http_error,
        },
        lifespan=lifespan,
    )


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any free one.

    Raises:
        InputError: The port is taken, or the host is not this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise InputError(f"--host: {host!r} is no address of this machine") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise InputError(f"--host: {host!r} is no address of this machine") from error
        raise InputError(
            f"--port: cannot listen on port {port} of {host}: {error.strerror}; "
            "give another with --port (0 takes any free one)"
        ) from error
    return listener


def make_server(root: Path, *, host: str) -> uvicorn.Server:
    """A server that `run(sockets=[bind(...)])` starts and Ctrl-C ends."""
    config = uvicorn.Config(
        create_app(root, host=host),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,  # a live page never hangs up by itself
    )
    return uvicorn.Server(config)


class _Pages:
    """The endpoints; what reads the disk runs off the event loop."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs

    async def runs(self, _: Request) -> Response:
        return _json({"runs": await run_in_threadpool(self._runs.listed)})

    async def run(self, request: Request) -> Response:
        rank = _number(request, "rank")
        run = await run_in_threadpool(self._runs.run, request.path_params["run_id"])
        return _json(await run_in_threadpool(run.snapshot, rank=rank))

    async def plan(self, request: Request) -> Response:
        step = min(request.path_params["step"], _LARGEST_INTEGER)
        run = await run_in_threadpool(self._runs.run, request.path_params["run_id"])
        return _json(await run_in_threadpool(run.plan, step))

    async def stream(self, request: Request) -> Response:
        run_id = request.path_params["run_id"]
        rank = _number(request, "rank")
        after_id = _resume_id(request)
        await run_in_threadpool(self._runs.run, run_id)
        messages = self._messages(run_id, after_id=after_id, rank=rank)
        return Stream(
            messages,
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    async def _messages(
        self, run_id: str, *, after_id: int, rank: int | None
    ) -> AsyncIterator[str]:
        sent_head: Any = None
        quiet_s = 0.0
        while True:
            try:
                run = await run_in_threadpool(self._runs.run, run_id)
                changes = await run_in_threadpool(run.changes, after_id, rank=rank)
            except RunDirError as error:
                yield _message("problem", {"error": str(error)})
                return
            quiet_s += _POLL_S
            if changes["id"] != after_id or changes["head"] != sent_head:
                yield _message("update", changes, event_id=changes["id"])
                after_id, sent_head, quiet_s = changes["id"], changes["head"], 0.0
            elif quiet_s >= _KEEP_ALIVE_S:
                yield ": still here\n\n"
                quiet_s = 0.0
            await asyncio.sleep(_POLL_S)


class _Guard:
    """Refuses foreign `Host` headers and adds the security headers to every response."""

    def __init__(self, app: ASGIApp, *, hosts: frozenset[str]) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-cache")
            await send(message)

        host = Request(scope).headers.get("host", "")
        if self._is_own(host):
            await self._app(scope, receive, send_guarded)
            return
        refusal = PlainTextResponse(
            f"This dashboard does not answer to the name {host[:100]!r}.\n", status_code=421
        )
        await refusal(scope, receive, send_guarded)

    def _is_own(self, host: str) -> bool:
        """Whether a browser was given this machine's own name, or an IP address.

        An address cannot be made to point elsewhere later, which DNS rebinding needs.
        """
        name = host.rpartition(":")[0] if ":" in host and not host.endswith("]") else host
        if name.lower() in self._hosts:
            return True
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return True


def _own_names() -> set[str]:
    return {"localhost", socket.gethostname().lower()}


async def _page(_: Request) -> Response:
    return FileResponse(STATIC / "index.html")


def _error(status: int) -> Any:
    def respond(_: Request, error: Exception) -> Response:
        return _json({"error": str(error)}, status=status)

    return respond


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if request.url.path.startswith("/api/"):
        return _json({"error": error.detail}, status=error.status_code)
    return PlainTextResponse(f"{error.detail}\n", status_code=error.status_code)


def _json(document: dict[str, Any], *, status: int = 200) -> Response:
    return JSONResponse(document, status_code=status, headers={"Cache-Control": "no-store"})


def _message(name: str, document: dict[str, Any], *, event_id: int | None = None) -> str:
    number = "" if event_id is None else f"id: {event_id}\n"
    return f"{number}event: {name}\ndata: {json.dumps(document, allow_nan=False)}\n\n"


def _resume_id(request: Request) -> int:
    """Where a page goes on: what its browser received last, or what its snapshot held."""
    last = request.headers.get("last-event-id", "")
    if last.isdecimal() and int(last) <= _LARGEST_INTEGER:
        return int(last)
    return _number(request, "after") or 0


def _number(request: Request, name: str) -> int | None:
    text = request.query_params.get(name)
    if text is None or text == "":
        return None
    if not text.isdecimal() or len(text) > 18:
        raise InputError(f"{name}: expected a whole number >= 0, got {text[:40]!r}")
    return int(text)
