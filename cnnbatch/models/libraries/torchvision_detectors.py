"""Every detector of torchvision under its own name, and its R-CNNs on any classifier.

The forward pass is torchvision's own code. Only its first step is taken out, which resizes and stacks
pictures: here each picture is prepared by itself, where it was decoded, and a batch is of one shape.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torchvision
from torch import Tensor, nn
from torchvision.models import WeightsEnum
from torchvision.models.detection.image_list import ImageList

from cnnbatch.errors import UserError
from cnnbatch.humanize import meant
from cnnbatch.models.choice import Choice
from cnnbatch.models.detector import Detections, Detector
from cnnbatch.models.libraries import torchvision_backbones, torchvision_rcnn
from cnnbatch.models.libraries.torchvision_models import entry_of, load_published, published_entry
from cnnbatch.models.network import Network, library
from cnnbatch.models.resizing import Resizing
from cnnbatch.models.weights import files
from cnnbatch.models.weights.state_dicts import StateDict
from cnnbatch.types import Head

BACKGROUND = "__background__"

Targets = list[dict[str, Tensor]]

_KIND: Mapping[Head | None, str] = {"masks": "maskrcnn_", "keypoints": "keypointrcnn_"}
_POINTS = "roi_heads.keypoint_predictor.kps_score_lowres.weight"  # (channels, points, height, width)

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
    """Return the names of torchvision's own detectors; `is_known` knows more."""
    return list(torchvision.models.list_models(module=torchvision.models.detection))


def is_known(name: str) -> bool:
    """Say whether `detector` makes a detector of this name."""
    return name in names() or torchvision_rcnn.parse(name) is not None


def trainable(head: Head | None = None) -> list[str]:
    """Return the names of torchvision's own that learn from boxes, or also for a head."""
    if head is not None:
        return [name for name in names() if name.startswith(_KIND[head])]
    return [name for name in names() if not name.startswith((*_KIND.values(),))]


def is_trainable(name: str, head: Head | None = None) -> bool:
    """Say whether the detector of this name learns from boxes, and from what ``head`` gives."""
    of_more = name.startswith((*_KIND.values(),))
    return is_known(name) and (not of_more if head is None else gives(name, head))


def gives(name: str, head: Head) -> bool:
    """Say whether the detector of this name gives masks, or keypoints."""
    return name.startswith(_KIND[head])


def other_names(head: Head | None = None) -> str:
    """Return how the names of further R-CNNs are made, for messages."""
    return f"{_KIND.get(head, 'fasterrcnn_')}BACKBONE_fpn with any classifier of torchvision as BACKBONE"


@dataclass(frozen=True)
class _Loaded:
    """A module with what is known of its weights."""

    module: nn.Module
    classes: tuple[str, ...]
    weights: str = ""
    licence: str | None = None
    notes: tuple[str, ...] = ()


def detector(
    choice: Choice, heads: Collection[Head] = (), points: int | None = None, new_head: bool = False
) -> Detector:
    """Return the detector ``choice.model`` with its weights, random ones from torch's generator.

    Of its heads for masks and for keypoints those in ``heads`` are kept; ``points`` is the number of
    keypoints where no weights say it. With ``new_head``, for a training, the weights may be those of the
    classifier that the backbone is; all else is then random.
    """
    found = _loaded(choice, points, new_head)
    resizing = _resizing(found.module.transform)
    whole = TorchvisionDetector(found.module, heads)
    return Detector(
        module=whole,
        resizing=resizing,
        classes=found.classes,
        ids=() if choice.classes else tuple(range(len(found.classes))),
        licence=found.licence,
        weights=found.weights,
        library=library("torchvision"),
        parts=whole.parts,
        box_parts=whole.box_parts,
        notes=found.notes,
    )


def _loaded(choice: Choice, points: int | None, new_head: bool) -> _Loaded:
    known, weights = _published(choice.model), choice.weights.rpartition("_Weights.")[2]
    if choice.seed is not None:
        return _Loaded(_made(choice, points), _classes(choice))
    if known is not None and weights in known.__members__:
        entry = published_entry(known, weights)
        module, path = load_published(choice.model, entry, choice.sha256)
        return _Loaded(module, _classes(choice, entry), files.digest(path), entry.meta.get("license"))
    if new_head and _is_of_classifier(choice, weights):
        return _on_classifier(choice, points)
    if re.fullmatch(r"\w+", choice.weights) and not os.path.exists(choice.weights):
        raise _no_such_weights(choice, known)
    path = files.fetch(choice.weights, choice.sha256, choice.storage)
    loaded = files.load(path)
    if new_head and not any(name.startswith("backbone.") for name in loaded):
        return _on_classifier(choice, points)
    entry = None if known is None else entry_of(known, path)
    return _from_file(choice, entry, path, loaded)


def _published(model: str) -> type[WeightsEnum] | None:
    if model not in names():
        return None
    known: type[WeightsEnum] = torchvision.models.get_model_weights(model)
    return known


def _no_such_weights(choice: Choice, known: type[WeightsEnum] | None) -> UserError:
    if known is None and choice.weights == "DEFAULT":
        return UserError(
            f"task.weights: {choice.model} has no published weights\n"
            "  what to do: give the folder of a training (task.model=FOLDER), a file of weights, or random"
        )
    published = () if known is None else tuple(known.__members__)
    return UserError(
        f"task.weights: {choice.model} has no weights {choice.weights!r}{meant(choice.weights, published)}; "
        f"expected {', '.join((*published, 'a path'))}, a URL, package:NAME/PATH or random"
    )


def _is_of_classifier(choice: Choice, weights: str) -> bool:
    """Say whether weights are published ones of the classifier that the backbone is, by their name."""
    classifier = _classifier(choice.model)
    return classifier is not None and weights in torchvision.models.get_model_weights(classifier).__members__


def _classifier(model: str) -> str | None:
    """Return the classifier that the backbone of a detector is taken from, where its weights fit."""
    if (parsed := torchvision_rcnn.parse(model)) is not None:
        return parsed[1]
    known = next((name for name in ("resnet50", "mobilenet_v3_large") if name in model), None)
    return None if model.startswith("ssd") else known


def _on_classifier(choice: Choice, points: int | None) -> _Loaded:
    """Return a detector with random heads, and with the weights of a classifier in its backbone."""
    name = _classifier(choice.model)
    if name is None:
        raise UserError(
            f"task.weights: {choice.weights} has to have all of {choice.model}, whose backbone is not loaded "
            "by itself\n  what to do: give a file of the whole detector, or take train.strategy=scratch"
        )
    network = torchvision_backbones.classifier(choice, name)
    module = _made(choice, points, network)
    if choice.model in names():
        own = torchvision_backbones.body(network, name).state_dict()
        body = module.get_submodule("backbone.body")
        body.load_state_dict({key: own[key] for key in body.state_dict() if key in own}, strict=True)
    return _Loaded(module, _classes(choice), network.weights, network.licence, network.notes)


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


def _classes(choice: Choice, entry: WeightsEnum | None = None) -> tuple[str, ...]:
    """Return the names by label: the job's behind the background, else those of the published weights."""
    if choice.classes:
        return BACKGROUND, *choice.classes
    known = _published(choice.model)
    if known is None:
        alike = "keypointrcnn_resnet50_fpn" if gives(choice.model, "keypoints") else "maskrcnn_resnet50_fpn"
        known = torchvision.models.get_model_weights(alike)
    return tuple((entry or published_entry(known, "DEFAULT")).meta["categories"])


def _made(choice: Choice, points: int | None = None, network: Network | None = None) -> nn.Module:
    """Return the detector with random weights; one on another backbone has that of ``network``, if given."""
    count, parsed = len(_classes(choice)), torchvision_rcnn.parse(choice.model)
    if choice.model in names() or parsed is None:
        own = {} if points is None or not gives(choice.model, "keypoints") else {"num_keypoints": points}
        module: nn.Module = torchvision.models.get_model(
            choice.model, weights=None, weights_backbone=None, num_classes=count, **own
        )
        return module
    kind, name = parsed
    if network is None:
        network = torchvision_backbones.classifier(Choice(name, "random"), name)
    return torchvision_rcnn.make(kind, network, name, count, points)


def _from_file(choice: Choice, entry: WeightsEnum | None, path: Path, loaded: StateDict) -> _Loaded:
    """Load a file; of what its hash does not tell, its name says whether it was trained with epsilon 0."""
    key_map = files.read_key_map(choice.key_map) if choice.key_map else None
    state = files.rename(loaded, key_map)
    module = _made(choice, state[_POINTS].shape[1] if _POINTS in state else None)
    files.apply(module, loaded, key_map, path.name)
    known = _published(choice.model)
    digest = files.identity(path, loaded)
    if known is not None:
        if _is_exact(choice.model, known, entry, path.name):
            for layer in module.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.eps = 0.0
        digest += _unlike_before(choice.model, known, entry, path.name)
    notes = tuple(filter(None, (*loaded.notes(path), _said(choice, entry, path.name))))
    licence = entry.meta.get("license") if entry is not None else None
    return _Loaded(module, _classes(choice, entry), digest, licence, notes)


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

    def __init__(self, module: nn.Module, heads: Collection[Head] = ()) -> None:
        super().__init__()
        self.module = module
        self._given = _Given()
        module.transform = self._given
        if hasattr(module, "roi_heads"):
            if "masks" not in heads:
                self._head.mask_roi_pool = None
            if "keypoints" not in heads:
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
        there = {"keypoint_head": self._head.has_keypoint(), "mask_head": self._head.has_mask()}
        return tuple(f"module.roi_heads.{name}" for name in ("box_head", *(n for n in there if there[n])))

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
        ``labels`` [K] int64, of which 0 is the background; where there are such heads also ``masks``
        [K, H, W] uint8 of the input's size, and ``keypoints`` [K, P, 3] float32 (x, y, visibility).
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
