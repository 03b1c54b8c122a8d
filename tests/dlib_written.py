"""Files as dlib's `serialize` writes them of its network for faces, with as few channels as a test wants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cnnbatch.models.architectures.dlib_resnet import Level

LEVELS = (Level(2, 2, halves=False), Level(3, 2), Level(4, 1))
DIMENSIONS = 5


def integer(value: int) -> bytes:
    size = max(1, (abs(value).bit_length() + 7) // 8)
    return bytes([size | (0x80 if value < 0 else 0)]) + abs(value).to_bytes(size, "little")


def integers(*values: int) -> bytes:
    return b"".join(map(integer, values))


def real(value: float) -> bytes:
    mantissa, exponent = math.frexp(value)
    return integers(int(mantissa * 2**24), exponent - 24)


def text(value: str) -> bytes:
    return integer(len(value)) + value.encode()


def tensor(values: Sequence[float] | NDArray[np.float64] = ()) -> bytes:
    sizes = (len(values), 1, 1, 1) if len(values) else (0, 0, 0, 0)
    return integers(2, *sizes) + np.asarray(values, "<f4").tobytes()


@dataclass
class Layers:
    """What dlib writes of each layer, from the first to the last, with random numbers."""

    seed: int = 0
    versions: list[int] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def add(self, body: bytes) -> None:
        """Add a layer with numbers of its own; the first one has a tail that the others have not."""
        first = not self.bodies
        self.versions.append(3 if first else 2)
        self.bodies.append(body + b"110" + 3 * tensor() + (integer(1) if first else b""))

    def tag(self, count: int = 1) -> None:
        self.versions += count * [1]

    def con(self, outputs: int, inputs: int, side: int, stride: int, padding: int) -> None:
        count = outputs * inputs * side * side
        values = [
            *self.rng.normal(0, (2 / (inputs * side * side)) ** 0.5, count),
            *self.rng.normal(size=outputs),
        ]
        numbers = integers(outputs, side, side, stride, stride, padding, padding)
        shapes = integers(1, outputs, inputs, side, side) + integers(1, 1, outputs, 1, 1)
        self.add(text("con_4") + tensor(values) + numbers + shapes + 4 * real(1.0))
        factors = [*self.rng.uniform(0.5, 1.5, outputs), *self.rng.normal(size=outputs)]
        self.add(text("affine_") + tensor(factors) + 2 * integers(1, 1, outputs, 1, 1) + integer(0))

    def named(self, kind: str, *numbers: int) -> None:
        self.add(text(kind) + integers(*numbers))

    def fc(self, inputs: int, outputs: int) -> None:
        values = self.rng.normal(size=inputs * outputs)
        shapes = integers(1, inputs, outputs, 1, 1) + integers(1, 0, 0, 0, 0)
        self.add(
            text("fc_2") + integers(outputs, inputs) + tensor(values) + shapes + integer(1) + 4 * real(1.0)
        )

    def file(self, size: tuple[int, int] = (150, 150), red: float = 122.782) -> bytes:
        head = integer(1) + text("loss_metric_2") + real(0.04) + real(0.6) + integers(*self.versions[::-1])
        means = real(red) + real(117.001) + real(104.298)
        return head + text("input_rgb_image_sized") + means + integers(*size) + b"".join(self.bodies)


def layers(levels: Sequence[Level] = LEVELS, dimensions: int = DIMENSIONS, seed: int = 0) -> Layers:
    """Return the layers of dlib's anet_type."""
    made = Layers(seed)
    channels = levels[0].channels
    made.con(channels, 3, 7, 2, 0)
    made.named("relu_")
    made.named("max_pool_2", 3, 3, 2, 2, 0, 0)
    for level in levels:
        for place in range(level.blocks):
            halves = level.halves and place == 0
            made.tag()
            made.con(level.channels, channels, 3, 2 if halves else 1, 0 if halves else 1)
            made.named("relu_")
            made.con(level.channels, level.channels, 3, 1, 1)
            if halves:
                made.tag(2)
                made.named("avg_pool_2", 2, 2, 2, 2, 0, 0)
            made.named("add_prev_")
            made.named("relu_")
            channels = level.channels
    made.named("avg_pool_2", 0, 0, 1, 1, 0, 0)
    made.fc(channels, dimensions)
    return made
