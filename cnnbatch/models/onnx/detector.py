"""What detectors in ONNX files share: how they run, and how they become a `Detector`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from cnnbatch.errors import UserError
from cnnbatch.models.choice import Choice
from cnnbatch.models.detector import Detections, Detector
from cnnbatch.models.network import library
from cnnbatch.models.onnx.choice import Names
from cnnbatch.models.onnx.module import OnnxModule, Outputs
from cnnbatch.models.resizing import Resizing, Size
from cnnbatch.models.weights import files
from cnnbatch.models.weights.onnx_files import OnnxFile

if TYPE_CHECKING:
    from cnnbatch.types import Runtime


class DetectionHead(Protocol):
    """Turns a network's outputs into detections."""

    def __call__(self, outputs: Outputs, sizes: Tensor, least: float, most: int | None) -> list[Detections]:
        """Return N `Detections`: at most ``most`` of a picture, of a score of ``least`` or more.

        ``sizes`` (N, 2) is the (height, width) of each input's part that is picture.
        """


class OnnxDetector(nn.Module):
    """A detector in an ONNX file; its overlaps and limits are dealt with here.

    ``one_by_one``: the network takes one picture at a time, since its outputs do not say whose they are.
    """

    def __init__(
        self,
        network: OnnxModule,
        head: DetectionHead,
        classes: int,
        one_by_one: bool = False,
        score_threshold: float = 0.0,
        max_objects: int | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.score_threshold, self.max_objects = score_threshold, max_objects
        self._head, self._classes, self._one_by_one = head, classes, one_by_one

    def forward(self, batch: Tensor, sizes: Tensor) -> list[Detections]:
        """Return each picture's detections; see `cnnbatch.models.detector.Detector`. uint8 is scaled to 1."""
        return self._detections(self.network, batch, sizes)

    def executable(self, runtime: Runtime) -> Callable[[Tensor, Tensor], list[Detections]]:
        """Return what `forward` does; see `OnnxModule.executable`."""
        return partial(self._detections, self.network.executable(runtime))

    def _detections(self, run: Callable[[Tensor], Outputs], batch: Tensor, sizes: Tensor) -> list[Detections]:
        pixels = batch / 255 if batch.dtype == torch.uint8 else batch
        parts = [slice(at, at + 1) for at in range(len(batch))] if self._one_by_one else [slice(None)]
        limits = self.score_threshold, self.max_objects
        found = [one for part in parts for one in self._head(run(pixels[part]), sizes[part], *limits)]
        self._require_named(torch.cat([one["labels"] for one in found]))
        return found

    def _require_named(self, labels: Tensor) -> None:
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < self._classes:
            raise ValueError(
                f"{self.network.file.path.name} gives labels from {int(labels.min())} to "
                f"{int(labels.max())}, but only {self._classes} have names; give task.classes all of them"
            )


def as_detector(
    choice: Choice, module: OnnxDetector, resizing: Resizing, classes: Names, ids: Sequence[int]
) -> Detector:
    """Return all of it as one value; ``ids`` are those of the weights' own data set."""
    file = module.network.file
    return Detector(
        module=module,
        resizing=resizing,
        classes=classes,
        ids=() if choice.classes else tuple(ids),
        licence=file.metadata.get("license"),
        weights=files.digest(file.path),
        library=library("onnxruntime"),
    )


def wanted_size(choice: Choice) -> Size | None:
    """Return the size that the job gives."""
    size: Size | None = choice.preprocessing.get("size")
    return size


def best(boxes_xyxy: Tensor, scores: Tensor, labels: Tensor, least: float, most: int | None) -> Detections:
    """Return the ``most`` best of one picture's boxes (K, 4), those of a score of ``least`` or more."""
    order = scores.argsort(descending=True, stable=True)
    kept = order[scores[order] >= least][:most]
    return {"boxes": boxes_xyxy[kept], "scores": scores[kept], "labels": labels[kept].to(torch.int64)}


def unfit(file: OnnxFile, outputs: Outputs, adapter: str, expected: str) -> UserError:
    """Return the error for outputs that are not an adapter's."""
    return UserError(
        f"task.adapter: {adapter} expects {file.path.name} to give {expected}; for one picture it gives "
        f"{shapes(outputs)}\n"
        "  what to do: check task.adapter and task.classes, or export the file with these outputs"
    )


def shapes(outputs: Outputs) -> str:
    """Return outputs in words, for messages."""
    return "; ".join(f"{name} {tuple(value.shape)}" for name, value in outputs.items())
