"""A task for tests of choosing: every way through its network has its own pace, and its own opinion."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from cnnbatch.errors import UserError
from cnnbatch.inference.autotune import candidates
from cnnbatch.models.runtime.backends import Unavailable
from cnnbatch.tasks import Task
from cnnbatch.types import Backend, Precision, Runtime

if TYPE_CHECKING:
    import torch

    from cnnbatch.types import Image, Prepared


LIBRARY = "paced 1"
"""What its model says that made it: another network, for a task that is the same."""
LACKING: set[str] = set()
"""Backends that this machine has no more."""


class Paced(Task):
    """Probabilities of eight classes. ``milliseconds`` an image by backend; ``shift`` of the best class.

    Both may also have a backend with its precision, as in ``eager bf16``.

    ``share`` stands for the part of the job's time that may be spent on measuring. ``refused`` is a
    backend in which the network refuses its input, ``dies`` one that kills its process, which
    leaves the file ``died``; ``weights`` are what the model says it has.
    """

    precisions: ClassVar[frozenset[Precision]] = frozenset({"fp32", "bf16"})
    backends: ClassVar[frozenset[Backend]] = frozenset({"eager", "compile", "openvino"})

    milliseconds: dict[str, float] = {"eager": 4.0, "openvino": 1.0, "compile": 2.0}
    shift: dict[str, int] = {}
    unavailable: tuple[str, ...] = ()
    refused: str = ""
    dies: str = ""
    died: str = ""
    share: float = 100.0
    weights: str = "0" * 64

    def columns(self) -> pa.Schema:
        """Return which backend said it."""
        return pa.schema([pa.field("label", pa.string())])

    def load(self, runtime: Runtime) -> PacedModel:
        """Make the network."""
        candidates.SHARE = self.share
        candidates.LOADING_S = dict.fromkeys(candidates.LOADING_S, 0.1)
        if runtime.backend in {*self.unavailable, *LACKING}:
            raise Unavailable(f"planted: no {runtime.backend}")
        if runtime.backend == self.refused:  # As `network.check` says of outputs that overflow.
            raise UserError("task.model: planted: infinite outputs")
        return PacedModel(self, runtime)


class PacedModel:
    """The network, in the shape of `cnnbatch.tasks.Model`."""

    def __init__(self, task: Paced, runtime: Runtime) -> None:
        self._task, self._runtime = task, runtime
        self.identity: Mapping[str, str] = {
            "weights": task.weights,
            "preprocessing": "8",
            "library": LIBRARY,
        }

    def decode_size(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """Ask for the whole picture."""
        return None

    def prepare(self, image: Image) -> Sequence[Prepared]:
        """Cut out eight pixels."""
        from cnnbatch.types import Prepared

        return [Prepared(image.pixels[:, :1, :8], (1, 8))]

    def forward(self, batch: torch.Tensor, sizes: torch.Tensor) -> dict[str, torch.Tensor]:
        """Take the processor's time, and say a class that the picture decides."""
        import torch

        backend = self._runtime.backend
        if backend == self._task.dies:
            Path(self._task.died).touch()
            os._exit(1)
        way = f"{backend} {self._runtime.precision}"
        milliseconds, shift = self._task.milliseconds, self._task.shift
        ends = time.thread_time() + len(batch) * milliseconds.get(way, milliseconds[backend]) / 1000
        while time.thread_time() < ends:
            pass
        classes = (batch[:, 0, 0, 0].long() + shift.get(way, shift.get(backend, 0))) % 8
        return {"probabilities": 0.2 + 0.6 * torch.nn.functional.one_hot(classes, 8).float()}

    def rows(
        self,
        images: Sequence[Image],
        prepared: Sequence[Sequence[Prepared]],
        outputs: Sequence[Sequence[Any]],
    ) -> pa.RecordBatch:
        """Say which backend it was."""
        labels: list[pa.Array[Any]] = [pa.array([self._runtime.backend] * len(images))]
        return pa.RecordBatch.from_arrays(labels, schema=self._task.columns())
