"""An ONNX file as a torch module, run by ONNX Runtime or by OpenVINO.

Pictures cross from torch to the other library through the CPU's memory. The price: on a GPU two copies
a batch, small beside a network's arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from cnnbatch.errors import UserError
from cnnbatch.models.backends import TOLERANCE, Unavailable, noise
from cnnbatch.models.onnx.engines import Call, Feed, onnx_runtime, openvino
from cnnbatch.onnx_files import OnnxFile, Port
from cnnbatch.tasks import Runtime

if TYPE_CHECKING:
    from numpy.typing import NDArray

Outputs = dict[str, Tensor]
"""By name; numbers with a fraction are float32."""

_FLOATS = ("float32", "float16", "float64")
_NUMBERS = (*_FLOATS, "bool", "int8", "uint8", "int16", "int32", "int64")
_MASK = "pixel_mask"


class OnnxModule(nn.Module):
    """A network in an ONNX file, which maps pictures (N, 3, H, W) to its outputs by name.

    ``picture`` is the (height, width) that it will get, or one that it takes. A file that takes a fixed
    number of pictures gets as many at a time, the last of them repeated; one that takes a picture
    without a batch gets one by one.
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
        pixels = batch.detach().cpu().to(getattr(torch, self._pixels.dtype)).contiguous()
        at_once = self._at_once or len(batch)
        for start in range(0, len(batch), at_once):
            part = pixels[start : start + at_once]
            lacking = at_once - len(part)
            full = torch.cat([part, part[-1:].expand(lacking, -1, -1, -1)]) if lacking else part
            one = full[0] if len(self._pixels.shape or ()) == 3 else full
            yield {self._pixels.name: one.numpy(), **self._masks(full)}

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


def picture_port(file: OnnxFile) -> Port:
    """Return the input that takes pictures, of floats (N, 3, H, W) or (3, H, W).

    Raises:
        UserError: there is none, or another input that nothing is known of.
    """
    ports = [port for port in file.inputs if port.name != _MASK]
    if len(ports) == 1 and ports[0].dtype in _FLOATS and _holds_pictures(ports[0].shape or ()):
        return ports[0]
    found = "; ".join(map(str, file.inputs)) or "none"
    raise UserError(
        f"task.weights: expected {file.path.name} to have one input, floats of the shape (N, 3, height, "
        f"width); its inputs are: {found}\n"
        "  what to do: export the network with one picture, or one batch, of floats in this order"
    )


def _holds_pictures(shape: Sequence[int | None]) -> bool:
    return len(shape) in (3, 4) and shape[-3] in (3, None)


def picture_size(file: OnnxFile) -> tuple[int, int] | None:
    """Return the (height, width) that the file insists on, None where it takes several."""
    height, width = (picture_port(file).shape or ())[-2:]
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
