"""What was found of how networks run fastest, kept in the user's cache for later jobs; the driver's side.

One small file for each task and conditions. Nothing of a file is believed but values of the types that
`RememberedSettings` has; what is damaged is removed and costs a note, as does a folder that can't be written.
The price: what was found on one collection of images is taken for the next. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from cnnbatch.errors import EnvironmentFault
from cnnbatch.inference.messages import RememberedSettings
from cnnbatch.job import MapJob, fingerprint_fields
from cnnbatch.storage import Forbidden, NotFound, Storage, TooLarge, Unreadable
from cnnbatch.storage.cache import cache_folder

MOST_FILES = 256
"""Files in the folder; the oldest go first."""
MOST_BYTES = 16_384
_MOST_READ = 32  # of one task: its devices, versions and what jobs left open
_NAME = re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}\.json")
_SHAPE = TypeAdapter(RememberedSettings)

Note = Callable[[str], None]


def folder() -> Path:
    """Return the folder that keeps what was found; deleting it has everything measured anew."""
    return cache_folder("settings").absolute()


def recall(job: MapJob, note: Note) -> tuple[RememberedSettings, ...]:
    """Return what is remembered for the job's task, under whatever conditions; ``note`` is told of damage."""
    found, damaged = [], []
    for path in _newest(f"{_task(job)}-*.json")[:_MOST_READ]:
        try:
            found.append(_SHAPE.validate_json(Storage().read(str(path), limit=MOST_BYTES), strict=True))
        except (NotFound, Forbidden, EnvironmentFault):
            continue  # Another run has removed it, or it is another user's.
        except (ValidationError, TooLarge, Unreadable):
            damaged.append(path)
    for path in damaged:
        with suppress(OSError):
            path.unlink()
    if damaged:
        note(f"{damaged[0]} is no record of how a network runs fastest, so that is measured anew")
    return tuple(found)


def remember(job: MapJob, found: RememberedSettings, note: Note) -> None:
    """Keep what was found, in the place of what was before; ``note`` is told where that can't be."""
    path = folder() / f"{_task(job)}-{_digest(found.conditions)}.json"
    try:
        Storage().put(str(path), json.dumps(asdict(found), indent=1, ensure_ascii=False).encode())
    except EnvironmentFault as fault:
        note(f"what was measured is not remembered: {fault.what} (CNNBATCH_CACHE names another folder)")
    for old in _newest("*.json")[MOST_FILES:]:
        with suppress(OSError):
            old.unlink()


def _newest(pattern: str) -> list[Path]:
    """Return the files whose names are of this folder, the newest first; none where it can't be read."""
    return [path for _, path in sorted(_dated(pattern), reverse=True)]


def _dated(pattern: str) -> Iterator[tuple[float, Path]]:
    with suppress(OSError):
        for path in folder().glob(pattern):
            if _NAME.fullmatch(path.name):
                with suppress(OSError):  # Another run has removed it.
                    yield path.lstat().st_mtime, path


def _task(job: MapJob) -> str:
    """Return a digest of the task, and of the version by which these files are written."""
    return _digest({"task": fingerprint_fields(job)["task"], "cnnbatch": version("cnnbatch")})


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
