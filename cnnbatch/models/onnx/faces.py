"""Face detectors in ONNX files, by the conventions of YuNet, and of insightface's RetinaFace and SCRFD.

A picture goes through the network alone, since these files take one at a time, and give their outputs
without saying whose they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from cnnbatch.errors import UserError
from cnnbatch.models.choice import Choice
from cnnbatch.models.face_detector import FaceDetector, Faces
from cnnbatch.models.network import library
from cnnbatch.models.onnx.choice import first_outputs, open_file, require_size
from cnnbatch.models.onnx.detector import unfit, wanted_size
from cnnbatch.models.onnx.face_heads import Candidates, FaceHead, InsightFace, YuNet
from cnnbatch.models.onnx.module import OnnxModule, picture_size, takes_pixels
from cnnbatch.models.resizing import Size
from cnnbatch.models.weights import files
from cnnbatch.models.weights.onnx_files import OnnxFile

_PADDED_TO = 32  # pixels: the largest stride of YuNet
_MOST = 5_000  # candidates of a picture that are compared with each other; OpenCV's number
_INSIGHTFACE_SIZE = (640, 640)  # where neither the file nor the job has one


def face_detector(choice: Choice) -> FaceDetector:
    """Return the face detector in the ONNX file that the job's weights are, as ``choice.adapter`` reads it.

    Raises:
        UserError: there is no such adapter, the file can't be had or run, or its outputs are others.
    """
    make = _ADAPTERS.get(choice.adapter or "")
    if make is None:
        raise UserError(
            f"task.adapter: expected {', '.join(_ADAPTERS)}, got {choice.adapter or 'nothing'}\n"
            "  what to do: say by whose convention the ONNX file gives its faces"
        )
    return make(choice, open_file(choice))


class OnnxFaces(nn.Module):
    """A face detector in an ONNX file; see `cnnbatch.models.face_detector.FaceDetector`.

    ``size`` is the (height, width) of its input, into which pictures are scaled, at the top left of black;
    None: they stay as they are, padded to multiples of 32 pixels. ``min_size`` is the least that the shorter
    side of a face's box may have.
    """

    def __init__(self, network: OnnxModule, head: FaceHead, size: Size | None) -> None:
        super().__init__()
        self.network, self._head, self._size = network, head, size
        self.min_size, self.min_score = 0, head.min_score
        self.max_faces: int | None = None

    def forward(self, pictures: Tensor, sizes: Tensor) -> list[Faces]:
        """Return the faces of each picture, the best first; uint8 (N, 3, H, W), (height, width) (N, 2)."""
        pairs = zip(pictures.cpu(), sizes.tolist(), strict=True)
        return [self._faces(canvas[:, :height, :width]) for canvas, (height, width) in pairs]

    def _faces(self, picture: Tensor) -> Faces:
        fitted, scale = _padded(picture) if self._size is None else _fitted(picture, self._size)
        size = fitted.shape[-2], fitted.shape[-1]
        found = self._head.candidates(self.network(self._head.pixels(fitted)), size)
        found = _chosen(found, found.scores >= self.min_score)
        found = _chosen(found, found.scores.argsort(descending=True, stable=True)[:_MOST])
        found = _chosen(found, self._head.suppressed(found))
        boxes = found.boxes / scale
        large = (boxes[:, 2:] - boxes[:, :2]).amin(1) >= self.min_size
        kept = large.nonzero().squeeze(1)[: self.max_faces]
        return {"boxes": boxes[kept], "scores": found.scores[kept], "keypoints": found.points[kept] / scale}


def _chosen(found: Candidates, which: Tensor) -> Candidates:
    return Candidates(*(one[which] for one in found))


def _padded(picture: Tensor) -> tuple[Tensor, float]:
    """Return a picture (1, 3, H, W) with black below and right of it, at multiples of 32; its scale is 1."""
    below, right = (-side % _PADDED_TO for side in picture.shape[1:])
    return pad(picture[None], (0, right, 0, below)), 1.0


def _fitted(picture: Tensor, size: Size) -> tuple[Tensor, float]:
    """Return a picture scaled into ``size``, at the top left, and by how much it was scaled.

    Source: SCRFD.detect in https://github.com/deepinsight/insightface (python-package, model_zoo/scrfd.py).
    """
    height, width = picture.shape[1:]
    if height / width > size[0] / size[1]:
        wanted = size[0], max(1, int(size[0] * width / height))
    else:
        wanted = max(1, int(size[1] * height / width)), size[1]
    scaled = interpolate(picture[None].float(), wanted, mode="bilinear").round().to(torch.uint8)
    return pad(scaled, (0, size[1] - wanted[1], 0, size[0] - wanted[0])), wanted[0] / height


def _yunet(choice: Choice, file: OnnxFile) -> FaceDetector:
    size = _input_size(choice, file)
    expected = ", ".join(f"{kind}_8, {kind}_16, {kind}_32" for kind in ("cls", "obj", "bbox", "kps"))
    return _as_face_detector(file, YuNet(), size, "yunet", f"{expected} with a row for each cell")


def _insightface(choice: Choice, file: OnnxFile) -> FaceDetector:
    size = _input_size(choice, file) or _INSIGHTFACE_SIZE
    head = InsightFace(tuple(port.name for port in file.outputs))
    expected = "9 or 15 tables: scores, boxes and five landmarks for each of 3 or 5 strides, in this order"
    return _as_face_detector(file, head, size, str(choice.adapter), expected)


_ADAPTERS: Mapping[str, Callable[[Choice, OnnxFile], FaceDetector]] = {
    "yunet": _yunet,
    "retinaface": _insightface,
    "scrfd": _insightface,
}


def _input_size(choice: Choice, file: OnnxFile) -> Size | None:
    wanted = wanted_size(choice)
    require_size(file, wanted, "task.size")
    return picture_size(file) or wanted


def _as_face_detector(
    file: OnnxFile, head: FaceHead, size: Size | None, adapter: str, expected: str
) -> FaceDetector:
    """Return all of it as one value, after a black picture has shown that the outputs are the adapter's."""
    if takes_pixels(file):
        raise UserError(
            f"task.weights: {adapter} gives {file.path.name} floats, but it takes uint8\n"
            "  what to do: export the network without what comes before its first convolution"
        )
    picture = size or (2 * _PADDED_TO, 3 * _PADDED_TO)
    network = OnnxModule(file, picture)
    outputs = first_outputs(network, picture)
    try:
        head.candidates(outputs, picture)
    except (ValueError, IndexError) as error:
        raise unfit(file, outputs, adapter, expected) from error
    return FaceDetector(
        OnnxFaces(network, head, size),
        licence=file.metadata.get("license"),
        weights=files.digest(file.path),
        library=library("onnxruntime"),
    )
