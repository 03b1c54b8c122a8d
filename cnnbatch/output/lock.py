"""Holds an output for one run; a courtesy to people, since correctness rests on create-only parts alone."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cnnbatch.errors import EnvironmentFault, OutputHeld, UserError
from cnnbatch.storage import AlreadyExists, Changed, NotFound, Storage, redact
from cnnbatch.terminal import interrupts

RENEW_S = 15.0
GONE_AFTER_S = 90.0


@contextmanager
def hold(storage: Storage, uri: str, run: str) -> Iterator[None]:
    """Hold the lock at ``uri`` for ``run``, renewing it until the block ends.

    A holder that is gone (its process on this host has ended, or a host elsewhere has not renewed
    for `GONE_AFTER_S`) is replaced. Raises OutputHeld where another run is alive, and UserError for a lock
    that doesn't say who holds it.
    """
    etag = _take(storage, uri, run)
    stop = threading.Event()
    renewal = threading.Thread(target=_renew, args=(storage, uri, run, etag, stop), daemon=True)
    renewal.start()

    def release() -> None:
        if _is_ours(storage, uri, run):
            storage.delete(uri)

    try:
        with interrupts.cleaned_up_by(release):
            yield
    finally:
        stop.set()
        renewal.join()
        with suppress(EnvironmentFault):  # A lock that stays is taken over; the run has ended as it has.
            release()


def _take(storage: Storage, uri: str, run: str) -> str:
    try:
        return storage.create(uri, _claim(run))
    except AlreadyExists:
        pass
    try:
        etag = storage.head(uri).etag or ""
        holder = _holder(uri, storage.read(uri))
        if _alive(holder):
            raise OutputHeld(
                f"{redact(uri)} says that another run holds this output: process {holder.process} on "
                f"{holder.host}, since {holder.since}.\n"
                "  what to do: wait until it ends, or stop it; then give the same command again"
            )
        return storage.replace(uri, _claim(run), etag)
    except (Changed, NotFound, AlreadyExists):
        raise OutputHeld(f"another run took this output a moment ago ({redact(uri)})") from None


def _claim(run: str) -> bytes:
    now = time.time()
    claim = {
        "run": run,
        "host": socket.gethostname(),
        "process": os.getpid(),
        "started": _started(os.getpid()),
        "renewed": now,
        "since": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now)),
    }
    return json.dumps(claim).encode()


class _Holder(BaseModel):
    """What a lock says of the run that holds it."""

    model_config = ConfigDict(strict=True, frozen=True)

    run: str
    host: str
    process: int = Field(0, ge=0, lt=1 << 32)
    started: str | None = None
    renewed: float = Field(0.0, allow_inf_nan=False)
    since: str = "a time that it doesn't say"


def _holder(uri: str, data: bytes) -> _Holder:
    """Return what a lock says; raises UserError where it is damaged, since its holder may be alive."""
    try:
        return _Holder.model_validate_json(data)
    except ValidationError:
        raise UserError(
            f"the lock {redact(uri)} is damaged: it doesn't say which run holds this output\n"
            "  what to do: where no other run works on it, delete that file and give the same command again; "
            "finished parts are kept"
        ) from None


def _is_ours(storage: Storage, uri: str, run: str) -> bool:
    """Say whether ``run`` still holds the lock."""
    try:
        return _Holder.model_validate_json(storage.read(uri)).run == run
    except (NotFound, ValidationError):
        return False


def _alive(holder: _Holder) -> bool:
    if holder.host == socket.gethostname():
        return holder.started == _started(holder.process)
    return time.time() - holder.renewed < GONE_AFTER_S


def _started(process: int) -> str | None:
    """Return what tells a process from a later one of the same number; None where it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return _exists(process)
    return None if fields[0] == "Z" else fields[19]


def _exists(process: int) -> str | None:
    if Path("/proc/self").exists() or process <= 0:
        return None
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "running"


def _renew(storage: Storage, uri: str, run: str, etag: str, stop: threading.Event) -> None:
    while not stop.wait(RENEW_S):
        try:
            etag = storage.replace(uri, _claim(run), etag)
        except (Changed, NotFound):
            found = _own(storage, uri, run)
            if found is None:
                return  # Another run took it over: the parts are create-only, so nothing is lost.
            etag = found
        except EnvironmentFault:
            continue  # Storage is down for a moment; the run itself will meet it too.


def _own(storage: Storage, uri: str, run: str) -> str | None:
    """Return the etag of the lock where ``run`` holds it: by a renewal, then, whose answer was lost."""
    try:
        etag = storage.head(uri).etag
        return etag if _is_ours(storage, uri, run) else None
    except (NotFound, EnvironmentFault):
        return None
