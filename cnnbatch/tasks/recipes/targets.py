"""What a picture's truth is to a detector that learns from it: its objects in pixels of the input."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from cnnbatch.tasks.recipes import masks
from cnnbatch.tasks.recipes.boxes import Boxes, Size
from cnnbatch.truth.problems import is_partly
from cnnbatch.types import Head

if TYPE_CHECKING:
    from torch import Tensor

    from cnnbatch.types import Image


@dataclass(frozen=True, slots=True)
class Details:
    """What is learned of objects beside their boxes, by ``heads``.

    Of keypoints, ``sigmas`` say how far each may be off (`metrics.iou_types.SIGMAS`), and ``swapped`` are the
    pairs of them, by number, that change places where a picture is mirrored.
    """

    heads: tuple[Head, ...] = ()
    sigmas: tuple[float, ...] = ()
    swapped: tuple[tuple[int, int], ...] = ()

    def record(self) -> dict[str, Any]:
        """Return what a trained model's ``model.json`` says of it."""
        points = {"sigmas": [*self.sigmas], "swapped": [[*pair] for pair in self.swapped]}
        return points if "keypoints" in self.heads else {}


@dataclass(frozen=True, slots=True)
class Target:
    """The objects of a picture in pixels of its input; ``learned`` (K,) says which are to be found.

    ``masks`` (K, height, width) are those of the objects, without any where none are learned.
    """

    objects: Boxes
    learned: NDArray[np.bool_]
    masks: masks.Masks = field(default_factory=lambda: np.zeros((0, 0, 0), np.uint8))

    def mirrored(self, width: int, swapped: Sequence[tuple[int, int]] = ()) -> Target:
        """Return it for an input of ``width`` whose left is now its right; ``swapped`` points change."""
        objects = self.objects.mirrored(width, swapped)
        return replace(self, objects=objects, masks=np.ascontiguousarray(self.masks[:, :, ::-1]))

    def as_torchvision(self, heads: Collection[Head]) -> dict[str, Tensor]:
        """Return what is learned as torchvision's networks take it."""
        objects = self.objects.take(self.learned)
        found = {"boxes": torch.from_numpy(objects.boxes_xyxy), "labels": torch.from_numpy(objects.labels)}
        if "masks" in heads:
            found["masks"] = torch.from_numpy(self.masks[self.learned])
        if "keypoints" in heads:
            found["keypoints"] = torch.from_numpy(objects.points)
        return found

    def judged(self) -> Boxes:
        """Return what a prediction is compared with: all objects, their masks as run lengths."""
        return replace(self.objects, masks=masks.encoded(self.masks))


def target(image: Image, size: Size, labels: Mapping[str, int], details: Details) -> Target:
    """Return the objects of a picture that is resized to ``size``, clipped to it; none without an area.

    ``labels`` are the numbers of the classes that are learned. An object whose mask was left out of the truth
    as it was read, which its ``problem`` says, is left out, too: detectron2's ``load_coco_json``.
    Raises ValueError for an object of another class, for one that lacks what is learned of it, and for a
    truth that was made for another size.
    """
    truth = image.truth or {}
    stated = truth.get("height"), truth.get("width")
    if all(stated) and stated != image.size:
        raise ValueError(f"its ground truth is for {stated} (height, width), it has {image.size}")
    learned, known = [], []
    needs_mask = "masks" in details.heads and is_partly(truth.get("problem"))
    for one in truth.get("objects") or []:
        if needs_mask and one.get("mask") is None:
            continue
        is_learned = not (one.get("crowd") or one.get("ignore"))
        if is_learned and one["label"] not in labels:
            raise ValueError(f"an object's label {one['label']!r} is none of the classes")
        if one["label"] in labels and one["box"]:
            known.append(one)
            learned.append(is_learned)
    found, kept = _objects(known, labels, details).resized(image.size, size).clipped(size)
    some = [one for one, is_kept in zip(known, kept, strict=True) if is_kept]
    made = Target(found, np.array(learned, np.bool_)[kept])
    return replace(made, masks=_masks(some, image.size, size)) if "masks" in details.heads else made


def _objects(known: Sequence[Mapping[str, Any]], labels: Mapping[str, int], details: Details) -> Boxes:
    """Return objects of known classes in pixels of the original."""
    areas = [one["area"] if one.get("area") is not None else _area(one["box"]) for one in known]
    found = Boxes(
        np.array([_corners(one["box"]) for one in known], np.float32).reshape(-1, 4),
        np.array([labels[one["label"]] for one in known], np.int64),
        crowd=np.array([bool(one.get("crowd")) for one in known], np.bool_),
        areas=np.array(areas, np.float32),
    )
    if "keypoints" not in details.heads:
        return found
    return replace(found, points=_points(known, len(details.sigmas)))


def _points(objects: Sequence[Mapping[str, Any]], count: int) -> NDArray[np.float32]:
    """Return keypoints (K, count, 3); those of an object without any are all unlabelled."""
    found = np.zeros((len(objects), count, 3), np.float32)
    for place, one in zip(found, objects, strict=True):
        points = one.get("keypoints") or []
        if len(points) not in (0, count):
            raise ValueError(f"an object has {len(points)} keypoints, task.sigmas are of {count}")
        for row, point in zip(place, points, strict=False):
            row[:] = point["x"], point["y"], point["visibility"]
    return found


def _masks(objects: Sequence[Mapping[str, Any]], size: Size, target: Size) -> masks.Masks:
    without = next((one for one in objects if one.get("mask") is None), None)
    if without is not None:
        raise ValueError(f"an object of the class {without['label']!r} has no mask to learn")
    return masks.resized([one["mask"] for one in objects], size, target)


def _corners(box: Mapping[str, float]) -> list[float]:
    return [box["x1"], box["y1"], box["x2"], box["y2"]]


def _area(box: Mapping[str, float]) -> float:
    return (box["x2"] - box["x1"]) * (box["y2"] - box["y1"])
