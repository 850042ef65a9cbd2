"""The judging page as a web server: one page, and four requests that it makes."""

import base64
import contextlib
import hashlib
import hmac
import ipaddress
import json
import socket
import threading
import urllib.parse
from collections.abc import Sequence
from importlib import resources
from typing import Any

from hfdataopt.errors import MissingDependencyError, OptionError
from hfdataopt.prompting.page.desk import WORDS, Desk

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
    from starlette.routing import Route
except ImportError as error:
    raise MissingDependencyError("the judging page needs starlette and uvicorn: pip install 'hfdataopt[ui]'") from error

PATIENCE = 20.0  # seconds that a request waits until its word is on disk; the page then asks again
LONGEST_BODY = 10_000
REFUSED = "This needs the whole link that the program printed, with its token."


def page(criterion: str) -> tuple[str, str]:
    """The page with its style and script inside, and the policy that lets nothing else run and nothing else load."""
    files = resources.files("hfdataopt.prompting.page")
    style, script = (files.joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    policy = (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; img-src blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    settings = json.dumps({"criterion": criterion}).replace("<", "\\u003c")
    html = files.joinpath("page.html").read_text("utf-8")
    for name, text in (("style", style), ("script", script), ("settings", settings)):
        before, after = html.split(f"{{{{{name}}}}}")
        html = before + text + after
    return html, policy


class _Guard:
    """Lets only requests through that name this machine and carry the token; adds the headers that bind the browser.

    A page of another site can make its name lead here (DNS rebinding); what gives it away is that name in ``Host``. An address
    cannot be rebound. A request that a browser makes for a page of another origin says so, and is refused also with the token.
    """

    def __init__(self, app: Any, token: str, hosts: Sequence[str], policy: str) -> None:
        self.app, self.token, self.named = app, token.encode(), {host.lower() for host in hosts}
        self.hosts = {"localhost", *self.named}
        self.headers = [
            (name.encode(), value.encode())
            for name, value in {
                "content-security-policy": policy,
                "cache-control": "no-store",
                "referrer-policy": "no-referrer",
                "x-content-type-options": "nosniff",
                "cross-origin-opener-policy": "same-origin",
                "cross-origin-resource-policy": "same-origin",
            }.items()
        ]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *self.headers]
            await send(message)

        if scope["type"] != "http":
            return
        allowed = self._is_here(scope) and self._is_own(scope) and hmac.compare_digest(self._token(scope), self.token)
        app = self.app if allowed else PlainTextResponse(REFUSED, 403)
        await app(scope, receive, answer)

    def _is_here(self, scope: Any) -> bool:
        names = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if len(names) != 1:
            return False
        with contextlib.suppress(ValueError):
            name = urllib.parse.urlsplit("//" + names[0]).hostname or ""
            return name in self.hosts or bool(ipaddress.ip_address(name))
        return False

    def _is_own(self, scope: Any) -> bool:
        """Whether no page of another origin asks: browsers name one in ``Origin``, and behind a proxy ``Host`` may be another."""
        origins = [value.decode("latin-1") for name, value in scope["headers"] if name == b"origin"]
        host = next(value.decode("latin-1") for name, value in scope["headers"] if name == b"host")
        with contextlib.suppress(ValueError):
            parts = [urllib.parse.urlsplit(origin) for origin in origins]
            return all(one.netloc.lower() == host.lower() or one.hostname in self.named for one in parts)
        return False

    def _token(self, scope: Any) -> bytes:
        if scope["path"] == "/":
            query = urllib.parse.parse_qs(scope["query_string"].decode("latin-1"))
            return query.get("token", [""])[0].encode()
        headers = [value for name, value in scope["headers"] if name == b"authorization"]
        return headers[0].removeprefix(b"Bearer ") if len(headers) == 1 else b""


def application(desk: Desk, token: str, hosts: Sequence[str], criterion: str) -> Any:
    """The ASGI application."""
    html, policy = page(criterion)

    async def show_page(request: Request) -> Response:
        return HTMLResponse(html)

    async def look(request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(desk.look, _person(request)))

    async def vote(request: Request) -> Response:
        said = await _body(request)
        if said is None or not isinstance(said.get("pair"), str) or said.get("word") not in WORDS:
            return PlainTextResponse(f"expected a JSON object with pair and word ({', '.join(WORDS)})", 400)
        result = await run_in_threadpool(desk.vote, _person(request), said["pair"], said["word"], PATIENCE)
        return JSONResponse({"result": result, **await run_in_threadpool(desk.look, _person(request))})

    async def undo(request: Request) -> Response:
        said = await _body(request)
        if said is None or not isinstance(said.get("pair"), str):
            return PlainTextResponse("expected a JSON object with pair", 400)
        result = await run_in_threadpool(desk.undo, _person(request), said["pair"], PATIENCE)
        return JSONResponse({"result": result, **await run_in_threadpool(desk.look, _person(request))})

    async def finish(request: Request) -> Response:
        await run_in_threadpool(desk.finish)
        return JSONResponse(await run_in_threadpool(desk.look, _person(request)))

    async def image(request: Request) -> Response:
        found = await run_in_threadpool(desk.image, request.path_params["key"], request.path_params["side"] == 1)
        return Response(found, media_type="image/png") if found else PlainTextResponse("there is no such image", 404)

    routes = [
        Route("/", show_page),
        Route("/look", look),
        Route("/vote", vote, methods=["POST"]),
        Route("/undo", undo, methods=["POST"]),
        Route("/finish", finish, methods=["POST"]),
        Route("/image/{key}/{side:int}", image),
    ]
    return _Guard(Starlette(routes=routes), token, hosts, policy)


def _person(request: Request) -> str:
    """``NAME-ID`` as the page says it; the id is made by the browser, the name by the person."""
    name = urllib.parse.unquote(request.headers.get("x-name", ""))
    name = "".join(one for one in name if one.isprintable()).strip()[:40]
    id_ = "".join(one for one in request.headers.get("x-session", "") if one.isascii() and one.isalnum())[:12]
    return f"{name or 'person'}-{id_ or 'unknown'}"


async def _body(request: Request) -> dict[str, Any] | None:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LONGEST_BODY:
            return None
    try:
        said = json.loads(body)
    except ValueError:
        return None
    return said if isinstance(said, dict) else None


class Server:
    """The application in a thread of its own, from the constructor to :meth:`stop`.

    Raises:
        OptionError: the port cannot be had.
    """

    def __init__(self, app: Any, host: str, port: int) -> None:
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._socket = socket.create_server((host, port), family=family)
        except (OSError, OverflowError) as error:
            raise OptionError(f"WebJudge: cannot listen at host={host!r}, port={port}: {error}") from error
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            app, log_level="error", access_log=False, lifespan="off", server_header=False, timeout_graceful_shutdown=2
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True, name="WebJudge")
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(5)
        self._socket.close()
