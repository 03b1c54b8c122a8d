"""How a classifier is trained: cross-entropy over pictures with one label each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cnnbatch.config.train import Strategy, Train
from cnnbatch.errors import UserError
from cnnbatch.models import Choice, Network, build_classifier
from cnnbatch.models.depth import shortened
from cnnbatch.models.heads import with_new_head, with_rows
from cnnbatch.models.trained_files import Learned
from cnnbatch.tasks.recipes import augment, tuned_blocks
from cnnbatch.tasks.recipes.applicable import OF_EMBEDDINGS, OF_MAPS, asked
from cnnbatch.tasks.recipes.pictures import WholePictures
from cnnbatch.tasks.recipes.recipe import Batch, Example, Parameters, TrainingData
from cnnbatch.truth.classes import named_alike

if TYPE_CHECKING:
    from cnnbatch.types import Image


@dataclass(frozen=True)
class _Truth:
    """Class numbers [N]; mixed pictures have a second one, which counts ``1 - part``."""

    classes: Tensor
    others: Tensor | None = None
    part: float = 1.0


class ClassifierRecipe:
    """A classification network; see `tasks.recipes.recipe.Recipe`."""

    metric = "accuracy"

    def __init__(self, choice: Choice, spec: Train, data: TrainingData) -> None:
        _require_applicable(spec)
        strategy: Strategy = "all" if spec.strategy == "auto" else spec.strategy
        network = _network(choice, strategy, data.classes, spec)
        self._choice, self._spec, self._network = choice, spec, network
        self._how, self.notes = network.preprocessing, network.notes
        self._numbers = {name: number for number, name in enumerate(data.classes)}
        self._parts = tuned_blocks.split(network.module, strategy)
        tuned_blocks.freeze(network.module, self._parts)
        self.module: nn.Module = tuned_blocks.Tuned(network.module, self._parts)
        self._weights = _class_weights(data) if spec.class_weights == "balanced" else None
        self._pictures = WholePictures(self._how, spec.augment)

    def decode_size(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """Return the size that prediction resizes to."""
        return self._how.decode_size(size)

    def example(self, image: Image, draw: Random | None) -> Example:
        """Return uint8 (3, *crop) and the number of the class."""
        label = (image.truth or {}).get("label")
        if label not in self._numbers:
            raise ValueError(f"its label {label!r} is none of the classes")
        return self._pictures.example(image, self._numbers[label], draw)

    def collate(self, examples: Sequence[Example], training: bool) -> Batch:
        """Return uint8 (N, 3, *crop), channels-last, and the classes (N)."""
        classes = torch.tensor([example.target for example in examples])
        return Batch((self._pictures.together(examples),), _Truth(classes), len(examples))

    def on_device(self, batch: Batch, draw: Random | None) -> Batch:
        """Return normalised float32 pictures; every batch of training is mixed as the job has it."""
        pixels: Tensor = batch.inputs[0]
        floats, truth = self._pictures.normalized(pixels), batch.truth
        truth = replace(truth, classes=truth.classes.to(pixels.device))
        if draw is None:
            return Batch((floats,), truth, batch.size)
        kind, part, (top, left, height, width) = augment.mixing(self._spec.augment, self._how.crop, draw)
        if kind == "none":
            return Batch((floats,), truth, batch.size)
        others = floats.roll(1, 0)
        if kind == "mixup":
            floats = floats.mul(part).add_(others, alpha=1 - part)
        else:
            area = (..., slice(top, top + height), slice(left, left + width))
            floats[area] = others[area]
        return Batch((floats,), replace(truth, others=truth.classes.roll(1, 0), part=part), batch.size)

    def loss(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy, smoothed and weighted as the job has it."""
        logits, truth = _logits(outputs).float(), batch.truth
        weights = None if self._weights is None else self._weights.to(logits.device)

        def entropy(classes: Tensor) -> Tensor:
            each = functional.cross_entropy(
                logits, classes, weights, reduction="none", label_smoothing=self._spec.label_smoothing
            )
            return each.mean()

        if truth.others is None:
            return {"loss": entropy(truth.classes)}
        return {"loss": truth.part * entropy(truth.classes) + (1 - truth.part) * entropy(truth.others)}

    def parameters(self) -> Sequence[Parameters]:
        """Return the tuned blocks in groups, and the head."""
        decay = 1.0 if self._choice.seed is not None else self._spec.layer_decay
        return tuned_blocks.parameters(self._parts, decay, self._spec.backbone_rate)

    def judge(self, outputs: Any, batch: Batch) -> list[Any]:
        """Return of each image its class, the predicted one, and the cross-entropy."""
        logits, classes = _logits(outputs).float(), batch.truth.classes
        losses = functional.cross_entropy(logits, classes, reduction="none")
        return list(zip(classes.tolist(), logits.argmax(1).tolist(), losses.tolist(), strict=True))

    def measure(self, values: Sequence[Any]) -> dict[str, float]:
        """Return ``accuracy``, ``macro_accuracy`` (the mean over classes) and ``validation_loss``."""
        total, right = Counter[int](), Counter[int]()
        for true, predicted, _ in values:
            total[true] += 1
            right[true] += true == predicted
        if not values:
            return {"accuracy": 0.0, "macro_accuracy": 0.0, "validation_loss": 0.0}
        return {
            "accuracy": right.total() / total.total(),
            "macro_accuracy": sum(right[one] / total[one] for one in total) / len(total),
            "validation_loss": sum(loss for _, _, loss in values) / len(values),
        }

    def learned(self, state: Mapping[str, Tensor]) -> Learned:
        """Return the network's own state, and what it takes to build it again."""
        return Learned(
            architecture={
                "task": "classify",
                "model": self._choice.model,
                "library": self._network.library,
                "features": self._spec.features or self._choice.features,
            },
            preprocessing=asdict(self._how),
            classes=self._network.classes,
            state={name.removeprefix("network."): tensor for name, tensor in state.items()},
            about={
                "weights": self._network.weights,
                "tuned": [name for name, _ in self._parts.tuned] + [self._parts.head[0]],
                "frozen": [name for name, _ in self._parts.frozen],
            },
        )


def _require_applicable(spec: Train) -> None:
    if others := asked(spec, (*OF_MAPS, *OF_EMBEDDINGS)):
        raise UserError(
            f"{', '.join(others)}: not for classifiers, which learn one class of a whole picture\n"
            "  what to do: leave it out; train.augment.crop and train.class_weights are there"
        )


def _network(choice: Choice, strategy: Strategy, classes: tuple[str, ...], spec: Train) -> Network:
    """Return the network that training begins with."""
    if strategy == "scratch":
        return build_classifier(replace(choice, weights=f"random:{spec.seed}", sha256=None, classes=classes))
    trained = build_classifier(choice)
    if spec.features is not None:
        _require_whole(choice)
        return shortened(trained, spec.features, classes, spec.seed)
    if strategy != "as_is":
        return with_new_head(trained, classes, spec.seed)
    names = named_alike(classes, trained.classes)
    if unknown := [name for name in classes if name not in names]:
        raise UserError(
            f"train.strategy: as_is needs a network that knows all classes; {choice.model} does not know "
            f"{', '.join(unknown[:8])}\n  what to do: take another strategy, or auto"
        )
    return replace(with_rows(trained, [names[name] for name in classes]), classes=classes)


def _require_whole(choice: Choice) -> None:
    if choice.features is not None:
        raise UserError(
            f"train.features: the model's head reads the block {choice.features} already, all after it was "
            "left out\n  what to do: leave train.features out, or give the model that it was made of"
        )


def _class_weights(data: TrainingData) -> Tensor:
    """Return weights whose mean over the training images is 1: by the inverse of the class's images."""
    counts = torch.tensor([float(data.counts.get(name, 0)) for name in data.classes])
    return counts.sum() / (len(counts) * counts.clamp(min=1))


def _logits(outputs: Any) -> Tensor:
    """Return the main logits: some networks have others beside them while they train."""
    logits: Tensor = outputs[0] if isinstance(outputs, tuple | list) else outputs
    return logits
