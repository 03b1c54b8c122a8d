"""An ONNX file as a torch module, run by ONNX Runtime or by OpenVINO.

Pictures cross from torch to the other library through the CPU's memory. The price: on a GPU two copies
a batch, small beside a network's arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from cnnbatch.errors import UserError
from cnnbatch.models.onnx.engines import Call, Feed, onnx_runtime, openvino
from cnnbatch.models.runtime.backends import TOLERANCE, Unavailable, noise
from cnnbatch.models.weights.onnx_files import OnnxFile, Port
from cnnbatch.types import Runtime

if TYPE_CHECKING:
    from numpy.typing import NDArray

Outputs = dict[str, Tensor]
"""By name; numbers with a fraction are float32."""

_FLOATS = ("float32", "float16", "float64")
_PIXELS = "uint8"
_NUMBERS = (*_FLOATS, "bool", "int8", "uint8", "int16", "int32", "int64")
_MASK = "pixel_mask"


class OnnxModule(nn.Module):
    """A network in an ONNX file, which maps pictures (N, 3, H, W) to its outputs by name.

    ``picture`` is the (height, width) that it will get, or one that it takes. A file that takes a fixed
    number of pictures gets as many at a time, the last of them repeated; one that takes a picture
    without a batch gets one by one. Floats from 0 to 1 become whole numbers for one that takes uint8.
    """

    def __init__(self, file: OnnxFile, picture: tuple[int, int]) -> None:
        super().__init__()
        self.file = file
        self._picture = picture
        self._pixels, self._mask = picture_port(file), _mask_port(file)
        _require_numbers(file)
        shape = self._pixels.shape or ()
        self._at_once = shape[0] if len(shape) == 4 else 1  # None: any number
        self._loaded: tuple[Runtime, Call] | None = None

    def forward(self, batch: Tensor) -> Outputs:
        """Return the outputs for a batch of floats (N, 3, H, W)."""
        runtime = self._loaded[0] if self._loaded else Runtime("cpu", threads=torch.get_num_threads())
        return self._outputs(self._onnx_runtime(runtime), batch)

    def executable(self, runtime: Runtime) -> Callable[[Tensor], Outputs]:
        """Return what `forward` does, by ONNX Runtime (backend ``eager``) or by OpenVINO.

        Raises:
            Unavailable: the backend can't run the file, or computes something else.
        """
        if runtime.backend == "eager":
            return partial(self._outputs, self._onnx_runtime(runtime))
        if runtime.backend == "openvino":
            call = openvino(self.file, runtime)
            self._require_same(call, runtime)
            self._loaded = None
            return partial(self._outputs, call)
        raise Unavailable("an ONNX file is run by ONNX Runtime (backend eager) or by OpenVINO")

    def _onnx_runtime(self, runtime: Runtime) -> Call:
        """Return the file's one session; another way to run it takes the place of the last."""
        if self._loaded is None or self._loaded[0] != runtime:
            self._loaded = runtime, onnx_runtime(self.file, runtime)
        return self._loaded[1]

    def _outputs(self, call: Call, batch: Tensor) -> Outputs:
        found = [[_tensor(array) for array in call(feed)] for feed in self._feeds(batch)]
        names = (port.name for port in self.file.outputs)
        joined = {
            name: parts[0] if len(parts) == 1 else torch.cat(parts)
            for name, parts in zip(names, zip(*found, strict=True), strict=True)
        }
        filled = bool(self._at_once and len(batch) % self._at_once)
        return {
            name: (value[: len(batch)] if filled else value).to(batch.device)
            for name, value in joined.items()
        }

    def _feeds(self, batch: Tensor) -> Iterator[Feed]:
        pixels = _as_dtype(batch.detach().cpu(), self._pixels.dtype)
        at_once = self._at_once or len(batch)
        for start in range(0, len(batch), at_once):
            part = pixels[start : start + at_once]
            lacking = at_once - len(part)
            full = torch.cat([part, part[-1:].expand(lacking, -1, -1, -1)]) if lacking else part
            ordered = full.permute(0, 2, 3, 1) if has_channels_last(self._pixels) else full
            one = ordered[0] if len(self._pixels.shape or ()) == 3 else ordered
            yield {self._pixels.name: one.contiguous().numpy(), **self._masks(full)}

    def _masks(self, pixels: Tensor) -> Feed:
        """Say of every pixel that it is picture, where the file asks: no input here has a border."""
        if self._mask is None:
            return {}
        free = (len(pixels), *pixels.shape[2:])
        sides = [side or own for side, own in zip(self._mask.shape or free, free, strict=True)]
        return {self._mask.name: np.ones(sides, self._mask.dtype)}

    def _require_same(self, call: Call, runtime: Runtime) -> None:
        """Insist that ``call`` computes what ONNX Runtime does in float32, for a picture of noise."""
        (pictures,) = noise(self._picture, 1)
        expected = self(pictures)
        for name, value in self._outputs(call, pictures).items():
            if not _near(value, expected[name], TOLERANCE[runtime.precision]):
                raise Unavailable(f"OpenVINO computes something else for {name} than ONNX Runtime")


def _near(value: Tensor, expected: Tensor, tolerance: float) -> bool:
    if value.shape != expected.shape or not expected.numel():
        return value.shape == expected.shape
    far = (value.double() - expected.double()).abs()
    return bool((far <= tolerance * expected.double().abs().max().clamp(min=1e-6)).all())


def _as_dtype(batch: Tensor, dtype: str) -> Tensor:
    """Return pixels as floats of a type, or floats from 0 to 1 as whole numbers to 255."""
    if dtype == _PIXELS:
        return (batch * 255).round().clamp(0, 255).to(torch.uint8)
    found: Tensor = batch.to(getattr(torch, dtype))
    return found


def picture_port(file: OnnxFile) -> Port:
    """Return the input that takes pictures: floats or uint8 of (N, 3, H, W), (N, H, W, 3), or without N.

    Raises:
        UserError: there is none, or another input that nothing is known of.
    """
    ports = [port for port in file.inputs if port.name != _MASK]
    if len(ports) == 1 and ports[0].dtype in (*_FLOATS, _PIXELS) and _holds_pictures(ports[0]):
        return ports[0]
    found = "; ".join(map(str, file.inputs)) or "none"
    raise UserError(
        f"task.weights: expected {file.path.name} to have one input, floats or uint8 of the shape (N, 3, "
        f"height, width) or (N, height, width, 3); its inputs are: {found}\n"
        "  what to do: export the network with one picture, or one batch, in one of these orders"
    )


def _holds_pictures(port: Port) -> bool:
    shape = port.shape or ()
    return len(shape) in (3, 4) and (shape[-3] in (3, None) or has_channels_last(port))


def has_channels_last(port: Port) -> bool:
    """Say whether a picture is (H, W, 3) there, as TensorFlow has it, rather than (3, H, W)."""
    shape = port.shape or ()
    return len(shape) in (3, 4) and shape[-1] == 3 and shape[-3] != 3


def takes_pixels(file: OnnxFile) -> bool:
    """Say whether the file takes pixels as they are, from 0 to 255, and so normalises them itself."""
    return picture_port(file).dtype == _PIXELS


def picture_size(file: OnnxFile) -> tuple[int, int] | None:
    """Return the (height, width) that the file insists on, None where it takes several."""
    port = picture_port(file)
    height, width = (port.shape or ())[-3:-1] if has_channels_last(port) else (port.shape or ())[-2:]
    return (height, width) if height and width else None


def _require_numbers(file: OnnxFile) -> None:
    odd = [str(port) for port in file.outputs if port.dtype not in _NUMBERS]
    if odd:
        raise UserError(
            f"task.weights: expected {file.path.name} to give tensors of numbers; it gives {'; '.join(odd)}\n"
            "  what to do: export it without what comes behind the network, with outputs in float32"
        )


def _mask_port(file: OnnxFile) -> Port | None:
    return next((port for port in file.inputs if port.name == _MASK), None)


def _tensor(array: NDArray[Any]) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.float() if tensor.is_floating_point() else tensor
