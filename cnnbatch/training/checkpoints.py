"""Checkpoints on any storage: each one object, put whole; the newest and the best are kept.

A checkpoint is named by where it stands, so the newest is the last by name; a worker that was lost while it
wrote leaves nothing.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pickle import UnpicklingError
from typing import Any

import torch

from cnnbatch.errors import UserError
from cnnbatch.output.folder import Output
from cnnbatch.storage import NotFound, redact
from cnnbatch.training.messages import Position

_NAME = re.compile(r"(\d{6})-(\d{9})\.pt$")
_FOLDER = ("_job", "training", "checkpoints")
_BEST = "best.pt"


class Checkpoints:
    """The checkpoints of one output."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def put(self, position: Position, state: Mapping[str, Any]) -> None:
        """Write the newest; the ones before it are deleted then."""
        name = f"{position.name}.pt"
        self._output.storage.put(self._output.path(*_FOLDER, name), _bytes(state))
        for earlier in self._names():
            if earlier < name:
                self._output.storage.delete(self._output.path(*_FOLDER, earlier))

    def put_best(self, state: Mapping[str, Any]) -> None:
        """Write the best so far."""
        self._output.storage.put(self._output.path(*_FOLDER, _BEST), _bytes(state))

    def newest(self) -> tuple[Position, dict[str, Any]] | None:
        """Return the last one; None where there is none."""
        names = self._names()
        if not names:
            return None
        found = _NAME.match(names[-1])
        assert found is not None
        return Position(int(found[1]), int(found[2])), self._read(names[-1])

    def best(self) -> dict[str, Any] | None:
        """Return the best one; None where there is none."""
        try:
            return self._read(_BEST)
        except NotFound:
            return None

    def delete(self) -> None:
        """Delete all of them."""
        for name in [*self._names(), _BEST]:
            self._output.storage.delete(self._output.path(*_FOLDER, name))

    def _names(self) -> list[str]:
        return sorted(name for name in self._output.names("/".join(_FOLDER)) if _NAME.match(name))

    def _read(self, name: str) -> dict[str, Any]:
        uri = self._output.path(*_FOLDER, name)
        data = self._output.storage.read(uri)
        try:
            state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            if not isinstance(state, dict):
                raise ValueError(f"it holds a {type(state).__name__}")
        except (
            RuntimeError,
            ValueError,
            LookupError,
            TypeError,
            EOFError,
            OSError,
            UnpicklingError,
        ) as error:
            raise UserError(
                f"the checkpoint {redact(uri)} cannot be read: {error}\n"
                "  what to do: delete it, to begin again, or choose another output"
            ) from error
        return state


def _bytes(state: Mapping[str, Any]) -> bytes:
    sink = io.BytesIO()
    torch.save(dict(state), sink)
    return sink.getvalue()
