"""Has the networks inside a detector run by a backend; what handles boxes between them stays eager.

Anchors, suppression and pooling depend on the data, which no backend here takes, and need float32. The
price: feature maps go from part to part in float32, in torch's own layout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cnnbatch.models.detector import Detections, Detector, probe_size
from cnnbatch.models.passes import trying
from cnnbatch.models.runtime.backends import DTYPES, Executable, Unavailable, executable, noise
from cnnbatch.models.runtime.structure import flatten
from cnnbatch.types import Runtime

Detect = Callable[[Tensor, Tensor], list[Detections]]

_PHOTOGRAPH = (480, 640)
_BOXES = 8  # that a part is tried with


class Part(nn.Module):
    """Stands in a detector for a part that is run otherwise: what the part takes in, float32 out."""

    def __init__(self, run: Executable) -> None:
        super().__init__()
        self._run = run

    def forward(self, *inputs: Any) -> Any:
        """Return what the part returns."""
        return _cast(self._run(*_cast(inputs, self._run.dtype)), torch.float32)


def runnable(detector: Detector, runtime: Runtime) -> Detect:
    """Return what makes `Detections` of floats (N, 3, H, W), on ``runtime.device``, and sizes (N, 2).

    The detector's own module is placed there and changed. One with its own method ``executable`` runs as
    that says, one without ``parts`` as a whole.

    Raises:
        Unavailable: the backend is not there, refuses a part, or computes something else.
    """
    own = getattr(detector.module, "executable", None)
    if own is not None:
        found: Detect = own(runtime)
        return found
    if detector.parts:
        _exchange(detector, runtime)
    elif runtime.backend != "eager":
        raise Unavailable("the detector does not say which of its parts are networks (Detector.parts)")
    placed = detector.module.to(runtime.device).to(memory_format=torch.channels_last)
    return placed if detector.parts else partial(_whole, placed, runtime)


def _exchange(detector: Detector, runtime: Runtime) -> None:
    """Put a `Part` in the place of every part; those of boxes stay eager, where no backend is faster."""
    examples = _examples(detector, runtime)
    varies = detector.resizing.varies
    for name in detector.parts:
        part = detector.module.get_submodule(name)
        detector.module.set_submodule(name, Part(executable(part, examples[name], runtime, varies)))
    for name in detector.box_parts:
        part, example = detector.module.get_submodule(name), _some_boxes(examples[name])
        detector.module.set_submodule(
            name, Part(executable(part, example, replace(runtime, backend="eager")))
        )


def _examples(detector: Detector, runtime: Runtime) -> Mapping[str, Sequence[Any]]:
    """Return what goes into each part when two pictures of noise are looked at."""
    seen: dict[str, Sequence[Any]] = {}
    handles = [
        detector.module.get_submodule(name).register_forward_pre_hook(partial(_keep, seen, name))
        for name in (*detector.parts, *detector.box_parts)
    ]
    height, width = _probe(detector, runtime)
    with torch.no_grad(), trying():  # Not inference_mode, whose tensors can't be traced.
        detector.module(*noise((height, width)), torch.tensor([[height, width]] * 2))
    for handle in handles:
        handle.remove()
    return seen


def _keep(seen: dict[str, Sequence[Any]], name: str, _part: nn.Module, inputs: Sequence[Any]) -> None:
    seen[name] = inputs


def _probe(detector: Detector, runtime: Runtime) -> tuple[int, int]:
    """Return an input's size: a small one, unless what is made for it is only good for its own."""
    resizing = detector.resizing_for(runtime)
    if runtime.backend == "compile" and resizing.varies:
        return resizing.padded(resizing.resized(_PHOTOGRAPH))
    return probe_size(detector.resizing)


def _some_boxes(example: Sequence[Any]) -> Sequence[Any]:
    """Return inputs of the same kind for a few boxes: in noise there may be none."""
    tensors, rebuild = flatten(tuple(example))
    generator = torch.Generator().manual_seed(0)
    made: Sequence[Any] = rebuild(
        [torch.randn((_BOXES, *one.shape[1:]), generator=generator) for one in tensors]
    )
    return made


def _whole(module: nn.Module, runtime: Runtime, pixels: Tensor, sizes: Tensor) -> list[Detections]:
    dtype = DTYPES[runtime.precision]
    with torch.autocast(runtime.device, dtype, enabled=dtype is not torch.float32):
        found: list[Detections] = module(pixels, sizes)
        return found


def _cast(value: Any, dtype: torch.dtype) -> Any:
    tensors, rebuild = flatten(value)
    return rebuild([one.to(dtype) for one in tensors])
