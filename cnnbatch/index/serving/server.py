"""The HTTP server in front of the replicas, until it is stopped."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.index.photos import task_of
from cnnbatch.index.search import open_index
from cnnbatch.index.serving.app import build_app
from cnnbatch.index.serving.gate import Limits
from cnnbatch.index.serving.service import ReplicaOptions
from cnnbatch.index.serving.token import Token

CONNECTIONS = 1_000
STOP_S = 3
"""How long answers that are under way may take once the server is stopped."""


def serve_index(
    options: ReplicaOptions,
    address: tuple[str, int],
    limits: Limits,
    token: Token | None,
    note: Callable[[str], object],
) -> None:
    """Answer about an index at a host and a port until a signal comes; ``note`` is told where.

    Raises UserError or EnvironmentFault where that can't be.
    """
    with listening(*address) as listener:
        index = open_index(options.service.index)
        task_of(index.uri, index.manifest)
        note(f"loading {len(index):,} embeddings and their network")
        from cnnbatch.cluster import session  # Ray takes seconds, and mistakes are said before.
        from cnnbatch.index.serving.deployment import replicas

        with replicas(options) as backend, running(build_app(backend, limits, token), listener) as thread:
            note(f"answering at {url_of(listener)} (Ctrl-C stops)")
            while thread.is_alive():
                thread.join(1.0)
                session.require_alive()


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """Give a socket that listens at a host and a port; raises UserError where there can be none."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(
            f"--host {host} --port {port}: nothing can listen there: {why}"
            "\n  what to do: give another port, or 0 for one that is free"
        ) from None
    with listener:
        yield listener


def url_of(listener: socket.socket) -> str:
    """Return the address at which a socket is asked by HTTP."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextmanager
def running(app: ASGIApp, listener: socket.socket) -> Iterator[threading.Thread]:
    """Have a thread answer at a socket while the block lasts; raises EnvironmentFault where it can't."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        proxy_headers=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=STOP_S,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), name="http", daemon=True)
    thread.start()
    try:
        while not server.started:
            thread.join(0.05)
            if not thread.is_alive():
                raise EnvironmentFault("the HTTP server did not start", "look at what it printed")
        yield thread
    finally:
        server.should_exit = True
        thread.join(STOP_S + 2)
