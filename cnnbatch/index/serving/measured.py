"""What a server counts of itself, in the text that Prometheus reads."""

from __future__ import annotations

import time
from collections.abc import Collection

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cnnbatch.index.serving.answers import About

BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """Requests and their seconds by path, and the state of the index as it was last seen."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "cnnbatch_requests", "Requests answered.", ["path", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "cnnbatch_request_seconds",
            "Seconds from a request's headers to the end of its answer.",
            ["path"],
            buckets=BUCKETS_S,
            registry=self._registry,
        )
        self._under_way = Gauge("cnnbatch_requests_under_way", "Requests now.", registry=self._registry)
        self._state = Gauge("cnnbatch_index_state", "The state of the index.", registry=self._registry)
        self._size = Gauge("cnnbatch_index_embeddings", "Embeddings searched.", registry=self._registry)
        self._problem = Gauge(
            "cnnbatch_index_refresh_failed",
            "Whether a newer state could not be taken over.",
            registry=self._registry,
        )

    def text(self, about: About) -> bytes:
        """Return all, with what the index is now."""
        self._state.set(about.index.state)
        self._size.set(about.index.embeddings)
        self._problem.set(about.problem is not None)
        return generate_latest(self._registry)

    def counting(self, app: ASGIApp, paths: Collection[str]) -> ASGIApp:
        """Return ``app``, whose requests are counted by these ``paths``; all others as one."""

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            path = scope["path"] if scope["path"] in paths else "other"
            status = 500

            async def noted(message: Message) -> None:
                nonlocal status
                status = message.get("status", status)
                await send(message)

            started = time.perf_counter()
            with self._under_way.track_inprogress():
                try:
                    await app(scope, receive, noted)
                finally:
                    self._requests.labels(path, str(status)).inc()
                    self._seconds.labels(path).observe(time.perf_counter() - started)

        return counted
