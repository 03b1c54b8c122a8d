"""How a segmenter is trained: windows of pictures with a class at every pixel; judged as prediction is.

A training picture is one window of a fixed size, so that a batch is one tensor; a validation picture is
whole, at the size that prediction gives it, and its classes are compared at the original's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cnnbatch.config.train import Augment, Strategy, Train
from cnnbatch.errors import UserError
from cnnbatch.images import class_map
from cnnbatch.metrics import semantic
from cnnbatch.models import Choice, depth
from cnnbatch.models.pixel_classes import WholeLogits, pixel_classes
from cnnbatch.models.resizing import Canvas, Normalized, Resizing, Size, prepare_bytes
from cnnbatch.models.trained_files import Learned
from cnnbatch.tasks.recipes import augment, segmentation_losses, tuned_blocks
from cnnbatch.tasks.recipes.applicable import OF_EMBEDDINGS, asked
from cnnbatch.tasks.recipes.auxiliary_head import AuxiliaryHead, auxiliary_head
from cnnbatch.tasks.recipes.inside import Strip
from cnnbatch.tasks.recipes.recipe import Batch, Example, Parameters, TrainingData
from cnnbatch.tasks.recipes.segmentation_augment import window
from cnnbatch.tasks.recipes.segmentation_inside import Seen, strips
from cnnbatch.tasks.recipes.segmentation_losses import IGNORED
from cnnbatch.tasks.recipes.segmenter_start import segmenter_to_train

if TYPE_CHECKING:
    from cnnbatch.types import Image

Places = NDArray[np.int16]
"""Of each pixel the place of its class among the network's, or `IGNORED`; (H, W)."""

_NOT_FOR_MAPS = (
    *("augment.shift", "augment.crop", "augment.randaugment", "augment.mixup", "augment.cutmix"),
    *("class_weights", "label_smoothing", *OF_EMBEDDINGS),
)
_SIDE = 320
"""Pixels of a window's sides where neither the job nor the network says a size."""


class SegmenterRecipe:
    """A segmentation network; see `tasks.recipes.recipe.Recipe`."""

    metric = "mIoU"

    def __init__(self, choice: Choice, spec: Train, data: TrainingData) -> None:
        _require_applicable(spec)
        strategy: Strategy = "all" if spec.strategy == "auto" else spec.strategy
        segmenter = segmenter_to_train(choice, strategy, data.classes, spec.seed)
        self._choice, self._spec, self._segmenter = choice, spec, segmenter
        self._classes, self.notes = data.classes, segmenter.notes
        self._resizing = segmenter.resizing
        self._crop = _crop(spec.augment, self._resizing)
        self._places = _places(data)
        pixels = torch.tensor([float(data.counts.get(name, 0)) for name in data.classes])
        self._weights = segmentation_losses.balanced(pixels, spec.loss.balance)
        self._has_learned = choice.seed is None and strategy != "scratch"
        backbone = segmenter.module.get_submodule("backbone")
        count, wants = len(data.classes), spec.loss.auxiliary > 0 and strategy != "as_is"
        head = auxiliary_head(choice.model, backbone, count, spec.seed) if wants else None
        network, body = Training(segmenter.module, head), [*depth.blocks(backbone, "module.backbone.")]
        self._parts = tuned_blocks.split_before(body, network, strategy)
        tuned_blocks.freeze(network, self._parts)
        self.module: nn.Module = tuned_blocks.Tuned(network, self._parts)
        self._fill = torch.tensor([round(255 * mean) for mean in self._resizing.mean], dtype=torch.uint8)

    def decode_size(self, size: Size) -> None:
        """Ask for the whole picture, as prediction does."""

    def example(self, image: Image, draw: Random | None) -> Example:
        """Return a window, uint8 (3, *crop), and its places, or the whole input and the original's places.

        Raises ValueError for a map that is of another size than the picture, or none.
        """
        places = self._places_of(image)
        if draw is None:
            prepared = prepare_bytes(image.pixels, self._resizing)
            target = torch.from_numpy(places)
            return Example(prepared.pixels, prepared.size, prepared.offset, prepared.scale, target)
        how, size = self._spec.augment, (image.pixels.shape[1], image.pixels.shape[2])
        drawn = window(size, self._resizing.resized(image.size), self._crop, how, draw)
        pixels = drawn.picture(image.pixels, self._fill, self._resizing.antialias)
        pixels = augment.coloured(pixels, how, draw)
        return Example(pixels, self._crop, target=drawn.map(places, IGNORED))

    def _places_of(self, image: Image) -> Places:
        data = (image.truth or {}).get("map")
        if data is None:
            raise ValueError("it has no map of classes")
        numbers = class_map.from_png(data)
        if numbers.shape != image.size:
            size = "{1} x {0}".format(*numbers.shape)
            raise ValueError(f"its map is of {size} pixels, the picture of {image.size[1]} x {image.size[0]}")
        return self._places[numbers]

    def collate(self, examples: Sequence[Example], training: bool) -> Batch:
        """Return pictures of one shape each in a tensor, uint8 (N, 3, H, W), channels-last, and the maps.

        In training the shape is one; the truth is int16 (N, H, W). In validation it is a `_Whole` a picture,
        in the order of the shapes.
        """
        if training:
            truth = torch.stack([example.target for example in examples])
            return Batch((_stacked(examples),), truth, len(examples))
        ordered = sorted(examples, key=_shape)
        groups = [list(some) for _, some in groupby(ordered, key=_shape)]
        whole = tuple(map(self._whole, ordered))
        return Batch(tuple(map(_stacked, groups)), whole, len(examples))

    def _whole(self, example: Example) -> _Whole:
        places: Tensor = example.target
        height, width = places.shape
        shape = (example.pixels.shape[1], example.pixels.shape[2])
        corner = self._resizing.offset(example.size)
        return _Whole(places, Canvas(shape, corner, example.size, (height, width)))

    def on_device(self, batch: Batch, draw: Random | None) -> Batch:
        """Return normalised float32 pictures."""
        normalized = Normalized(self._resizing, str(batch.inputs[0].device))
        if draw is not None:
            (pixels,) = batch.inputs
            whole = (0, 0, pixels.shape[2], pixels.shape[3])
            return replace(batch, inputs=(normalized(pixels, [whole] * len(pixels)),))
        pictures = iter([one.canvas.picture for one in batch.truth])
        inputs = [normalized(pixels, [next(pictures) for _ in pixels]) for pixels in batch.inputs]
        return replace(batch, inputs=tuple(inputs))

    def loss(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """Return the parts of the loss, see `segmentation_losses`; an auxiliary head's is one of them."""
        how, weights = self._spec.loss, self._weights
        main, *auxiliary = (
            segmentation_losses.parts(logits.float(), batch.truth, how, weights, batch) for logits in outputs
        )
        if auxiliary:
            main["auxiliary"] = how.auxiliary * torch.stack([*auxiliary[0].values()]).sum()
        return main

    def parameters(self) -> Sequence[Parameters]:
        """Return the tuned blocks of the backbone in groups, and all behind it."""
        decay = self._spec.layer_decay if self._has_learned else 1.0
        return tuned_blocks.parameters(self._parts, decay, self._spec.backbone_rate)

    def judge(self, outputs: Any, batch: Batch) -> list[Any]:
        """Return of each image the confusion of its pixels, int64 (C, C): truth by prediction."""
        each = [logits.float() for some in outputs for logits in some]
        return [self._confusion(*one) for one in zip(each, batch.truth, strict=True)]

    def _confusion(self, logits: Tensor, whole: _Whole) -> NDArray[np.int64]:
        count, truth = len(self._classes), whole.places
        found = pixel_classes([WholeLogits(logits)], count, whole.canvas, str(logits.device)).numbers.cpu()
        counted = truth >= 0
        pairs = truth[counted].long() * count + found[counted].long()
        return torch.bincount(pairs, minlength=count * count).view(count, count).numpy()

    def measure(self, values: Sequence[Any]) -> dict[str, float]:
        """Return ``mIoU``, ``mean_accuracy`` and ``pixel_accuracy`` of all images' pixels together."""
        count = len(self._classes)
        return semantic.of_confusion(sum(values, np.zeros((count, count), np.int64)))

    def inside(self, examples: Sequence[Example]) -> list[Strip]:
        """Return the backbone's features by depth, and what each of them contributes to the classes."""
        batch = self.on_device(self.collate(examples, training=False), None)
        pixels = [one[None] for some in batch.inputs for one in some]
        pictures = [
            Seen(one, whole.canvas.picture, whole.places.numpy().astype(np.int64))
            for one, whole in zip(pixels, batch.truth, strict=True)
        ]
        how = self._resizing
        return list(strips(self._segmenter.module, pictures, self._classes, how.mean, how.std))

    def learned(self, state: Mapping[str, Tensor]) -> Learned:
        """Return the network's own state, and what it takes to build it again."""
        segmenter, prefix = self._segmenter, "network.module."
        return Learned(
            architecture={"task": "segment", "model": self._choice.model, "library": segmenter.library},
            preprocessing=_input(self._resizing),
            classes=self._classes,
            state={
                name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)
            },
            about={
                "weights": segmenter.weights,
                "tuned": [name for name, _ in self._parts.tuned] + [self._parts.head[0]],
                "frozen": [name for name, _ in self._parts.frozen],
            },
        )


@dataclass(frozen=True, slots=True)
class _Whole:
    """A validation picture: the places of its original, int16 (H, W), and where it lies in its input."""

    places: Tensor
    canvas: Canvas


class Training(nn.Module):
    """A segmenter as it is trained: pictures of one shape each in, logits of each out.

    While it trains the logits of an ``auxiliary`` head come second.
    """

    def __init__(self, module: nn.Module, auxiliary: AuxiliaryHead | None = None) -> None:
        super().__init__()
        self.module = module
        self.auxiliary = auxiliary

    def forward(self, *pictures: Tensor) -> list[Tensor]:
        """Return logits (N, C, h, w) for floats (N, 3, H, W)."""
        found = [self.module(some) for some in pictures]
        if self.auxiliary is None or not self.training:
            return found
        return [*found, self.auxiliary()]


def _require_applicable(spec: Train) -> None:
    """Refuse what the job asks for and maps can't have; the defaults for classifiers say nothing."""
    others = asked(spec, _NOT_FOR_MAPS)
    if others:
        raise UserError(
            f"{', '.join(others)}: not for segmenters, whose maps would have to follow\n"
            "  what to do: leave it out; train.augment has crop_size, scale, aspect, flip, colour, gamma and "
            "cast, and train.loss.balance has rare classes count more"
        )


def _input(how: Resizing) -> dict[str, Any]:
    """Return the fields of a resizing that a job can change; one of the picture's own size has no other."""
    size = {} if how.fit in ("own", "multiples") else {"size": list(how.size)}
    return {"fit": how.fit, **size, "mean": list(how.mean), "std": list(how.std)}


def _crop(how: Augment, resizing: Resizing) -> Size:
    """Return the (height, width) of training windows: the job's, else what the network's inputs are like."""
    if how.crop_size is None:
        short = resizing.size[0] if resizing.fit == "sides" else _SIDE
        size = resizing.size if not resizing.varies else (short, short)
        return resizing.padded(size)
    if any(side % resizing.divisor for side in how.crop_size):
        raise UserError(
            f"train.augment.crop_size: expected multiples of {resizing.divisor}, which the network's strides "
            f"ask for, got {list(how.crop_size)}"
        )
    return how.crop_size


def _places(data: TrainingData) -> Places:
    """Return for each number of a map the place of its class, (65536,)."""
    found = np.full(1 << 16, IGNORED, np.int16)
    for place, name in enumerate(data.classes):
        if name in data.numbers:
            found[data.numbers[name]] = place
    return found


def _shape(example: Example) -> tuple[int, ...]:
    return tuple(example.pixels.shape)


def _stacked(examples: Sequence[Example]) -> Tensor:
    pixels = torch.stack([example.pixels for example in examples])
    return pixels.contiguous(memory_format=torch.channels_last)
