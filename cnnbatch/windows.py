"""A window of a shard: consecutive images, their inputs cut into batches, and the outputs as they come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from cnnbatch.readahead import Item
from cnnbatch.records import Failure, Prepared

Shape = tuple[int, ...]


class Window:
    """Some consecutive images of a shard, and the outputs of their inputs as they come."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items
        self.inputs = [(item, prepared) for item in items for prepared in item.prepared]
        self.missing = len(self.inputs)
        self._outputs: list[Any] = [None] * len(self.inputs)

    def put(self, numbers: Sequence[int], outputs: Sequence[Any]) -> None:
        """Take the outputs of the inputs of these numbers."""
        for number, output in zip(numbers, outputs, strict=True):
            self._outputs[number] = output
        self.missing -= len(numbers)

    def fail(self, number: int, failure: Failure) -> None:
        """Fail the image of an input; what its other inputs give is of no use any more."""
        self.inputs[number][0].outcome.failure = failure
        self.missing -= 1

    def outputs(self) -> list[list[Any]]:
        """Return the outputs, one inner list an image that has not failed."""
        stream = iter(self._outputs)
        lists = [(item, list(islice(stream, len(item.prepared)))) for item in self.items]
        return [found for item, found in lists if item.outcome.failure is None]


def batches(inputs: Sequence[Prepared], limit: int) -> Iterator[tuple[int, ...]]:
    """Yield the numbers of at most ``limit`` inputs that have one shape, in their order."""
    shapes: dict[Shape, list[int]] = {}
    for number, prepared in enumerate(inputs):
        shapes.setdefault(tuple(prepared.pixels.shape), []).append(number)
    for numbers in shapes.values():
        for start in range(0, len(numbers), limit):
            yield tuple(numbers[start : start + limit])


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """Inputs of a window that have one shape, by their numbers."""

    window: Window
    numbers: tuple[int, ...]

    def prepared(self) -> list[Prepared]:
        """Return the inputs."""
        return [self.window.inputs[number][1] for number in self.numbers]

    def positions(self) -> set[int]:
        """Return the positions of their images in the shard."""
        return {self.window.inputs[number][0].position for number in self.numbers}

    def part(self, start: int, stop: int) -> Inputs:
        """Return some of them."""
        return Inputs(self.window, self.numbers[start:stop])
