"""The folders on this machine that keep what was downloaded or found out, for later runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(of: str = "weights") -> Path:
    """Return the folder that keeps downloaded weights, or something else; ``CNNBATCH_CACHE`` moves it."""
    root = os.environ.get("CNNBATCH_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "cnnbatch"
    )
    return Path(root, of)
