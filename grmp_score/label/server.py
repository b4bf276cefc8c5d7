"""The page's server: this machine alone, a token in every address, nothing but the page and the numbered photos.

What a foreign web page could try is answered before anything else is looked at: a name that resolves to this
machine (Host), a request sent from elsewhere (Origin), a guess of the address (token).
"""

from __future__ import annotations

import json
import secrets
import socket
import threading
from collections.abc import Callable
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from grmp_score.display import html_templates
from grmp_score.errors import ConfigError, GrmpScoreError, ImageReadError, MissingExtraError
from grmp_score.label.pairs import PairSession
from grmp_score.label.results import results
from grmp_score.label.session import Session

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

ADDRESS = "127.0.0.1"
#: Nothing is loaded from anywhere else, and no script runs but ours.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_TYPES = {"style.css": "text/css", "script.js": "text/javascript"}
#: Bytes of a request's body: a number of a photo, a score and seconds.
_MOST = 1000
#: Photos that are read at the same time: each may take hundreds of megabytes.
_READERS = threading.Semaphore(4)


def needs_extra() -> None:
    """Raises MissingExtraError unless the packages of the extra are there."""
    try:
        import starlette.applications  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("rating photos in the browser", "starlette", "label") from error


def listen(port: int = 0) -> socket.socket:
    """A socket that only this machine can reach.

    Args:
        port: 0 for any that is free.

    Raises:
        GrmpScoreError: the port is taken.
    """
    listener = socket.socket()
    try:
        listener.bind((ADDRESS, port))
        listener.listen(1024)  # the browser may ask before the server runs
    except OSError as error:
        listener.close()
        raise GrmpScoreError(f"cannot listen on port {port}: {error.strerror}", hint="Name another port") from error
    return listener


def make_server(app: Starlette) -> uvicorn.Server:
    """A server; its ``run(sockets=[listener])`` ends with Ctrl-C."""
    import uvicorn

    config = uvicorn.Config(
        app, log_level="error", access_log=False, lifespan="off", ws="none", server_header=False
    )
    config.timeout_graceful_shutdown = 2
    return uvicorn.Server(config)


def make_app(session: Session | PairSession, *, port: int, token: str, title: str) -> Starlette:
    """The application.

    Args:
        session: what is shown and changed.
        port: that it is served at.
        token: first part of every path.
        title: of the page.
    """
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    templates = files("grmp_score.label") / "templates"
    texts = {name: (templates / name).read_text(encoding="utf-8") for name in ("page.html", *_TYPES)}
    page = (
        html_templates()
        .from_string(texts["page.html"])
        .render(title=title, best=session.scale.best if isinstance(session, Session) else 0)
    )

    def show_page(_: Request) -> Response:
        return Response(page, media_type="text/html", headers={"Cache-Control": "no-store"})

    def show_file(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in _TYPES:
            return Response("no such page", 404, media_type="text/plain")
        return Response(texts[name], media_type=_TYPES[name], headers={"Cache-Control": "no-store"})

    def show_photo(request: Request) -> Response:
        number = request.path_params["number"]
        if number >= len(session.photos):
            return Response("no such photo", 404, media_type="text/plain")
        try:
            with _READERS:
                picture = session.photos.picture(number, small="small" in request.query_params)
        except ImageReadError as error:
            return Response(error.reason, 404, media_type="text/plain")
        return Response(
            picture.data, media_type=picture.kind, headers={"Cache-Control": "private, max-age=3600, immutable"}
        )

    def state() -> dict[str, Any]:
        return {**session.state(), "learner": session.learner.state()}

    def show_state(_: Request) -> Response:
        return JSONResponse(state(), headers={"Cache-Control": "no-store"})

    def show_results(_: Request) -> Response:
        return JSONResponse(results(session), headers={"Cache-Control": "no-store"})

    def learn(_: dict[str, Any]) -> None:
        session.learner.learn(session.scores)

    def save(_: dict[str, Any]) -> None:
        session.learner.save(session.scores, session.file.path)

    def action(do: Callable[[dict[str, Any]], object]) -> Callable[[Request], Any]:
        """A request that changes something; it is answered when the change is on disk."""
        from starlette.concurrency import run_in_threadpool

        async def answer(request: Request) -> Response:
            body = b""
            async for part in request.stream():
                body += part
                if len(body) > _MOST:
                    return Response("the request is too long", 413, media_type="text/plain")
            try:
                given = json.loads(body or b"{}")
                if not isinstance(given, dict):
                    raise ConfigError("expected a JSON object")
                await run_in_threadpool(do, given)
                return JSONResponse(state(), headers={"Cache-Control": "no-store"})
            except ValueError as error:  # ConfigError and JSON's
                return Response(str(error), 400, media_type="text/plain")
            except (GrmpScoreError, OSError, TimeoutError) as error:  # a full disk, a file that was changed by hand
                return Response(f"not saved: {error}", 500, media_type="text/plain")

        return answer

    actions = [*session.actions.items(), ("learn", learn), ("save", save)]
    routes = [
        Route("/", show_page),
        Route("/state", show_state),
        Route("/results", show_results),
        Route("/photo/{number:int}", show_photo),
        *(Route(f"/{name}", action(do), methods=["POST"]) for name, do in actions),
        Route("/{name}", show_file),
    ]
    app = Starlette(routes=routes, middleware=[Middleware(_Guard, port=port, token=token)])
    app.router.redirect_slashes = False  # the address would lack the token
    return app


def new_token() -> str:
    """128 random bits for an address."""
    return secrets.token_urlsafe(16)


class _Guard:
    """Lets nothing pass but requests of our own page, and takes the token off their paths."""

    def __init__(self, app: ASGIApp, *, port: int, token: str) -> None:
        self._app, self._token = app, token.encode()
        self._hosts = {f"{name}:{port}" for name in (ADDRESS, "localhost")}
        self._origins = {f"http://{host}" for host in self._hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from starlette.datastructures import Headers, MutableHeaders
        from starlette.responses import Response

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        def refuse(text: str, status: int) -> Response:
            return Response(text, status, media_type="text/plain")

        headers = Headers(scope=scope)
        origins = headers.getlist("origin")
        _, first, rest = (*scope["path"].split("/", 2), "", "")[:3]
        answer: ASGIApp
        if scope["type"] != "http" or headers.getlist("host") not in [[host] for host in self._hosts]:
            answer = refuse("wrong host", 421)
        elif not set(origins) <= self._origins or (scope["method"] not in ("GET", "HEAD") and not origins):
            answer = refuse("wrong origin", 403)
        elif not secrets.compare_digest(first.encode(), self._token):
            answer = refuse("wrong address: open the one that the program has printed", 404)
        elif not rest and not scope["path"].endswith("/"):  # relative addresses of the page need the slash
            answer = Response(status_code=307, headers={"Location": f"/{first}/"})
        else:
            answer, scope = self._app, {**scope, "path": f"/{rest}", "raw_path": f"/{rest}".encode()}
        await answer(scope, receive, send_with_headers)
