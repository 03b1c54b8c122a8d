"""A trained model as files: ``model.safetensors`` and ``model.json``, written by a training, read by any job.

``model.json`` is written last: where it is there, the weights are whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cnnbatch.errors import UserError
from cnnbatch.storage import Forbidden, NotFound, Storage, Unreadable, join, normalize, redact

if TYPE_CHECKING:
    from cnnbatch.output import Output
    from cnnbatch.training.recipe import Learned

WEIGHTS = "model.safetensors"
ABOUT = "model.json"


def put_model(output: Output, learned: Learned) -> None:
    """Write a trained model into an output."""
    from safetensors.torch import save

    data = save({name: tensor.contiguous() for name, tensor in learned.state.items()})
    output.storage.put(output.path(WEIGHTS), data)
    about = {
        "architecture": dict(learned.architecture),
        "preprocessing": dict(learned.preprocessing),
        "classes": list(learned.classes),
        "sha256": hashlib.sha256(data).hexdigest(),
        **learned.about,
    }
    output.storage.put(output.path(ABOUT), json.dumps(about, indent=1).encode())


def read_model(place: str, storage: Storage | None = None) -> dict[str, Any] | None:
    """Return what ``model.json`` in a folder at any URL says; None where there is none."""
    if "/" not in place and "\\" not in place and not place.startswith("."):
        from pathlib import Path

        if not Path(place).is_dir():  # The name of a model, which is no folder here.
            return None
    try:
        found: dict[str, Any] = json.loads((storage or Storage()).read(join(normalize(place), ABOUT)))
    except (NotFound, Forbidden, Unreadable, ValueError):
        return None
    return found


def require_task(about: Mapping[str, Any], task: str, place: str) -> None:
    """Insist on a model that was trained for ``task``."""
    made_for = about["architecture"].get("task")
    if made_for != task:
        raise UserError(f"task.model: {redact(place)} was trained to {made_for}, expected one for {task}")
