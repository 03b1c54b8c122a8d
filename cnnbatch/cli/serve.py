"""``cnnbatch serve``: an index that is asked over HTTP."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated

import typer

from cnnbatch.cli.command import Plugins, give, leave_with
from cnnbatch.cli.index import Allowed, IndexName
from cnnbatch.errors import UserError
from cnnbatch.terminal import say

NEEDED = ("fastapi", "uvicorn", "python_multipart", "prometheus_client", "grpc", "ray", "faiss")
"""What the extra ``serve`` brings, by the names that are imported."""


def serve(
    index: IndexName,
    host: Annotated[
        str, typer.Option("--host", help="Where to listen; other than this machine alone needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65_535, help="0: one that is free.")] = 8000,
    token_file: Annotated[
        str | None,
        typer.Option(
            "--token-file",
            metavar="FILE",
            help="The token that clients have to send; else the environment variable CNNBATCH_TOKEN.",
        ),
    ] = None,
    gallery: Annotated[
        str | None,
        typer.Option(
            "--gallery",
            metavar="FOLDER",
            help="Whom /identify knows: photos in a folder a person; else the index's own names.",
        ),
    ] = None,
    people: Annotated[
        str | None,
        typer.Option(
            "--people",
            metavar="COLUMN",
            help="Whose names these are: persons, a column, or folder (of pictures); else persons, "
            "where one has a name, or as the index was built.",
        ),
    ] = None,
    replicas: Annotated[int, typer.Option("--replicas", min=1, max=1_000, help="Processes that answer.")] = 1,
    batch: Annotated[
        int, typer.Option("--batch", min=1, max=1_000, help="Questions that are answered together, at most.")
    ] = 16,
    batch_wait_ms: Annotated[
        float, typer.Option("--batch-wait-ms", min=0, max=1_000, help="How long the first waits for others.")
    ] = 10.0,
    request_mb: Annotated[
        float, typer.Option("--request-mb", min=0.1, max=64, help="How large a request may be.")
    ] = 20.0,
    requests_per_second: Annotated[
        float, typer.Option("--requests-per-second", min=0, max=1e6, help="Of one client; 0: any number.")
    ] = 10.0,
    refresh_s: Annotated[
        float, typer.Option("--refresh-s", min=0.1, max=86_400, help="How often to look for a newer state.")
    ] = 10.0,
    allow: Allowed = None,
    skip_damaged: Annotated[
        bool, typer.Option("--skip-damaged", help="Serve the rest where objects are missing or damaged.")
    ] = False,
    plugin: Plugins = None,
) -> None:
    """Answer search, verify and identify over HTTP, and show a page where a person drops a photo."""

    def action() -> int:
        require_extra()
        from cnnbatch.index.identify import Named
        from cnnbatch.index.serving.gate import Limits
        from cnnbatch.index.serving.server import serve_index
        from cnnbatch.index.serving.service import ReplicaOptions, ServiceOptions
        from cnnbatch.index.serving.token import is_loopback, required_token

        give(plugin)
        token = required_token(host, token_file)
        if not is_loopback(host):
            say("connections are not encrypted: let a proxy with TLS stand in front", err=True)
        service = ServiceOptions(
            index,
            Named(gallery, people),
            refresh_s,
            skip_damaged,
            [one.value for one in allow or ()],
        )
        options = ReplicaOptions(service, replicas, batch, batch_wait_ms / 1000, tuple(plugin or ()))
        limits = Limits(round(1e6 * request_mb), per_second=requests_per_second)
        serve_index(options, (host, port), limits, token, say)
        return 0

    leave_with(action, "Stopped. The same command serves again.")


def require_extra() -> None:
    """Raise UserError where what serving needs is not installed."""
    lacking = [name for name in NEEDED if find_spec(name) is None]
    if lacking:
        raise UserError(
            f"cnnbatch serve needs {', '.join(lacking)}, not installed here\n"
            "  what to do: pip install 'cnnbatch[serve]'"
        )
