"""A segmenter in an ONNX file, as a `Segmenter`: logits of each class, or the number of a class, a pixel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from cnnbatch.errors import UserError
from cnnbatch.models.choice import Choice, require_equal
from cnnbatch.models.network import library
from cnnbatch.models.onnx.choice import first_outputs, names_inside, open_file, require_size, unnamed
from cnnbatch.models.onnx.detector import unfit
from cnnbatch.models.onnx.module import OnnxModule, Outputs, picture_size, takes_pixels
from cnnbatch.models.resizing import Resizing
from cnnbatch.models.segmenter import Segmenter, own_size, probe_size
from cnnbatch.models.weights import files
from cnnbatch.models.weights.onnx_files import OnnxFile

if TYPE_CHECKING:
    from cnnbatch.types import Runtime

_DIVISOR = 32  # of the sides of free inputs: most networks need it, and none minds


def segmenter(choice: Choice) -> Segmenter:
    """Return the segmenter in the ONNX file that the job's weights are.

    It gives logits or probabilities (N, C, H, W), or numbers of classes (N, H, W). Pictures are normalised as
    torchvision does for ImageNet, unless the file takes uint8; they are stretched to the size that the file
    insists on, else to the next multiples of 32.

    Raises:
        UserError: the file can't be had or run, gives something else, or its classes have no names.
    """
    file = open_file(choice)
    resizing = _resizing(choice, file)
    picture = probe_size(replace(resizing, **choice.preprocessing))
    network = OnnxModule(file, picture)
    outputs = first_outputs(network, picture)
    output = _output(file, outputs)
    gives_numbers = not outputs[output].is_floating_point()
    count = None if gives_numbers else outputs[output].shape[1]
    classes = _classes(choice, file, count)
    module = OnnxSegmenter(network, output, len(classes), is_probability=file.makers[output] == "Softmax")
    return Segmenter(
        module=module,
        resizing=resizing,
        classes=classes,
        licence=file.metadata.get("license"),
        weights=files.digest(file.path),
        library=library("onnxruntime"),
        is_scored=not gives_numbers,
        notes=_assumed(choice, file),
    )


class OnnxSegmenter(nn.Module):
    """Gives logits (N, C, h, w) of an ONNX file's output, also of probabilities and of numbers of classes."""

    def __init__(self, network: OnnxModule, output: str, classes: int, is_probability: bool) -> None:
        super().__init__()
        self.network = network
        self._output, self._classes, self._is_probability = output, classes, is_probability

    def forward(self, batch: Tensor) -> Tensor:
        """Return the logits of floats (N, 3, H, W)."""
        return self._logits(self.network(batch))

    def executable(self, runtime: Runtime) -> Callable[[Tensor], Tensor]:
        """Return what `forward` does; see `OnnxModule.executable`."""
        run = self.network.executable(runtime)
        return lambda batch: self._logits(run(batch))

    def _logits(self, outputs: Outputs) -> Tensor:
        found = outputs[self._output]
        if not found.is_floating_point():
            return self._of_numbers(found)
        return found.clamp_min(torch.finfo(found.dtype).tiny).log() if self._is_probability else found

    def _of_numbers(self, numbers: Tensor) -> Tensor:
        """Return 1 for a pixel's class and 0 for all others: where it is resized, the nearer pixels win."""
        numbers = numbers.squeeze(1).long() if numbers.ndim == 4 else numbers.long()  # [N, H, W]
        if numbers.numel() and not 0 <= int(numbers.min()) <= int(numbers.max()) < self._classes:
            raise ValueError(
                f"{self.network.file.path.name} gives numbers from {int(numbers.min())} to "
                f"{int(numbers.max())}, but only {self._classes} have names; give task.classes all of them"
            )
        return one_hot(numbers, self._classes).permute(0, 3, 1, 2).float()


def _resizing(choice: Choice, file: OnnxFile) -> Resizing:
    how = own_size(_DIVISOR, fitted=True)
    if takes_pixels(file):
        how = replace(how, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    size = picture_size(file)
    if size is None:
        return how
    if choice.preprocessing.get("fit", "stretch") != "stretch":
        raise UserError(
            f"task.size: {file.path.name} takes pictures of {size[0]} x {size[1]} only\n"
            "  what to do: leave it out, or export the file with a free height and width"
        )
    require_size(file, choice.preprocessing.get("size"), "task.size")
    return replace(how, fit="stretch", size=size, divisor=1)


def _output(file: OnnxFile, outputs: Outputs) -> str:
    """Return the one output that has something for every pixel; of several the one called out or logits."""
    fitting = [name for name, value in outputs.items() if _has_pixels(value)]
    named = [name for name in fitting if name in ("out", "logits")]
    for names in (fitting, named):
        if len(names) == 1:
            return names[0]
    raise unfit(
        file,
        outputs,
        "segment",
        "logits (N, classes, height, width) or numbers of classes (N, height, width), of several outputs "
        "that under the name out or logits",
    )


def _has_pixels(value: Tensor) -> bool:
    if value.is_floating_point():
        return value.ndim == 4 and value.shape[1] > 1
    return value.ndim == 3 or (value.ndim == 4 and value.shape[1] == 1)


def _classes(choice: Choice, file: OnnxFile, count: int | None) -> tuple[str, ...]:
    classes = choice.classes or names_inside(file)
    if classes is None:
        raise unnamed(file, count, "named in its metadata")
    if count is not None:
        require_equal(count, classes, choice.classes, f"the file {file.path.name}")
    return classes


def _assumed(choice: Choice, file: OnnxFile) -> tuple[str, ...]:
    if takes_pixels(file) or {"mean", "std"} <= choice.preprocessing.keys():
        return ()
    return (
        "task.weights: an ONNX file does not say how its pictures are normalised; taken is torchvision's for "
        "ImageNet; task.mean and task.std change it",
    )
