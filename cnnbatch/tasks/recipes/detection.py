"""How a detector of torchvision is trained: the losses are its own, the boxes those of the truth.

A picture is resized as in prediction, so that what is learned is what is asked for; the price is that no
crop shows objects at other sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchvision.ops.misc import FrozenBatchNorm2d
from torchvision.transforms.v2 import functional as transforms

from cnnbatch.config.train import Strategy, Train
from cnnbatch.errors import UserError
from cnnbatch.humanize import meant
from cnnbatch.metrics.iou_types import IOU_TYPES
from cnnbatch.models import Choice, depth
from cnnbatch.models.detector import Detector
from cnnbatch.models.detector_heads import with_head_of, with_labels
from cnnbatch.models.detectors import build_detector
from cnnbatch.models.libraries import torchvision_detectors
from cnnbatch.models.resizing import Resizing, Size, prepare
from cnnbatch.models.runtime.structure import flatten
from cnnbatch.models.trained_files import Learned
from cnnbatch.tasks.recipes import augment, masks_inside, targets, tuned_blocks
from cnnbatch.tasks.recipes.applicable import OF_EMBEDDINGS, OF_MAPS, asked
from cnnbatch.tasks.recipes.boxes import Boxes, average_precision
from cnnbatch.tasks.recipes.inside import Strip
from cnnbatch.tasks.recipes.recipe import Batch, Example, Parameters, TrainingData
from cnnbatch.tasks.recipes.targets import Details
from cnnbatch.truth.classes import named_alike
from cnnbatch.types import Head

if TYPE_CHECKING:
    from cnnbatch.types import Image

_EPSILON = 1e-5
_NOT_FOR_BOXES = (
    *("augment.shift", "augment.crop", "augment.randaugment", "augment.mixup", "augment.cutmix"),
    *("class_weights", *OF_MAPS, *OF_EMBEDDINGS),
)


class DetectorRecipe:
    """A detection network of torchvision; see `tasks.recipes.recipe.Recipe`.

    Labels count from 1 in the order of the classes; 0 is the background.
    """

    def __init__(
        self,
        choice: Choice,
        spec: Train,
        data: TrainingData,
        details: Details | None = None,
        task: str = "detect",
    ) -> None:
        self._details, self._task = details or Details(), task
        self._kinds = ("boxes", *self._details.heads)
        self.metric = IOU_TYPES[self._kinds[-1]].prefix + "AP50"
        _require_known(choice.model, self._details.heads)
        _require_applicable(spec)
        strategy: Strategy = "all" if spec.strategy == "auto" else spec.strategy
        detector = _detector(choice, strategy, data.classes, spec.seed, self._details)
        self._choice, self._spec, self._detector = choice, spec, detector
        self._classes, self.notes = data.classes, detector.notes
        self._resizing = detector.resizing
        self._labels = {name: number for number, name in enumerate(data.classes, 1)}
        self._has_learned = choice.seed is None and strategy != "scratch"
        body = list(_blocks(detector.module.get_submodule("module.backbone"), "module.backbone"))
        self._parts = tuned_blocks.split_before(body, detector.module, strategy)
        tuned_blocks.freeze(detector.module, self._parts)
        norms = _freeze_norms(detector.module) if self._has_learned else []
        _widen(detector)
        _set_proposals(detector, spec.proposals)
        still = replace(self._parts, frozen=[*self._parts.frozen, *norms])
        self.module: nn.Module = tuned_blocks.Tuned(detector.module, still)

    def decode_size(self, size: tuple[int, int]) -> None:
        """Ask for the whole picture, as prediction does."""

    def example(self, image: Image, draw: Random | None) -> Example:
        """Return float32 (3, H, W), normalised and padded, and its objects in pixels of that input.

        By chance the picture is mirrored, with its objects, and coloured. Raises ValueError for a truth that
        can't be learned, see `tasks.recipes.targets.target`.
        """
        size = self._resizing.resized(image.size)
        target = targets.target(image, size, self._labels, self._details)
        if draw is None:
            prepared = prepare(image.pixels, self._resizing)
        else:
            pixels = _resized(image.pixels, size, self._resizing)
            if self._spec.augment.flip and draw.random() < 0.5:
                pixels = transforms.horizontal_flip_image(pixels)
                target = target.mirrored(size[1], self._details.swapped)
            pixels = augment.coloured(pixels, self._spec.augment, draw)
            prepared = prepare(pixels, replace(self._resizing, fit="stretch", size=size))
        return Example(prepared.pixels, prepared.size, prepared.offset, prepared.scale, target)

    def collate(self, examples: Sequence[Example], training: bool) -> Batch:
        """Return float32 (N, 3, H, W), padded at the bottom and the right, with sizes (N, 2), int64.

        In training the third input are torchvision's targets, see `TorchvisionDetector.forward`; crowds and
        ignored objects are left out of these. One picture alone comes twice where normalisations learn, which
        leaves the means of the loss as they are: its smallest map is one pixel, which has no variance.
        """
        count = len(examples)
        if training and count == 1 and not self._has_learned:
            examples = [*examples, *examples]
        height = max(example.pixels.shape[1] for example in examples)
        width = max(example.pixels.shape[2] for example in examples)
        pixels = torch.full((len(examples), 3, height, width), self._resizing.fill)
        for place, example in zip(pixels, examples, strict=True):
            place[:, : example.pixels.shape[1], : example.pixels.shape[2]] = example.pixels
        sizes = torch.tensor([example.size for example in examples])
        inputs = (pixels.contiguous(memory_format=torch.channels_last), sizes)
        if not training:
            return Batch(inputs, tuple(example.target.judged() for example in examples), count)
        learned = [example.target.as_torchvision(self._details.heads) for example in examples]
        return Batch((*inputs, learned), None, count)

    def on_device(self, batch: Batch, draw: Random | None) -> Batch:
        """Return the batch: its pictures are finished."""
        return batch

    def loss(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """Return the parts of the loss as torchvision computes and names them; the module gave them."""
        return dict(outputs)

    def parameters(self) -> Sequence[Parameters]:
        """Return the tuned blocks of the backbone in groups, and the heads."""
        decay = self._spec.layer_decay if self._has_learned else 1.0
        return tuned_blocks.parameters(self._parts, decay, self._spec.backbone_rate)

    def judge(self, outputs: Any, batch: Batch) -> list[Any]:
        """Return of each image what was found and what is there, both as `Boxes` in pixels of the input."""
        sizes = [(height, width) for height, width in batch.inputs[1].tolist()]
        found = [Boxes.of_detections(one, size) for one, size in zip(outputs, sizes, strict=True)]
        return list(zip(found, batch.truth, strict=True))

    def measure(self, values: Sequence[Any]) -> dict[str, float]:
        """Return COCO's ``AP50`` and ``AP`` by boxes, and by what else is learned; 0 where there is no truth.

        In pixels of the inputs, since an overlap is the same at any size of the picture.
        """
        names = ("", *self._classes)
        return average_precision(values, names, self._kinds, self._details.sigmas)

    def _input(self) -> dict[str, Any]:
        """Return how inputs are made; colours are those of the backbone's weights where these are chosen."""
        how = self._resizing
        if self._choice.model in torchvision_detectors.names():
            return {"size": [*how.size]}
        return {"size": [*how.size], "mean": [*how.mean], "std": [*how.std]}

    def inside(self, examples: Sequence[Example]) -> list[Strip]:
        """Return the way from a proposal to a mask, of a network that learns masks."""
        if "masks" not in self._details.heads:
            return []
        rcnn, how = self._detector.module.get_submodule("module"), self._resizing
        pictures = [(example.pixels, example.size) for example in examples]
        return masks_inside.strips(rcnn, pictures, self._classes, how.mean, how.std)

    def learned(self, state: Mapping[str, Tensor]) -> Learned:
        """Return torchvision's own state, and what it takes to build the detector again."""
        detector, prefix = self._detector, "network.module."
        return Learned(
            architecture={
                "task": self._task,
                "model": self._choice.model,
                "library": detector.library,
                **self._details.record(),
            },
            preprocessing=self._input(),
            classes=self._classes,
            state={name.removeprefix(prefix): tensor for name, tensor in state.items()},
            about={
                "weights": detector.weights,
                "tuned": [name for name, _ in self._parts.tuned] + [self._parts.head[0]],
                "frozen": [name for name, _ in self._parts.frozen],
            },
        )


def _require_known(model: str, heads: Sequence[Head]) -> None:
    head = next(iter(heads), None)
    if not torchvision_detectors.is_trainable(model, head):
        known = torchvision_detectors.trainable(head)
        raise UserError(
            f"task.model: {model} does not train{meant(model, known)}\n"
            f"  expected one of torchvision's detectors of {head or 'boxes'}: {', '.join(known)}; "
            f"or {torchvision_detectors.other_names(head)}"
        )


def _require_applicable(spec: Train) -> None:
    """Refuse what the job asks for and a detector can't have; the defaults for classifiers say nothing."""
    others = asked(spec, _NOT_FOR_BOXES)
    if others:
        raise UserError(
            f"{', '.join(others)}: not for detectors, whose boxes would have to follow or whose losses are "
            "torchvision's own\n"
            "  what to do: leave it out; train.augment.flip, .colour, .gamma and .cast are there"
        )


def _detector(
    choice: Choice, strategy: Strategy, classes: tuple[str, ...], seed: int, details: Details
) -> Detector:
    """Return the detector that training begins with."""
    fresh = replace(choice, weights=f"random:{seed}", sha256=None, key_map=None, classes=classes)
    build = partial(build_detector, heads=details.heads, points=len(details.sigmas) or None)
    if strategy == "scratch":
        return build(fresh)
    trained = _at_default_epsilon(build(choice, head_seed=None if strategy == "as_is" else seed))
    if strategy != "as_is":
        return with_head_of(trained, build(fresh))
    names = named_alike(classes, trained.classes)
    if unknown := [name for name in classes if name not in names]:
        raise UserError(
            f"train.strategy: as_is needs a detector that knows all classes; {choice.model} does not know "
            f"{', '.join(unknown[:8])}\n  what to do: take another strategy, or auto"
        )
    return with_labels(trained, [0, *(trained.classes.index(names[name]) for name in classes)])


def _at_default_epsilon(detector: Detector) -> Detector:
    """Return the detector with torch's epsilon in each normalisation that has none, and the same outputs.

    Some published weights have 0, which a file of weights can't say; so it is moved into the variance.
    """
    for layer in detector.module.modules():
        if isinstance(layer, nn.BatchNorm2d | FrozenBatchNorm2d) and layer.eps == 0:
            assert layer.running_var is not None
            layer.running_var.sub_(_EPSILON)
            layer.eps = _EPSILON
    return detector


def _blocks(backbone: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield the blocks of a classifier's body, then what detection adds: a pyramid, or layers one by one."""
    for name, child in backbone.named_children():
        if name in ("body", "features"):
            yield from depth.blocks(child, f"{prefix}.{name}.")
        elif isinstance(child, nn.ModuleList):
            yield from ((f"{prefix}.{name}.{number}", one) for number, one in child.named_children())
        else:
            yield f"{prefix}.{name}", child


def _freeze_norms(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Keep the normalisations of a trained network as they are, and return them.

    A step has few pictures a worker, whose statistics are too rough (Ren et al. 2015 and torchvision's own
    trainings of Faster R-CNN freeze them likewise).
    """
    norms: list[tuple[str, nn.Module]] = [
        (name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.BatchNorm2d)
    ]
    for _, layer in norms:
        layer.requires_grad_(False)
    return norms


def _widen(detector: Detector) -> None:
    """Have what comes from the networks inside go on in float32, whatever they compute in.

    A box in bfloat16 would be off by a pixel or two.
    """
    predictors = [f"module.roi_heads.{part}_predictor" for part in ("box", "mask", "keypoint")]
    there = {name for name, _ in detector.module.named_modules()}
    for name in [*detector.parts, *detector.box_parts, *there.intersection(predictors)]:
        detector.module.get_submodule(name).register_forward_hook(_widened)
    if predictors[-1] in there:
        detector.module.get_submodule(predictors[-1]).register_forward_hook(_plain)


def _plain(_module: nn.Module, _inputs: Any, outputs: Tensor) -> Tensor:
    """Return logits of points in torch's own layout, which torchvision's loss takes apart by `view`."""
    return outputs.contiguous()


def _widened(_module: nn.Module, _inputs: Any, outputs: Any) -> Any:
    tensors, rebuild = flatten(outputs)
    return rebuild([tensor.float() for tensor in tensors])


def _set_proposals(detector: Detector, count: int | None) -> None:
    """Have the heads learn from ``count`` proposals of a picture; None: as many as the detector's own."""
    if count is None:
        return
    heads = getattr(detector.module.get_submodule("module"), "roi_heads", None)
    if heads is None:
        raise UserError(
            "train.proposals: only for detectors in two stages (R-CNNs), whose heads learn from proposals\n"
            "  what to do: leave it out"
        )
    heads.fg_bg_sampler.batch_size_per_image = count


def _resized(pixels: Tensor, size: Size, how: Resizing) -> Tensor:
    """Return uint8 pixels (3, *size), as `prepare` resizes them but for rounding."""
    if tuple(pixels.shape[1:]) == size:
        return pixels
    found: Tensor = transforms.resize_image(pixels, list(size), antialias=how.antialias)
    return found
