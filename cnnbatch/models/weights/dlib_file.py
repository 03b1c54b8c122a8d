"""Reads networks as dlib serialises them (``.dat``): layers with their numbers and tensors; nothing is run.

dlib's format says no lengths: what comes next follows from what came before. So every size is checked
against the bytes that are left before anything of that size is made, and tensors are views of the file's own
bytes. Layers that are not known here end the reading, since nothing behind them could be found.

An integer is a byte with the number of bytes of its magnitude (with the bit 0x80 where it is negative), then
the magnitude, little-endian; a real number is two integers, a mantissa and an exponent of 2; a flag is the
character 0 or 1; a text is its length and its bytes; a tensor is its version 2, four sizes and float32,
little-endian. A network is its loss, then the versions of all layers from the last to the first, then the
input and what the layers have, from the first to the last. (dlib 19 and 20: ``dlib/serialize.h``,
``dlib/cuda/tensor.h``, ``dlib/dnn/core.h`` and ``dlib/dnn/layers.h``.)
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cnnbatch.errors import UserError

SUFFIX = ".dat"

_LARGEST = 1 << 30  # bytes of a file; dlib's own networks have at most 50 MB
_MOST_LAYERS = 10_000
_LONGEST_TEXT = 64
_DIGITS = 8  # bytes of an integer
_EXPONENT = 960  # of 2, in a real number: with a mantissa of 64 bits it is a double's
_NEGATIVE, _COUNT = 0x80, 0x7F

_LOSS_VERSION, _PLAIN, _COMPUTING, _FIRST = 1, 1, 2, 3
"""Versions: of the loss; of a layer that only names or takes up a value (tag, skip); of one with numbers of
its own; of the one behind the input, which ends the list."""


class _Damaged(Exception):
    """What was expected, and what came."""


@dataclass(frozen=True, eq=False, slots=True)
class DlibLayer:
    """One layer: its kind, as dlib calls it, its whole numbers in dlib's order, and its float32 numbers.

    ``shapes`` are those of the tensors that ``parameters`` hold one behind the other, four sizes each. The
    kind ``tag`` is a layer that only names or takes up another's output; which one the file does not say.
    """

    kind: str
    numbers: tuple[int, ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()
    parameters: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))


@dataclass(frozen=True, eq=False)
class DlibNetwork:
    """A network for RGB pictures of one size: its layers stand from the first to the last.

    ``means`` are subtracted from the values 0..255 of each channel; what is left is divided by 256.
    ``size`` is (height, width) in pixels.
    """

    loss: str
    means: tuple[float, float, float]
    size: tuple[int, int]
    layers: tuple[DlibLayer, ...]


def load(path: Path) -> DlibNetwork:
    """Read a file that dlib's ``serialize`` wrote of a network with a metric loss.

    Raises:
        UserError: it is cut off or too long, or is something else.
    """
    try:
        size = path.stat().st_size
        if size > _LARGEST:
            raise _Damaged(f"expected at most {_LARGEST:,} bytes, got {size:,}")
        return parse(path.read_bytes())
    except OSError as error:
        raise UserError(f"task.weights: cannot read {os.fspath(path)!r}: {error}") from error
    except _Damaged as error:
        raise UserError(
            f"task.weights: {os.fspath(path)!r} is no whole network of dlib's: {error}\n"
            "  what to do: fetch the file again; expected is one such as "
            "dlib_face_recognition_resnet_model_v1.dat (bz2 unpacked)"
        ) from error


def parse(data: bytes) -> DlibNetwork:
    """Return the network that ``data`` holds from the first byte to the last."""
    read = _Reader(data)
    read.expect(_LOSS_VERSION, "the version of the loss")
    loss = read.text()
    if loss != "loss_metric_2":
        raise _Damaged(f"expected the loss loss_metric_2, got {loss!r}")
    read.reals(2)
    layers = _layer_versions(read)
    means, size = _input(read)
    found = [_layer(read, version) for version in reversed(layers)]
    if read.left:
        raise _Damaged(f"{read.left:,} bytes follow behind its end")
    return DlibNetwork(loss, means, size, tuple(found))


_TAG = DlibLayer("tag")


def _layer_versions(read: _Reader) -> list[int]:
    """Return the versions from the last layer to the first."""
    found: list[int] = []
    while not found or found[-1] != _FIRST:
        if len(found) == _MOST_LAYERS:
            raise _Damaged(f"expected at most {_MOST_LAYERS:,} layers")
        version = read.integer()
        if version not in (_PLAIN, _COMPUTING, _FIRST):
            raise _Damaged(f"expected a layer of version 1, 2 or 3, got {version} at byte {read.at:,}")
        found.append(version)
    return found


def _input(read: _Reader) -> tuple[tuple[float, float, float], tuple[int, int]]:
    kind = read.text()
    if kind != "input_rgb_image_sized":
        raise _Damaged(f"expected an input_rgb_image_sized, got {kind!r}")
    red, green, blue = read.reals(3)
    height, width = read.integers(2)
    return (red, green, blue), (height, width)


def _layer(read: _Reader, version: int) -> DlibLayer:
    if version == _PLAIN:
        return _TAG
    kind = read.text()
    if kind not in _KINDS:
        raise _Damaged(f"expected one of the layers {', '.join(_KINDS)}, got {kind!r} at byte {read.at:,}")
    layer = _KINDS[kind](read, kind)
    read.flags(3)  # whether it is set up, and of training
    for _ in range(3):
        read.tensor()  # gradients and the last output, empty where training cleaned up
    if version == _FIRST:
        read.integer()  # how many tensors an input becomes
    return layer


def _convolution(read: _Reader, kind: str) -> DlibLayer:
    """Numbers: filters, their height and width, stride and padding, the vertical one first."""
    parameters = read.tensor()
    numbers = read.integers(7)
    shapes = read.alias(), read.alias()
    read.reals(4)  # learning rates and weight decays
    return _checked(DlibLayer(kind, numbers, shapes, parameters))


def _affine(read: _Reader, kind: str) -> DlibLayer:
    """Numbers: 0 where each channel has its factor and its summand."""
    parameters = read.tensor()
    shapes = read.alias(), read.alias()
    return _checked(DlibLayer(kind, read.integers(1), shapes, parameters))


def _fully_connected(read: _Reader, kind: str) -> DlibLayer:
    """Numbers: outputs, inputs, and 1 where it has no summands."""
    sizes = read.integers(2)
    parameters = read.tensor()
    shapes = read.alias(), read.alias()
    mode = read.integers(1)
    read.reals(4)
    return _checked(DlibLayer(kind, sizes + mode, shapes, parameters))


def _pooling(read: _Reader, kind: str) -> DlibLayer:
    """Numbers: the window's height and width (0: all), stride and padding, the vertical one first."""
    return DlibLayer(kind, read.integers(6))


def _bare(_read: _Reader, kind: str) -> DlibLayer:
    return DlibLayer(kind)


_KINDS: dict[str, Callable[[_Reader, str], DlibLayer]] = {
    "con_4": _convolution,
    "affine_": _affine,
    "fc_2": _fully_connected,
    "max_pool_2": _pooling,
    "avg_pool_2": _pooling,
    "relu_": _bare,
    "add_prev_": _bare,
}


def _checked(layer: DlibLayer) -> DlibLayer:
    wanted = sum(math.prod(shape) for shape in layer.shapes)
    if wanted != len(layer.parameters):
        raise _Damaged(f"a layer {layer.kind} needs {wanted:,} numbers, but has {len(layer.parameters):,}")
    return layer


class _Reader:
    """Takes values off a file's bytes, from the first to the last."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self.at = 0

    @property
    def left(self) -> int:
        """How many bytes have not been read."""
        return len(self._data) - self.at

    def integer(self) -> int:
        """Read a whole number of at most 64 bits."""
        [head] = self._take(1)
        count = head & _COUNT
        if not 0 < count <= _DIGITS:
            raise _Damaged(
                f"expected an integer of 1 to {_DIGITS} bytes, got {count} at byte {self.at - 1:,}"
            )
        magnitude = int.from_bytes(self._take(count), "little")
        return -magnitude if head & _NEGATIVE else magnitude

    def integers(self, count: int) -> tuple[int, ...]:
        """Read as many whole numbers."""
        return tuple(self.integer() for _ in range(count))

    def expect(self, value: int, what: str) -> None:
        """Read a whole number that can only be this."""
        came = self.integer()
        if came != value:
            raise _Damaged(f"expected {what} to be {value}, got {came}")

    def reals(self, count: int) -> Sequence[float]:
        """Read as many finite numbers."""
        return [self._real() for _ in range(count)]

    def _real(self) -> float:
        mantissa, exponent = self.integers(2)
        if abs(exponent) >= _EXPONENT:
            raise _Damaged(f"expected a finite number, got the exponent {exponent} at byte {self.at:,}")
        return math.ldexp(mantissa, exponent)

    def flags(self, count: int) -> None:
        """Read as many truth values."""
        came = self._take(count)
        if not set(came) <= set(b"01"):
            raise _Damaged(f"expected flags, 0 or 1, got {bytes(came)!r} at byte {self.at - count:,}")

    def text(self) -> str:
        """Read a name."""
        length = self.integer()
        if not 0 <= length <= _LONGEST_TEXT:
            raise _Damaged(f"expected a name of at most {_LONGEST_TEXT} bytes, got {length:,}")
        return bytes(self._take(length)).decode("ascii", "backslashreplace")

    def tensor(self) -> NDArray[np.float32]:
        """Read a tensor's numbers, a view of the file's bytes."""
        self.expect(2, "the version of a tensor")
        return np.frombuffer(self._take(4 * math.prod(self._sizes())), "<f4")

    def alias(self) -> tuple[int, ...]:
        """Read the four sizes of a tensor that lies in another one."""
        self.expect(1, "the version of a tensor within another")
        return self._sizes()

    def _sizes(self) -> tuple[int, ...]:
        sizes = self.integers(4)
        if min(sizes) < 0:
            raise _Damaged(f"expected the sizes of a tensor, got {sizes} at byte {self.at:,}")
        return sizes

    def _take(self, count: int) -> memoryview:
        if count > self.left:
            raise _Damaged(
                f"it is cut off: {count:,} bytes are expected at {self.at:,}, {self.left:,} are left"
            )
        self.at += count
        return self._data[self.at - count : self.at]
