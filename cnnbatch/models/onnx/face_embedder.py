"""A face embedder in an ONNX file, by a convention that the job names, since no file says it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor, nn

from cnnbatch.errors import UserError
from cnnbatch.models.choice import Choice
from cnnbatch.models.face_conventions import CONVENTIONS, EmbedderConvention
from cnnbatch.models.face_embedder import FaceEmbedder, embedder
from cnnbatch.models.network import library
from cnnbatch.models.onnx.choice import first_outputs, open_file
from cnnbatch.models.onnx.module import OnnxModule, Outputs, picture_size, takes_pixels
from cnnbatch.models.weights import files
from cnnbatch.models.weights.onnx_files import OnnxFile

if TYPE_CHECKING:
    from cnnbatch.types import Runtime

_MOST = 1 << 16  # numbers of an embedding; published ones have at most 4,096


def face_embedder(choice: Choice) -> FaceEmbedder:
    """Return the face embedder in the ONNX file that the job's weights are.

    ``choice.adapter`` names the convention of its chips and embeddings, one of
    `cnnbatch.models.face_conventions.CONVENTIONS`. A file that takes uint8 gets pixels.

    Raises:
        UserError: there is no such convention, the file can't be had or run, takes chips of another size, or
            gives other than one vector a chip.
    """
    how = CONVENTIONS.get(choice.adapter or "")
    if how is None:
        raise UserError(
            f"task.adapter: expected {', '.join(CONVENTIONS)}, got {choice.adapter or 'nothing'}\n"
            "  what to do: say by which template and normalisation the network was trained"
        )
    file = open_file(choice)
    _require_size(file, how, str(choice.adapter))
    if takes_pixels(file):
        how = _unnormalised(file, how, choice)
    network = OnnxModule(file, how.size)
    module = OnnxFaceEmbedder(network, _dimensions(network, how))
    return replace(
        embedder(module, module.dimensions, how),
        licence=file.metadata.get("license"),
        weights=files.digest(file.path),
        library=library("onnxruntime"),
    )


class OnnxFaceEmbedder(nn.Module):
    """Gives embeddings (N, dimensions) of an ONNX file's one output."""

    def __init__(self, network: OnnxModule, dimensions: int) -> None:
        super().__init__()
        self.network, self.dimensions = network, dimensions
        [port] = network.file.outputs
        self._output = port.name

    def forward(self, chips: Tensor) -> Tensor:
        """Return the embeddings of floats (N, 3, height, width)."""
        return self._embeddings(self.network(chips))

    def executable(self, runtime: Runtime) -> Callable[[Tensor], Tensor]:
        """Return what `forward` does; see `OnnxModule.executable`."""
        run = self.network.executable(runtime)
        return lambda chips: self._embeddings(run(chips))

    def _embeddings(self, outputs: Outputs) -> Tensor:
        return outputs[self._output].reshape(-1, self.dimensions).float()


def _require_size(file: OnnxFile, how: EmbedderConvention, name: str) -> None:
    size = picture_size(file)
    if size is not None and size != how.size:
        (height, width), (wanted_height, wanted_width) = size, how.size
        raise UserError(
            f"task.adapter: {file.path.name} takes chips of {height} x {width} pixels, but {name} has its "
            f"landmarks in chips of {wanted_height} x {wanted_width}\n"
            f"  what to do: name the convention that the network was trained with: {_sizes()}"
        )


def _sizes() -> str:
    return ", ".join("{} ({} x {})".format(name, *how.size) for name, how in CONVENTIONS.items())


def _unnormalised(file: OnnxFile, how: EmbedderConvention, choice: Choice) -> EmbedderConvention:
    """Return a convention without normalisation of pixels, for a file that has its own."""
    if given := sorted({"mean", "std"} & choice.preprocessing.keys()):
        raise UserError(
            f"task.embedder.{given[0]}: {file.path.name} takes pixels from 0 to 255 and normalises them "
            "itself; leave it out"
        )
    return replace(how, mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0))


def _dimensions(network: OnnxModule, how: EmbedderConvention) -> int:
    """Return how many numbers the file gives for one chip."""
    outputs = first_outputs(network, how.size)
    if len(outputs) == 1:
        [(name, value)] = outputs.items()
        if value.ndim >= 2 and len(value) == 1 and 1 < value.numel() <= _MOST and value.is_floating_point():
            return value.numel()
    shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in outputs.items())
    raise UserError(
        f"task.weights: expected {network.file.path.name} to give one vector of numbers for each chip, "
        f"(N, D), and nothing else; for one chip it gives {shapes}\n"
        "  what to do: export the network with its embedding as the only output"
    )
