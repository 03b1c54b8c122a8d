"""Every detector of torchvision under its own name; the forward pass is torchvision's own code.

Only its first step is taken out, which resizes and stacks pictures: here each picture is prepared
by itself, where it was decoded, and a batch is of one shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torchvision
from torch import Tensor, nn
from torchvision.models import WeightsEnum
from torchvision.models.detection.image_list import ImageList

from cnnbatch.models.choice import Choice
from cnnbatch.models.detector import Detections, Detector
from cnnbatch.models.libraries.torchvision_models import entry_of, load_published, published_entry
from cnnbatch.models.network import library
from cnnbatch.models.resizing import Resizing
from cnnbatch.models.weights import files

BACKGROUND = "__background__"

Targets = list[dict[str, Tensor]]

_OF_MORE = ("maskrcnn_", "keypointrcnn_")

# These published weights were trained with another epsilon, which torchvision sets with them.
_EXACT = frozenset(
    {
        ("fasterrcnn_resnet50_fpn", "COCO_V1"),
        ("maskrcnn_resnet50_fpn", "COCO_V1"),
        ("keypointrcnn_resnet50_fpn", "COCO_V1"),
        ("retinanet_resnet50_fpn", "COCO_V1"),
    }
)


def names() -> list[str]:
    """Return the names of torchvision's detectors."""
    return list(torchvision.models.list_models(module=torchvision.models.detection))


def trainable() -> list[str]:
    """Return the names of those that learn from boxes alone, without masks or keypoints."""
    return [name for name in names() if not name.startswith(_OF_MORE)]


def detector(choice: Choice, keypoints: bool) -> Detector:
    """Return torchvision's detector ``choice.model`` with its weights, random ones from torch's generator.

    ``keypoints`` keeps the head of a pose network; a head for masks is left out.
    """
    known: type[WeightsEnum] = torchvision.models.get_model_weights(choice.model)
    weights = choice.weights.rpartition("_Weights.")[2]
    entry: WeightsEnum | None = None
    digest = ""
    notes: tuple[str, ...] = ()
    if choice.seed is None and weights in known.__members__:
        entry = published_entry(known, weights)
        module, path = load_published(choice.model, entry, choice.sha256)
        digest = files.digest(path)
    elif choice.seed is None:
        path = files.fetch(choice.weights, choice.sha256, choice.storage)
        entry, loaded = entry_of(known, path), files.load(path)
        module = _from_file(choice, known, entry, loaded, path.name)
        digest = files.identity(path, loaded) + _unlike_before(choice.model, known, entry, path.name)
        notes = (*loaded.notes(path), _said(choice, entry, path.name))
    else:
        module = _made(choice, _classes(choice, known))
    names = _classes(choice, known, entry)
    resizing = _resizing(module.transform)
    whole = TorchvisionDetector(module, keypoints)
    return Detector(
        module=whole,
        resizing=resizing,
        classes=names,
        ids=() if choice.classes else tuple(range(len(names))),
        licence=entry.meta.get("license") if entry is not None else None,
        weights=digest,
        library=library("torchvision"),
        parts=whole.parts,
        box_parts=whole.box_parts,
        notes=tuple(filter(None, notes)),
    )


def _said(choice: Choice, entry: WeightsEnum | None, file: str) -> str:
    """Say how pictures are prepared for a file of weights, and why; nothing where the job says it."""
    if entry is not None:
        return f"task.weights: {file} is torchvision's {entry}"
    if "size" in choice.preprocessing:
        return ""
    return (
        f"task.weights: {file} is no published file of {choice.model}, so pictures are resized and "
        "normalised as torchvision does for that model; task.size changes the size"
    )


def _classes(choice: Choice, known: type[WeightsEnum], entry: WeightsEnum | None = None) -> tuple[str, ...]:
    """Return the names by label: the job's behind the background, else those of the published weights."""
    if choice.classes:
        return BACKGROUND, *choice.classes
    return tuple((entry or published_entry(known, "DEFAULT")).meta["categories"])


def _made(choice: Choice, classes: tuple[str, ...]) -> nn.Module:
    module: nn.Module = torchvision.models.get_model(
        choice.model, weights=None, weights_backbone=None, num_classes=len(classes)
    )
    return module


def _from_file(
    choice: Choice,
    known: type[WeightsEnum],
    entry: WeightsEnum | None,
    state: Mapping[str, Tensor],
    file: str,
) -> nn.Module:
    """Load a file; of what its hash does not tell, its name says whether it was trained with epsilon 0."""
    module = _made(choice, _classes(choice, known, entry))
    key_map = files.read_key_map(choice.key_map) if choice.key_map else None
    files.apply(module, state, key_map, file)
    if _is_exact(choice.model, known, entry, file):
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eps = 0.0
    return module


def _is_exact(model: str, known: type[WeightsEnum], entry: WeightsEnum | None, file: str) -> bool:
    """Say whether weights were trained with epsilon 0: by their hash, else by the name of their file."""
    named = entry or _called(known, file)
    return named is not None and (model, named.name) in _EXACT


def _called(known: type[WeightsEnum], file: str) -> WeightsEnum | None:
    return next((one for one in known if one.url.endswith(f"/{file}")), None)


def _unlike_before(model: str, known: type[WeightsEnum], entry: WeightsEnum | None, file: str) -> str:
    """Return what tells these weights from the same ones as cnnbatch 0.1 first ran them: by the name alone.

    So an output that was begun with the other epsilon is not gone on with.
    """
    by_name = model in {exact for exact, _ in _EXACT} and _called(known, file) is not None
    is_exact = _is_exact(model, known, entry, file)
    return "" if is_exact == by_name else f" with epsilon {0.0 if is_exact else 1e-5}"


def _resizing(transform: Any) -> Resizing:
    """Return what a ``GeneralizedRCNNTransform`` does in evaluation, as a value."""
    fixed = transform.fixed_size  # (width, height)
    return Resizing(
        fit="sides" if fixed is None else "stretch",
        size=(transform.min_size[-1], transform.max_size) if fixed is None else (fixed[1], fixed[0]),
        mean=tuple(transform.image_mean),
        std=tuple(transform.image_std),
        divisor=transform.size_divisible,
    )


class TorchvisionDetector(nn.Module):
    """A detector of torchvision that takes a batch as it was prepared, and leaves boxes in its pixels."""

    def __init__(self, module: nn.Module, keypoints: bool = False) -> None:
        super().__init__()
        self.module = module
        self._given = _Given()
        module.transform = self._given
        if hasattr(module, "roi_heads"):
            self._head.mask_roi_pool = None  # Masks are another task's.
            if not keypoints:
                self._head.keypoint_roi_pool = None

    @property
    def parts(self) -> tuple[str, ...]:
        """See `Detector`."""
        return "module.backbone", "module.rpn.head" if hasattr(self.module, "rpn") else "module.head"

    @property
    def box_parts(self) -> tuple[str, ...]:
        """See `Detector`; the last layers are left out, which cost little and gain from float32."""
        if not hasattr(self.module, "roi_heads"):
            return ()
        poses = ("module.roi_heads.keypoint_head",) if self._head.has_keypoint() else ()
        return ("module.roi_heads.box_head", *poses)

    @property
    def _head(self) -> Any:
        """What chooses among the detections."""
        return getattr(self.module, "roi_heads", self.module)

    @property
    def score_threshold(self) -> float:
        """The least score of a detection."""
        return float(self._head.score_thresh)

    @score_threshold.setter
    def score_threshold(self, value: float) -> None:
        self._head.score_thresh = value

    @property
    def max_objects(self) -> int:
        """How many detections of a picture are kept, the best."""
        return int(self._head.detections_per_img)

    @max_objects.setter
    def max_objects(self, value: int) -> None:
        self._head.detections_per_img = value

    def forward(
        self, batch: Tensor, sizes: Tensor, targets: Targets | None = None
    ) -> list[Detections] | dict[str, Tensor]:
        """Return each picture's detections; see `cnnbatch.models.detector.Detector`.

        In training mode it returns the parts of the loss, scalars under torchvision's names; ``targets``
        has then for each picture ``boxes`` [K, 4] float32 (x1, y1, x2, y2) in pixels of the input, and
        ``labels`` [K] int64, of which 0 is the background.
        """
        self._given.sizes = [(int(height), int(width)) for height, width in sizes.tolist()]
        found: list[Detections] | dict[str, Tensor] = self.module(batch, targets)
        return found


class _Given(nn.Module):
    """Stands where torchvision resizes and stacks: the batch is ready, and its boxes stay as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, int]] = []

    def forward(self, batch: Tensor, targets: Targets | None = None) -> tuple[ImageList, Targets | None]:
        return ImageList(batch, self.sizes), targets

    def postprocess(
        self, result: list[dict[str, Tensor]], _shapes: Any, _sizes: Any
    ) -> list[dict[str, Tensor]]:
        return result
