"""The adapter ``detr``: DETR and what keeps to its outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torchvision.ops import box_convert

from cnnbatch.errors import UserError
from cnnbatch.models.choice import Choice, require_equal
from cnnbatch.models.detector import PROBE, Detections, Detector
from cnnbatch.models.onnx.choice import Names, coco_labels, first_outputs, names_inside, require_size, unnamed
from cnnbatch.models.onnx.detector import OnnxDetector, as_detector, best, unfit, wanted_size
from cnnbatch.models.onnx.module import OnnxModule, Outputs, picture_size, takes_pixels
from cnnbatch.models.preprocessing import Preprocessing
from cnnbatch.models.resizing import Resizing
from cnnbatch.models.weights.onnx_files import OnnxFile

_SIDES = (800, 1333)


def detr(choice: Choice, file: OnnxFile) -> Detector:
    """Read a DETR: pictures are resized as its makers do, or stretched where the file insists on a size."""
    fixed = picture_size(file)
    require_size(file, wanted_size(choice), "task.size")
    network = OnnxModule(file, fixed or PROBE)
    outputs = first_outputs(network, fixed or PROBE)
    head = _head(file, outputs)
    classes, ids = _classes(choice, file, int(outputs[head.logits].shape[-1]))
    colours = Preprocessing(mean=(0.0,) * 3, std=(1.0,) * 3) if takes_pixels(file) else Preprocessing()
    resizing = Resizing(
        "stretch" if fixed else "sides",
        fixed or _SIDES,
        mean=colours.mean,
        std=colours.std,
        antialias=True,
    )
    return as_detector(choice, OnnxDetector(network, head, len(classes)), resizing, classes, ids)


def _head(file: OnnxFile, outputs: Outputs) -> DetrHead:
    tables = {name: value for name, value in outputs.items() if value.ndim == 3}
    boxes = [name for name in tables if name.endswith("boxes")]
    logits = [name for name in tables if name.endswith("logits")]
    if not boxes or not logits:
        boxes = [name for name, value in tables.items() if value.shape[-1] == 4]
        logits = [name for name in tables if name not in boxes]
    if len(boxes) != 1 or len(logits) != 1 or tables[boxes[0]].shape[:2] != tables[logits[0]].shape[:2]:
        raise unfit(file, outputs, "detr", "logits (N, queries, classes + 1) and pred_boxes (N, queries, 4)")
    return DetrHead(logits[0], boxes[0])


def _classes(choice: Choice, file: OnnxFile, columns: int) -> tuple[Names, Sequence[int]]:
    names = choice.classes or names_inside(file)
    if names is None and columns - 1 == len(coco_labels()):
        return coco_labels(), range(len(coco_labels()))
    if names is None:
        raise unnamed(file, columns - 1, "COCO's 91 labels")
    if len(names) == columns:
        raise UserError(
            f"task.adapter: detr expects of {file.path.name} a score for each class and one for no object; "
            f"it has {columns}, as many as there are class names\n"
            "  what to do: leave the name for no object out of task.classes; a file that scores each class "
            "by itself (RT-DETR, Deformable DETR) is not read by this adapter"
        )
    require_equal(columns - 1, names, choice.classes, f"the file {file.path.name}")
    return names, ()


@dataclass(frozen=True, slots=True)
class DetrHead:
    """The head of DETR: logits (N, Q, C + 1), the last of them for no object, and boxes (N, Q, 4).

    Boxes are centre, width and height as parts of the picture's. Each query is one detection, of its best
    class.

    Source: Carion et al. 2020 (arXiv 2005.12872); PostProcess in https://github.com/facebookresearch/detr
    """

    logits: str
    boxes: str

    def __call__(self, outputs: Outputs, sizes: Tensor, least: float, most: int | None) -> list[Detections]:
        """Return the detections of each picture; see `DetectionHead`."""
        scores, labels = outputs[self.logits].softmax(-1)[..., :-1].max(-1)  # [N, Q]
        boxes = box_convert(outputs[self.boxes], "cxcywh", "xyxy")
        edges = sizes.to(boxes)[:, None, [1, 0, 1, 0]]
        return [best(*picture, least, most) for picture in zip(boxes * edges, scores, labels, strict=True)]
