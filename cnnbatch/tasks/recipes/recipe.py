"""What a task that trains gives to the loop, which knows nothing else of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any, Protocol

from cnnbatch.types import Prepared

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cnnbatch.models.trained_files import Learned
    from cnnbatch.types import Image


@dataclass(frozen=True, slots=True)
class TrainingData:
    """What is known of the training images before the first is read.

    ``classes`` in the network's order; ``counts`` how many training images, objects, or pixels of maps each
    has. Of maps ``numbers`` are those that stand for the classes in them, where pixels of other numbers do
    not count; ``seen`` how many training images have a pixel of each class, and ``pixels`` all that count.
    """

    classes: tuple[str, ...]
    counts: Mapping[str, int]
    images: int
    numbers: Mapping[str, int] = field(default_factory=dict)
    seen: Mapping[str, int] = field(default_factory=dict)

    @property
    def pixels(self) -> int:
        """Return the number of pixels that count, of all training maps."""
        return sum(self.counts.values())


@dataclass(frozen=True, slots=True)
class Example(Prepared):
    """One input of the network with what it should say; ``target`` is the recipe's own."""

    target: Any = None


def _same(values: Tensor) -> Tensor:
    return values


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of all workers' images, (N, ...), of which ``count`` from ``first`` on are this worker's."""

    values: Tensor
    first: int
    count: int


def _own(values: Tensor) -> Rows:
    return Rows(values, 0, len(values))


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples together: ``inputs`` are the module's arguments, ``truth`` what the loss compares with.

    Several workers may share a step: ``share`` is this worker's part of its images, 0 where it has none and
    computes with a picture of no weight; ``total`` returns the sums of a tensor over all workers,
    ``together`` the rows of all of them. Neither has gradients.
    """

    inputs: tuple[Any, ...]
    truth: Any
    size: int
    share: Tensor | float = 1.0
    total: Callable[[Tensor], Tensor] = _same
    together: Callable[[Tensor], Rows] = _own


def of_all_workers(rows: Tensor, batch: Batch) -> Tensor:
    """Return the rows (N, ...) of all workers' images; gradients reach those of this one.

    What the loop makes of the gradients weights each worker's by its share of the images; so they are divided
    by it here.
    """
    found = batch.together(rows.detach())
    own = rows[: found.count]
    share = batch.share if isinstance(batch.share, float) else batch.share.to(rows.dtype)
    every = found.values + 0 * rows.sum()  # A worker without images takes part in the gradients, too.
    every[found.first : found.first + found.count] += (own - own.detach()) / share
    return every


@dataclass(frozen=True, slots=True)
class Parameters:
    """Parameters that are learned alike: at ``scale`` times the learning rate, with decay or without."""

    name: str
    tensors: Sequence[nn.Parameter]
    scale: float = 1.0
    decay: bool = True


class Recipe(Protocol):
    """How a task's network is trained.

    It may also have ``inside``: called with examples of the validation, when the best weights are in
    `module`, on the CPU and not training, it returns what a lesson shows of the network, each a
    `tasks.recipes.inside.Strip`; it gets ``shown`` of them, four where the recipe does not say, those of one
    class together where it says ``pictures_per_class``: of each class in a step of the training there are so
    many images, as far as it has them. ``inside_step``: the same of the examples of a step of the training,
    not changed by chance. ``vectors``: called with the values of a validation, it returns which of them a
    lesson shows by epoch: the names of some pictures' classes, always the same, and their vectors (N, D).
    ``fit``: called once before the first step, with batches on the device that together have every
    training image once, not changed by chance.
    """

    module: nn.Module
    """Called with a batch's inputs; parameters that are not learned do not require gradients."""
    metric: str
    """The number of `measure` by which one epoch is better than another: more is better."""

    def decode_size(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """Return the least (height, width) that `example` needs of a picture of ``size``; None: all."""

    def example(self, image: Image, draw: Random | None) -> Example:
        """Turn one image into one input; by chance, where there is something to ``draw`` with.

        Runs in the thread that decoded it. Raises ValueError for a truth that it can't learn.
        """

    def collate(self, examples: Sequence[Example], training: bool) -> Batch:
        """Put examples together, on the CPU."""

    def on_device(self, batch: Batch, draw: Random | None) -> Batch:
        """Finish a batch on the device: normalise, and mix by chance where there is ``draw``."""

    def loss(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """Return the parts of the loss, whose sum is minimised: means over the batch's images.

        A part that is no such mean is made of sums over all workers, see `Batch`, and is the same on each.
        """

    def parameters(self) -> Sequence[Parameters]:
        """Return all that is learned, the head last."""

    def judge(self, outputs: Any, batch: Batch) -> list[Any]:
        """Return of each image a small value from which `measure` makes its numbers."""

    def measure(self, values: Sequence[Any]) -> dict[str, float]:
        """Return the numbers of a validation, `metric` among them."""

    def learned(self, state: Mapping[str, Tensor]) -> Learned:
        """Return what is written for other jobs, from a state dict of `module`."""
