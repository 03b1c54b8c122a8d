"""The adapter ``yolo``: detectors by Ultralytics' conventions, of any of the versions that keep to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torchvision.ops import box_convert

from cnnbatch.errors import UserError
from cnnbatch.models.architectures.suppression import detections
from cnnbatch.models.choice import Choice
from cnnbatch.models.detector import Detections, Detector
from cnnbatch.models.onnx.choice import coco, first_outputs, literal, names_inside, require_size, unnamed
from cnnbatch.models.onnx.detector import OnnxDetector, as_detector, shapes, unfit, wanted_size
from cnnbatch.models.onnx.module import OnnxModule, Outputs, picture_size
from cnnbatch.models.resizing import Resizing, Size
from cnnbatch.models.weights.onnx_files import OnnxFile

Kind = Literal["scores", "objectness", "suppressed"]

_GRAY = 114 / 255
_STRIDES = (8, 16, 32, 64)
_ANCHORS = 3  # of a cell, in v5 and v7
_LEAST, _MOST = 0.001, 300  # with which Ultralytics evaluates


def yolo(choice: Choice, file: OnnxFile) -> Detector:
    """Read a YOLO by Ultralytics' conventions, versions 5 to 11 and those that keep to them."""
    kind = file.metadata.get("task", "detect")
    if kind != "detect":
        raise UserError(
            f"task.weights: {file.path.name} says that it is for {kind}; yolo reads files for detect\n"
            "  what to do: export a detection model"
        )
    picture = _picture(choice, file)
    network = OnnxModule(file, picture)
    outputs = first_outputs(network, picture)
    named = choice.classes or names_inside(file)
    head = _head(file, outputs, None if named is None else len(named), picture)
    classes = named or tuple(coco().values())
    module = OnnxDetector(network, head, len(classes), score_threshold=_LEAST, max_objects=_MOST)
    resizing = Resizing("letterbox", picture, fill=_GRAY, rounding="nearest")
    ids = tuple(coco()) if classes == tuple(coco().values()) else ()
    return as_detector(choice, module, resizing, classes, ids)


def _picture(choice: Choice, file: OnnxFile) -> Size:
    """Return the (height, width) of the input: the file's, else the job's, else the one of its metadata."""
    wanted = wanted_size(choice)
    require_size(file, wanted, "task.size")
    told = literal(file.metadata.get("imgsz", ""))
    size = picture_size(file) or wanted or told
    match size:
        case int(side) if side > 0:
            return side, side
        case [int(height), int(width)] if height > 0 and width > 0:
            return height, width
    raise UserError(
        f"task.size: {file.path.name} takes pictures of any size, and does not say which it was made for\n"
        "  what to do: give the (height, width) that it was trained with, as in task.size=[640,640]"
    )


def _head(file: OnnxFile, outputs: Outputs, classes: int | None, picture: Size) -> YoloHead:
    """Tell the layouts apart by what the metadata say, then by which side has a column for each class."""
    tables = {name: value.shape[1:] for name, value in outputs.items() if value.ndim == 3}
    if len(tables) == 1:
        [(name, (rows, columns))] = tables.items()
        if _is_suppressed(file) or (columns == 6 and not _is_one_class(rows, classes, picture)):
            found = [YoloHead(name, "suppressed")] if columns == 6 and classes is not None else []
        else:
            found = list(_layouts(name, (rows, columns), classes or len(coco())))
        if len(found) == 1:
            return found[0]
    if classes is None:
        raise unnamed(file, None, "known to be COCO's 80: " + shapes(outputs))
    layouts = f"(N, {classes + 4}, boxes), (N, boxes, {classes + 5}) or (N, boxes, 6)"
    raise unfit(file, outputs, "yolo", f"for {classes} classes one table of {layouts}")


def _layouts(name: str, sides: tuple[int, int], classes: int) -> list[YoloHead]:
    kinds: Mapping[Kind, int] = {"scores": classes + 4, "objectness": classes + 5}
    return [
        YoloHead(name, kind, columns_first)
        for kind, columns in kinds.items()
        for columns_first, side in zip((True, False), sides, strict=True)
        if side == columns
    ]


def _is_suppressed(file: OnnxFile) -> bool:
    options = literal(file.metadata.get("args", ""))
    inside = options.get("nms") if isinstance(options, Mapping) else None
    return inside is True or literal(file.metadata.get("end2end", "")) is True


def _is_one_class(rows: int, classes: int | None, picture: Size) -> bool:
    """Say whether six columns are a box, an objectness and one score: then each cell has its anchors."""
    cells = [(picture[0] // stride) * (picture[1] // stride) for stride in _STRIDES]
    return classes == 1 and rows in (_ANCHORS * sum(cells[:3]), _ANCHORS * sum(cells))


@dataclass(frozen=True, slots=True)
class YoloHead:
    """The head of a YOLO: candidates (N, R, columns), or (N, columns, R) where ``columns_first``.

    ``scores``: columns are x, y, width and height of a centred box in pixels of the input and a score a
    class (v8 and later). ``objectness``: an objectness, by which the scores are multiplied, lies between
    them (v5, v7). ``suppressed``: x1, y1, x2, y2, score and class, where overlaps are gone already (v10,
    and exports with suppression inside); rows of score zero fill the table up.

    Boxes that overlap a better one go from the IoU on with which the makers evaluate: 0.7 for
    ``scores``, 0.6 for ``objectness``.

    Source: non_max_suppression in https://github.com/ultralytics/ultralytics (0.7) and
        https://github.com/ultralytics/yolov5 (val.py: 0.6), which treat boxes in the same way.
    """

    output: str
    kind: Kind
    columns_first: bool = False

    def __call__(self, outputs: Outputs, sizes: Tensor, least: float, most: int | None) -> list[Detections]:
        """Return the detections of each picture; see `DetectionHead`."""
        rows = outputs[self.output]
        if self.columns_first:
            rows = rows.transpose(1, 2)
        if self.kind == "suppressed":
            return [_of_table(table, least, most) for table in rows]
        boxes = box_convert(rows[..., :4], "cxcywh", "xyxy")  # [N, R, 4]
        scores = rows[..., 4:] if self.kind == "scores" else rows[..., 4:5] * rows[..., 5:]  # [N, R, C]
        iou = 0.7 if self.kind == "scores" else 0.6
        return [detections(*picture, least, iou, most) for picture in zip(boxes, scores, strict=True)]


def _of_table(table: Tensor, least: float, most: int | None) -> Detections:
    """Return what a table (R, 6) of x1, y1, x2, y2, score and class has."""
    scores = table[:, 4]
    order = scores.argsort(descending=True, stable=True)
    kept = order[(scores[order] > 0) & (scores[order] >= least)][:most]
    return {"boxes": table[kept, :4], "scores": scores[kept], "labels": table[kept, 5].long()}
