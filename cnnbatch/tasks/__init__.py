"""What a task is: one file here, found by its name, and nothing else to register.

A task outside this package is named ``mypackage.module:MyTask``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

    from cnnbatch.records import Image, Prepared
    from cnnbatch.training.recipe import Recipe, TrainingData
    from cnnbatch.training.spec import Train

Precision = Literal["fp32", "bf16", "fp16"]
Backend = Literal["eager", "compile", "openvino"]
Decoder = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class Runtime:
    """Where and how a model runs; settled before the first shard.

    ``device`` is a torch device string (``cpu``, ``cuda``, ``mps``); ``threads`` is the number
    of CPU threads that the forward pass may use; ``batch`` the number of inputs that nearly every
    forward pass has.
    """

    device: str
    precision: Precision = "fp32"
    backend: Backend = "eager"
    threads: int = 1
    batch: int = 1


class Preparing(Protocol):
    """What turns decoded pictures into network inputs, in the threads that decode them."""

    def decode_size(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """Return the least (height, width) that `prepare` needs of a picture of ``size``; None: all."""

    def prepare(self, image: Image) -> Sequence[Prepared]:
        """Turn one image into network inputs; runs in the thread that decoded it, where the pixels lie."""


class Model(Preparing, Protocol):
    """A task's network, loaded on one device; the worker calls its steps, each in its own threads.

    It may also have ``classes``, a `truth.ModelClasses`, which the output keeps; ``match``: called
    with the classes of a truth that has objects, it raises `UserError` where it can't know one of them; and
    ``notes``, sentences that a run shows: what was assumed of its weights.
    """

    identity: Mapping[str, str]
    """What can change a row: ``weights`` (SHA-256), ``preprocessing``, ``library`` (major.minor)."""

    def forward(self, batch: torch.Tensor, sizes: torch.Tensor) -> Any:
        """Run the network on ``batch`` (N, 3, H, W) with picture ``sizes`` (N, 2) as (height, width).

        Returns a dict or tuple of tensors, or of lists, of first dimension N.
        """

    def rows(
        self,
        images: Sequence[Image],
        prepared: Sequence[Sequence[Prepared]],
        outputs: Sequence[Sequence[Any]],
    ) -> pa.RecordBatch:
        """Build one row an image with the columns of `Task.columns`; one inner sequence an image."""


class Task(BaseModel):
    """The ``task:`` section of a job; subclasses add their fields, which are their specification."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shard_size: ClassVar[int] = 1000
    """Images in one of the first shards; fewer where an image costs more."""
    outside_fingerprint: ClassVar[frozenset[str]] = frozenset()
    """Fields that can't change a row."""
    batch: ClassVar[Mapping[str, int]] = {"cuda": 64, "mps": 16, "cpu": 16}
    """Inputs in one forward pass, by device, where the job does not say."""
    backends: ClassVar[frozenset[Backend]] = frozenset({"eager"})
    """What `load` can run the network by."""
    precisions: ClassVar[frozenset[Precision]] = frozenset({"fp32"})
    """What `load` can run the network in."""
    prepares_on_device: ClassVar[bool] = False
    """Whether its model's `prepare` leaves pixels on the device on which they lie."""

    name: str

    def columns(self) -> pa.Schema:
        """Return the task's own columns; key, uri, size and error are the engine's."""
        raise NotImplementedError

    def class_names(self) -> Sequence[str] | None:
        """Return the model's classes where the job tells them without loading it, else None."""
        return None

    def load(self, runtime: Runtime) -> Model:
        """Build the network on ``runtime.device``; imports torch, runs once an actor."""
        raise NotImplementedError

    def require_weights(self) -> None:
        """Have what `load` needs on this machine, before anything that takes long begins; may import torch.

        Raises:
            UserError: it can't be, by a mistake in the job.
            EnvironmentFault: it is not here, and could not be fetched.
        """

    def recipe(self, spec: Train, data: TrainingData) -> Recipe:
        """Return how its network is trained on ``data``; a task without one does not train."""
        raise NotImplementedError
