"""Tells TensorFlow's own formats by their names, and how to bring them here; none is ever opened.

A SavedModel is a program for TensorFlow's runtime, which is not used here; the same network in an ONNX
file runs.
"""

from __future__ import annotations

import os

from cnnbatch.errors import UserError

_GRAPH = "saved_model.pb"


def refuse(spec: str, field: str) -> None:
    """Refuse a SavedModel: its folder, or any ``.pb`` file; ``field`` is the job's field that names it.

    Raises:
        UserError: it is one; says how to export it to ONNX.
    """
    trimmed = spec.rstrip("/")
    if trimmed.endswith(".pb"):
        folder = trimmed.rpartition("/")[0] or "."
    elif "://" not in trimmed and os.path.isfile(os.path.join(trimmed, _GRAPH)):
        folder = trimmed
    else:
        return
    raise UserError(
        f"{field}: {spec!r} is a TensorFlow SavedModel, which needs TensorFlow; expected an ONNX file\n"
        "  what to do: export it where TensorFlow is installed (pip install tf2onnx), and run that:\n"
        f"  python -m tf2onnx.convert --saved-model {folder} --output model.onnx\n"
        "  and give task.model=onnx task.weights=model.onnx (docs/onnx.md has the rest)"
    )
