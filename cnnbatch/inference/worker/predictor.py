"""Sends a shard's inputs through the network, in batches of one shape that are cut in the plan's order.

Where the device's memory does not hold a batch, its first half goes first and then its second; after
that an input has other neighbours than planned, so that its values may differ within the guard, but
every image keeps its row and its place.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice
from traceback import clear_frames
from typing import Any, TypeVar

import torch
from torch import Tensor

from cnnbatch.errors import EnvironmentFault
from cnnbatch.inference.worker import device_memory
from cnnbatch.inference.worker.batch_size import BatchSize
from cnnbatch.inference.worker.journal import Journal
from cnnbatch.inference.worker.readahead import Item
from cnnbatch.inference.worker.transfer import Transfer, stack
from cnnbatch.output.part import Outcome
from cnnbatch.types import Failure, Image, ImageRef, Model, Prepared

PROBE_SIZE = (480, 640)
SMALL_SIZE = (64, 64)
Fetch = Callable[[], list[Any]]
T = TypeVar("T")


class PredictFault(Exception):
    """The model raised on a batch: which images of which shard, and what it said."""

    def __init__(self, shard: int, positions: Sequence[int], message: str) -> None:
        super().__init__(shard, tuple(positions), message)
        self.shard = shard
        self.positions = tuple(positions)
        self.message = message


@dataclass(frozen=True, slots=True)
class NoRoom:
    """Why a batch did not fit the device: a value, since an error would keep the pass's tensors alive."""

    reason: str


class Predictor:
    """A model on its device, with what was learned of the device's memory: one size of batch a shape."""

    def __init__(self, model: Model, transfer: Transfer, journal: Journal, batch: int) -> None:
        self.transfer = transfer
        self.journal = journal
        self._model = model
        self._batch = batch
        self._sizes: dict[Kind, BatchSize] = {}

    def predict(
        self,
        shard: int,
        windows: Iterable[Sequence[Item]],
        timed: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> Iterator[Window]:
        """Yield every window once its outputs are there; an input that fits no memory fails its image.

        ``timed`` gives a block for what is done here, rather than in ``windows`` or by who takes them.
        Raises PredictFault where the model raised, EnvironmentFault where the device has no memory left.
        """
        flights = _Flights(self, shard)
        opened: deque[Window] = deque()
        for batch in _ahead(self._brought(windows, opened), self.transfer.depth):
            with timed():
                flights.run(batch)
            while opened and not opened[0].missing:
                yield opened.popleft()
        with timed():
            flights.finish()
        yield from opened

    def probe(self) -> None:
        """Run the network on one picture of random pixels; raises whatever it raises."""
        image = _random_image(PROBE_SIZE)
        item = Item(0, Outcome(image.ref), image, self._model.prepare(image))
        list(self.predict(0, [[item]]))
        if item.outcome.failure is not None:
            raise PredictFault(0, [0], item.outcome.failure.message)

    def forward(self, pixels: Tensor, prepared: Sequence[Prepared]) -> Fetch | NoRoom:
        """Run the network on a batch; return the call that gives its outputs, or that there is no room."""
        name = prepared[0].network
        model = self._model.networks[name] if name else self._model  # type: ignore[attr-defined]
        try:
            with torch.inference_mode():
                sizes = torch.tensor([one.sizes for one in prepared])
                return self.transfer.fetch(model.forward(pixels, sizes))
        except Exception as error:
            if not device_memory.is_exhausted(error):
                raise
            clear_frames(error.__traceback__)  # They hold what the pass had made when room ran out.
            return NoRoom(str(error).partition("\n")[0])

    def size(self, prepared: Prepared) -> BatchSize:
        """Return how many inputs of this shape go through at once."""
        return self._sizes.setdefault(_kind(prepared), BatchSize(self._batch))

    def require_memory(self, refused: Prepared) -> None:
        """Raise EnvironmentFault where not ``refused`` is too large, but the device is full.

        Where its shape has fitted before, an empty picture of that shape must fit, else a small picture.
        """
        if self.size(refused).has_fitted():
            inputs = [replace(refused, pixels=torch.zeros_like(refused.pixels, device="cpu"))]
        else:
            inputs = list(self._model.prepare(_random_image(SMALL_SIZE)))[:1]
        fetch = self.forward(stack(inputs), inputs)
        if isinstance(fetch, NoRoom):
            raise EnvironmentFault(
                f"on {socket.gethostname()} the device has no memory left: {fetch.reason}",
                "look what else runs on it; no row was written for these images",
            )
        fetch()

    def close(self) -> None:
        """End the threads."""
        self.transfer.close()

    def _brought(self, windows: Iterable[Sequence[Item]], opened: deque[Window]) -> Iterator[_Batch]:
        """Yield the batches of ``windows``, each on its way to the device; note the windows in ``opened``."""
        for items in windows:
            window = Window(items)
            opened.append(window)
            for numbers in batches([prepared for _, prepared in window.inputs], self._batch):
                yield _Batch(Inputs(window, numbers), self.transfer)


class _Batch:
    """Inputs on their way to the device."""

    def __init__(self, inputs: Inputs, transfer: Transfer) -> None:
        self.inputs = inputs
        self._transfer = transfer
        self._whole: Callable[[], Tensor] | None = cache(transfer.bring(inputs.prepared()))

    def pixels(self, start: int, stop: int) -> Tensor:
        """Return a part of the batch, which is brought anew where the whole was dropped."""
        if self._whole is None:
            return self._transfer.bring(self.inputs.part(start, stop).prepared())()
        return self._whole()[start:stop]

    def drop(self) -> None:
        """Drop the whole: it takes room, and a model may have written into what it was given of it."""
        self._whole = None


class _Flights:
    """What of one shard is on the device, the oldest first: inputs, each with the call for their outputs."""

    def __init__(self, predictor: Predictor, shard: int) -> None:
        self._predictor = predictor
        self._shard = shard
        self._flying: deque[tuple[Inputs, Fetch]] = deque()

    def run(self, batch: _Batch) -> None:
        """Send a batch through, in parts where it does not fit; its last outputs may come later."""
        prepared = batch.inputs.prepared()
        attempt = partial(self._launch, batch)
        for place, reason in self._predictor.size(prepared[0]).each(len(prepared), attempt):
            self._fail(batch.inputs.part(place, place + 1), reason)
        batch.drop()

    def finish(self) -> None:
        """Take what is still to come."""
        if self._flying:
            with self._noted():
                self._land()

    def _launch(self, batch: _Batch, start: int, stop: int) -> str | None:
        part = batch.inputs.part(start, stop)
        with self._noted(part):
            fetch = self._predictor.forward(batch.pixels(start, stop), part.prepared())
            if isinstance(fetch, NoRoom):
                batch.drop()
                self._land()
                device_memory.release()
                return fetch.reason
            self._flying.append((part, fetch))
            self._land(self._predictor.transfer.depth)
        return None

    def _fail(self, one: Inputs, reason: str) -> None:
        """Fail the image of an input that does not fit even alone, unless nothing does."""
        (prepared,) = one.prepared()
        with self._noted(one):
            self._predictor.require_memory(prepared)
        message = f"an input {tuple(prepared.pixels.shape)} does not fit even alone: {reason}"
        one.window.fail(one.numbers[0], Failure("predict", "out_of_memory", message))

    def _land(self, keep: int = 0) -> None:
        """Take the outputs of all but the last ``keep``."""
        while len(self._flying) > keep:
            inputs, fetch = self._flying[0]
            inputs.window.put(inputs.numbers, fetch())
            self._flying.popleft()

    @contextmanager
    def _noted(self, *now: Inputs) -> Iterator[None]:
        """Note what is predicted ``now`` beside what is flying: an error in the block is of one of these.

        An error of the device can be one batch late; whose outputs still come is not to blame for it.
        """
        with self._predictor.journal.predicting(self._shard, self._positions(now)):
            try:
                yield
            except EnvironmentFault:
                raise
            except Exception as error:  # Whose fault it is, the images alone in a fresh process decide.
                with suppress(Exception):
                    self._land()
                positions = self._positions(now)
                raise PredictFault(self._shard, positions, f"{type(error).__name__}: {error}") from error

    def _positions(self, now: Sequence[Inputs]) -> list[int]:
        flying = [inputs for inputs, _ in self._flying]
        return sorted(set().union(*(inputs.positions() for inputs in (*flying, *now))))


def _ahead(stream: Iterator[T], count: int) -> Iterator[T]:
    """Yield what ``stream`` does, having taken ``count`` more of it."""
    held = deque(islice(stream, count))
    for one in stream:
        held.append(one)
        yield held.popleft()
    yield from held


def _random_image(size: tuple[int, int]) -> Image:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)
    return Image(ImageRef("probe", "probe"), pixels, size)


Kind = tuple[str, tuple[int, ...]]
"""What inputs of one batch have in common: their network and their shape."""


def _kind(prepared: Prepared) -> Kind:
    return prepared.network, tuple(prepared.pixels.shape)


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
    """Yield the numbers of at most ``limit`` inputs of one network and shape, in their order."""
    kinds: dict[Kind, list[int]] = {}
    for number, prepared in enumerate(inputs):
        kinds.setdefault(_kind(prepared), []).append(number)
    for numbers in kinds.values():
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
