"""Networks in ONNX files; an adapter says by whose convention a file gives its outputs.

A new adapter of detectors is one file and one entry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from cnnbatch.errors import UserError
from cnnbatch.models.choice import Choice
from cnnbatch.models.detector import Detector
from cnnbatch.models.onnx.choice import open_file
from cnnbatch.models.onnx.classifier import classifier
from cnnbatch.models.onnx.detr import detr
from cnnbatch.models.onnx.face_embedder import face_embedder
from cnnbatch.models.onnx.faces import face_detector
from cnnbatch.models.onnx.segmenter import segmenter
from cnnbatch.models.onnx.torchvision_export import torchvision
from cnnbatch.models.onnx.yolo import yolo
from cnnbatch.models.weights.onnx_files import OnnxFile

__all__ = ["classifier", "detector", "face_detector", "face_embedder", "segmenter"]

_ADAPTERS: Mapping[str, Callable[[Choice, OnnxFile], Detector]] = {
    "torchvision": torchvision,
    "yolo": yolo,
    "detr": detr,
}


def detector(choice: Choice) -> Detector:
    """Return the detector in the ONNX file that the job's weights are, as ``choice.adapter`` reads it.

    Raises:
        UserError: there is no such adapter, the file can't be had or run, its outputs are not the
            adapter's, or its classes have no names.
    """
    adapter = _ADAPTERS.get(choice.adapter or "")
    if adapter is None:
        raise UserError(
            f"task.adapter: expected {', '.join(_ADAPTERS)}, got {choice.adapter or 'nothing'}\n"
            "  what to do: say by whose convention the ONNX file gives its boxes"
        )
    return adapter(choice, open_file(choice))
