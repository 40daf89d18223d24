"""The page served on this machine; the network answers its questions."""

import contextlib
import signal
import socket
from urllib.parse import urlencode

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from ttm_jax.multiplication.demo.page import page_html
from ttm_jax.multiplication.demo.problem import ProblemError, parse_problem
from ttm_jax.multiplication.demo.trace import trace
from ttm_jax.multiplication.multiplier import Multiplier

HOST = "127.0.0.1"


def make_app(multiplier: Multiplier) -> Starlette:
    """Make the app: the page at /, and /multiply?problem=123*45, which gives a trace or a one-line error as JSON."""

    def page(request: Request) -> Response:
        return HTMLResponse(page_html(multiplier.config.model.memory_size))

    def multiply(request: Request) -> Response:
        try:
            return JSONResponse(trace(multiplier, *parse_problem(request.query_params.get("problem", ""))).to_dict())
        except ProblemError as error:
            return JSONResponse({"error": str(error)}, status_code=400)

    # A foreign site that names this address by a host of its own is not answered.
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    return Starlette(routes=[Route("/", page), Route("/multiply", multiply)], middleware=[hosts])


def bind(port: int) -> socket.socket:
    """Open a socket that listens on this machine alone; on a free port where 0.

    Raises:
        OSError: if the port is taken or not allowed.
    """
    return socket.create_server((HOST, port))


def serve(multiplier: Multiplier, listener: socket.socket, problem: tuple[int, int] | None = None) -> None:
    """Print the address and serve until Ctrl-C."""
    query = "?" + urlencode({"problem": "{}*{}".format(*problem)}) if problem else ""
    print(f"http://{HOST}:{listener.getsockname()[1]}/{query} - Ctrl-C ends it", flush=True)
    server = uvicorn.Server(uvicorn.Config(make_app(multiplier), lifespan="off", log_level="warning"))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
