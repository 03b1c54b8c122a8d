"""A classifier in an ONNX file, as a `Network`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cnnbatch.errors import UserError
from cnnbatch.models.choice import Choice, require_equal, says_all
from cnnbatch.models.libraries.torchvision_models import imagenet_classes
from cnnbatch.models.network import Network, library
from cnnbatch.models.onnx.choice import first_outputs, names_inside, open_file, require_size, unnamed
from cnnbatch.models.onnx.module import OnnxModule, Outputs, picture_size, takes_pixels
from cnnbatch.models.preprocessing import Preprocessing, Size
from cnnbatch.models.weights import files
from cnnbatch.models.weights.onnx_files import OnnxFile, Port

if TYPE_CHECKING:
    from cnnbatch.types import Runtime

_SIDE = 224
_MARGIN = 256 / 224  # torchvision's resize beside its crop
_PLAIN = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def classifier(choice: Choice) -> Network:
    """Return the classifier in the ONNX file that the job's weights are.

    Its preprocessing is torchvision's for ImageNet at the file's size; for a file of Ultralytics the one
    of its makers, which neither leaves a margin nor normalises. A file that takes uint8 gets pixels.

    Raises:
        UserError: the file can't be had or run, gives no logits, or its classes have no names.
    """
    file = open_file(choice)
    how = _preprocessing(file)
    if takes_pixels(file) and (given := sorted({"mean", "std"} & choice.preprocessing.keys())):
        raise UserError(
            f"task.preprocessing.{given[0]}: {file.path.name} takes pixels from 0 to 255 and normalises them "
            "itself; leave it out"
        )
    picture = choice.adjusted(how).crop
    require_size(file, picture, "task.preprocessing.crop")
    network = OnnxModule(file, picture)
    output = _logits_port(file).name
    module = OnnxClassifier(network, output, is_probability=file.makers[output] == "Softmax")
    count = int(module.logits(first_outputs(network, picture)).shape[1])
    return Network(
        module=module,
        preprocessing=how,
        classes=_classes(choice, file, count),
        licence=file.metadata.get("license"),
        weights=files.digest(file.path),
        library=library("onnxruntime"),
        notes=() if says_all(choice) else (_assumed(choice, how),),
    )


def _assumed(choice: Choice, how: Preprocessing) -> str:
    whose = "Ultralytics'" if how.mean == _PLAIN.mean else "torchvision's for ImageNet"
    return (
        f"task.weights: an ONNX file does not say how its pictures are prepared; taken is {whose}: "
        f"{choice.adjusted(how).describe()}; task.preprocessing changes it"
    )


class OnnxClassifier(nn.Module):
    """Gives logits (N, C) of an ONNX file's output, also where that is probabilities."""

    def __init__(self, network: OnnxModule, output: str, is_probability: bool) -> None:
        super().__init__()
        self.network = network
        self._output, self._is_probability = output, is_probability

    def forward(self, batch: Tensor) -> Tensor:
        """Return the logits (N, C) of floats (N, 3, H, W)."""
        return self.logits(self.network(batch))

    def executable(self, runtime: Runtime) -> Callable[[Tensor], Tensor]:
        """Return what `forward` does; see `OnnxModule.executable`."""
        run = self.network.executable(runtime)
        return lambda batch: self.logits(run(batch))

    def logits(self, outputs: Outputs) -> Tensor:
        """Return the logits (N, C); of probabilities their logarithm, whose softmax they are."""
        found = outputs[self._output].flatten(1)
        return found.clamp_min(torch.finfo(found.dtype).tiny).log() if self._is_probability else found


def _preprocessing(file: OnnxFile) -> Preprocessing:
    size = picture_size(file) or (_SIDE, _SIDE)
    if file.metadata.get("author") == "Ultralytics":
        return Preprocessing(_resize(size, 1.0), size, mean=_PLAIN.mean, std=_PLAIN.std)
    colours = _PLAIN if takes_pixels(file) else Preprocessing()
    return Preprocessing(_resize(size, _MARGIN), size, mean=colours.mean, std=colours.std)


def _resize(size: Size, margin: float) -> int | Size:
    height, width = (round(side * margin) for side in size)
    return height if height == width else (height, width)


def _logits_port(file: OnnxFile) -> Port:
    """Return the one output that can be logits or probabilities."""
    named = [port for port in file.outputs if port.name == "logits"]
    flat = [port for port in file.outputs if port.shape is not None and len(port.shape) == 2]
    for ports in (named, file.outputs, flat):
        if len(ports) == 1:
            return _without_sigmoid(file, ports[0])
    raise UserError(
        f"task.adapter: classify expects {file.path.name} to give logits or probabilities (N, C), and "
        f"nothing else of that shape; its outputs are: {'; '.join(map(str, file.outputs))}\n"
        "  what to do: export it with that one output, or call it logits"
    )


def _without_sigmoid(file: OnnxFile, port: Port) -> Port:
    if file.makers[port.name] == "Sigmoid":
        raise UserError(
            f"task.adapter: classify expects one class a picture, but {file.path.name} ends in a sigmoid, "
            "whose classes do not exclude each other\n"
            "  what to do: export it without the sigmoid, if its classes do"
        )
    return port


def _classes(choice: Choice, file: OnnxFile, count: int) -> tuple[str, ...]:
    classes = choice.classes or names_inside(file)
    if classes is None and count == len(imagenet_classes()):
        classes = imagenet_classes()
    if classes is None:
        raise unnamed(file, count, "ImageNet's 1,000")
    require_equal(count, classes, choice.classes, f"the file {file.path.name}")
    return classes
