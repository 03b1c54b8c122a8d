"""What a task is: one file here, found by its name, and nothing else to register.

A task of an installed package is named as its entry point ``tasks.NAME`` says, any other one
``mypackage.module:MyTask``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict

from cnnbatch.types import Backend, Precision

if TYPE_CHECKING:
    import pyarrow as pa

    from cnnbatch.config.train import Train
    from cnnbatch.models.depth import Tap
    from cnnbatch.tasks.recipes.recipe import Recipe, TrainingData
    from cnnbatch.types import Model, Runtime


class Task(BaseModel):
    """The ``task:`` section of a job; subclasses add their fields, which are their specification."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shard_size: ClassVar[int] = 1000
    """Images in one shard, but for the small ones at both ends of a plan; fewer where an image costs more."""
    outside_fingerprint: ClassVar[frozenset[str]] = frozenset()
    """Fields that can't change a row."""
    batch: ClassVar[Mapping[str, int]] = {"cuda": 64, "mps": 16, "cpu": 16}
    """Inputs in one forward pass, by device, where the job does not say."""
    backends: ClassVar[frozenset[Backend]] = frozenset({"eager"})
    """What `load` can run the network by."""
    precisions: ClassVar[frozenset[Precision]] = frozenset({"fp32"})
    """What `load` can run the network in."""
    learns_new_classes: ClassVar[bool] = False
    """Whether what it learns is told of other classes than those that it learned from, as of new people."""
    prepares_on_device: ClassVar[bool] = False
    """Whether its model's `prepare` leaves pixels on the device on which they lie."""

    name: str

    def columns(self) -> pa.Schema:
        """Return the task's own columns; key, uri, size and error are the engine's."""
        raise NotImplementedError

    def class_names(self) -> Sequence[str] | None:
        """Return the model's classes where the job tells them without loading it, else None."""
        return None

    def chosen_classes(self) -> Sequence[str] | None:
        """Return the classes that the job itself names, which a training learns in their order; else None."""
        return None

    def load(self, runtime: Runtime) -> Model:
        """Build the network on ``runtime.device``; imports torch, runs once a worker process."""
        raise NotImplementedError

    def require_weights(self) -> None:
        """Have what `load` needs on this machine, before anything that takes long begins; may import torch.

        Raises:
            UserError: it can't be, by a mistake in the job.
            EnvironmentFault: it is not here, and could not be fetched.
        """

    def require_weights_to_train(self) -> None:
        """Have what a training begins with on this machine; raises as `require_weights` does."""
        self.require_weights()

    def recipe(self, spec: Train, data: TrainingData) -> Recipe:
        """Return how its network is trained on ``data``; a task without one does not train."""
        raise NotImplementedError

    def with_features(self, most: int) -> tuple[Task, Sequence[Tap]] | None:
        """Return the same task writing ``embedding``, by which a training chooses how much of it to tune.

        It joins what the blocks of the network give, up to ``most`` of them, which are returned with it; none
        where the network can't be cut. None: the task has no features to choose by.
        """
        return None
