"""From a proposal to a mask: what the stages of a Mask R-CNN say of one object of a picture.

He et al. 2017, "Mask R-CNN", section 3: proposals, then a class and a better box for each, then a mask of
28 x 28 for the best, which is pasted into the picture. The stages are torchvision's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import clip_boxes_to_image

from cnnbatch.tasks.recipes.inside import Box, Shown, Strip, unnormalized

_MOST = 20
_TEXT = (
    "The most confident object of each picture. The first stage proposes boxes that may hold an object (the "
    f"best {_MOST} are drawn); the second gives each a class and refines its box. For the best, the mask "
    "head predicts 28 x 28 probabilities inside the box, which are resized to the box and cut off at 0.5."
)
_HALF = 0.5


def strips(
    rcnn: nn.Module,
    pictures: Sequence[tuple[Tensor, tuple[int, int]]],
    classes: Sequence[str],
    mean: Any,
    std: Any,
) -> list[Strip]:
    """Return the strip of some pictures: inputs (3, H, W), normalised, with their (height, width) inside.

    ``rcnn`` is torchvision's `MaskRCNN`, ``classes`` are named without the background.
    """
    with torch.inference_mode():
        rows = [_row(rcnn, pixels, size, classes, mean, std) for pixels, size in pictures]
    return [Strip("From a proposal to a mask", _TEXT, rows)]


def _row(
    rcnn: Any, pixels: Tensor, size: tuple[int, int], classes: Sequence[str], mean: Any, std: Any
) -> list[Shown]:
    """Return the stages of one picture."""
    picture = unnormalized(pixels[:, : size[0], : size[1]], mean, std)
    features = rcnn.backbone(pixels[None])
    proposals, _ = rcnn.rpn(ImageList(pixels[None], [size]), features, None)
    head = rcnn.roi_heads
    pooled = head.box_head(head.box_roi_pool(features, proposals, [size]))
    logits, deltas = head.box_predictor(pooled)
    scores = logits.softmax(-1)[:, 1:]  # Without the background.
    proposal, label = divmod(int(scores.argmax()), scores.shape[1])
    boxes = clip_boxes_to_image(head.box_coder.decode(deltas, proposals), size)  # [K, C, 4]
    best = boxes[proposal, label + 1][None]
    probabilities = _mask(head, features, best, size, label + 1)
    inside = paste_masks_in_image(probabilities[None, None], best, size)[0, 0] >= _HALF
    said = f"{classes[label]}, {float(scores[proposal, label]):.2f}"
    small = (255 * probabilities).round().to(torch.uint8).expand(3, -1, -1).cpu()
    places = torch.where(inside, 0, -1).cpu().numpy()
    return [
        Shown(f"{len(proposals[0])} proposals", picture, boxes=_boxes(proposals[0][:_MOST])),
        Shown("the proposal of this object", picture, boxes=_boxes(proposals[0][proposal][None])),
        Shown(f"class and refined box: {said}", picture, boxes=_boxes(best)),
        Shown("mask, 28 x 28", small, smooth=False),
        Shown("pasted mask, above 0.5", picture, places, _boxes(best)),
    ]


def _mask(head: Any, features: Any, box: Tensor, size: tuple[int, int], label: int) -> Tensor:
    """Return the probabilities (M, M) of one class in one box (1, 4)."""
    pooled = head.mask_roi_pool(features, [box], [size])
    logits: Tensor = head.mask_predictor(head.mask_head(pooled))[0, label]
    return logits.sigmoid()


def _boxes(boxes: Tensor) -> list[Box]:
    return [(x1, y1, x2, y2) for x1, y1, x2, y2 in boxes.tolist()]
