"""The folder on this machine that keeps what was downloaded."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder that keeps downloaded weights; ``CNNBATCH_CACHE`` moves it."""
    root = os.environ.get("CNNBATCH_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "cnnbatch"
    )
    return Path(root, "weights")
