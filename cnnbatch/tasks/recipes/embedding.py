"""How a network learns embeddings: pictures of one class close to each other, of two classes far apart.

It is judged by classes that it did not learn from: by all pairs of the validation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cnnbatch.config.train import Augment, Strategy, Train
from cnnbatch.errors import UserError
from cnnbatch.metrics import embeddings as metric
from cnnbatch.metrics import verification
from cnnbatch.models.depth import Shortened
from cnnbatch.models.embedding_head import EmbeddingHead
from cnnbatch.models.embedding_network import EmbeddingNetwork
from cnnbatch.models.trained_files import Learned
from cnnbatch.tasks.recipes import tuned_blocks
from cnnbatch.tasks.recipes.applicable import OF_MAPS, asked
from cnnbatch.tasks.recipes.embedding_inside import few_of_each, hardest_pairs, mined_triplets
from cnnbatch.tasks.recipes.face_losses import MARGINS, criterion
from cnnbatch.tasks.recipes.inside import Strip
from cnnbatch.tasks.recipes.kept_features import KeptFeatures
from cnnbatch.tasks.recipes.pictures import WholePictures
from cnnbatch.tasks.recipes.recipe import Batch, Example, Parameters, TrainingData, of_all_workers

if TYPE_CHECKING:
    from cnnbatch.types import Image

_NOT_FOR_PAIRS = ("augment.mixup", "augment.cutmix", "class_weights", "label_smoothing", "features", *OF_MAPS)
_UNKNOWN = 1 << 32  # Numbers of classes that do not train begin here.
_STILL = Augment(flip=False, crop=1.0)  # Pictures come as they are.
_NONE = {"verification_accuracy": 0.0, "EER": 1.0, "AUC": 0.0}  # Where there is no pair of either kind.
_TOGETHER = 32  # Pictures that a lesson has the network see at once.
_FARTHEST = 4.0  # The largest squared distance of two vectors of length 1.


@dataclass(frozen=True)
class _Truth:
    """Numbers of classes (N,), their names, and the keys of their pictures."""

    classes: Tensor
    names: Sequence[str]
    keys: Sequence[str]


class EmbeddingRecipe:
    """An embedding network and its loss; see `tasks.recipes.recipe.Recipe`."""

    metric = "verification_accuracy"
    shown = 200

    def __init__(self, network: EmbeddingNetwork, model: str, spec: Train, data: TrainingData) -> None:
        _require_applicable(spec)
        strategy: Strategy = "all" if spec.strategy == "auto" else spec.strategy
        self._network, self._model, self._spec = network, model, spec
        self._classes, self.notes = data.classes, network.notes
        self._numbers = {name: number for number, name in enumerate(data.classes)}
        self._pictures = WholePictures(network.preprocessing, spec.augment)
        self._parts = tuned_blocks.split(network.module, strategy)
        tuned_blocks.freeze(network.module, self._parts)
        self.pictures_per_class = spec.embedding.pictures
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.seed)
            loss = criterion(spec.embedding, network.dimensions, len(data.classes))
        self._criterion = loss
        body: Shortened = network.module  # type: ignore[assignment]
        is_frozen = not self._parts.tuned and spec.augment == _STILL
        self._features = KeptFeatures(body) if is_frozen else None
        self.module: nn.Module = Embedding(tuned_blocks.Tuned(network.module, self._parts), loss, is_frozen)

    def decode_size(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """Return the size that prediction resizes to."""
        return self._pictures.how.decode_size(size)

    def example(self, image: Image, draw: Random | None) -> Example:
        """Return uint8 (3, *crop) and the number of the class, of one that does not train another one."""
        label = (image.truth or {}).get("label")
        if label is None:
            raise ValueError("it has no class")
        number = self._numbers.get(label)
        target = _beyond(label) if number is None else number, label, image.ref.key
        return self._pictures.example(image, target, draw)

    def collate(self, examples: Sequence[Example], training: bool) -> Batch:
        """Return uint8 (N, 3, *crop), channels-last, and the classes (N)."""
        pixels = self._pictures.together(examples)
        numbers, names, keys = zip(*(example.target for example in examples), strict=True)
        return Batch((pixels,), _Truth(torch.tensor(numbers), names, keys), len(examples))

    def on_device(self, batch: Batch, draw: Random | None) -> Batch:
        """Return normalised float32 pictures, or their features where all that gives them is frozen."""
        pixels, truth = batch.inputs[0], batch.truth
        truth = replace(truth, classes=truth.classes.to(pixels.device))
        if self._features is None:
            return Batch((self._pictures.normalized(pixels),), truth, batch.size)
        features = self._features.of(truth.keys, pixels, self._pictures.normalized)
        return Batch((features,), truth, batch.size)

    def fit(self, batches: Iterable[Batch]) -> None:
        """Have the head take from the training pictures' features what it needs: their mean, at least."""
        network: Shortened = self._network.module  # type: ignore[assignment]
        head: EmbeddingHead = network.head  # type: ignore[assignment]
        network.eval()

        def features() -> Iterator[tuple[Tensor, Tensor]]:
            for batch in batches:
                inputs = batch.inputs[0]
                found = inputs if self._features is not None else network.features(inputs)
                yield found, batch.truth.classes

        with torch.no_grad():
            head.fit(features())

    def loss(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """Return the loss over the pictures of all workers, whose pairs count."""
        embeddings = self._normalised(outputs.float())
        classes = batch.together(batch.truth.classes).values
        return {"loss": self._criterion(of_all_workers(embeddings, batch), classes)}

    def _normalised(self, embeddings: Tensor) -> Tensor:
        is_unit = self._network.form.normalisation == "l2"
        return functional.normalize(embeddings, dim=1) if is_unit else embeddings

    def parameters(self) -> Sequence[Parameters]:
        """Return the tuned blocks in groups, and the head with what the loss learns."""
        groups = tuned_blocks.parameters(self._parts, self._spec.layer_decay, self._spec.backbone_rate)
        of_loss = list(self._criterion.parameters())
        return [*groups, Parameters("loss", of_loss)]

    def judge(self, outputs: Any, batch: Batch) -> list[Any]:
        """Return of each image its class's name, its key and its embedding."""
        vectors = self._normalised(outputs.float()).cpu().numpy()
        return list(zip(batch.truth.names, batch.truth.keys, vectors, strict=True))

    def measure(self, values: Sequence[Any]) -> dict[str, float]:
        """Return ``verification_accuracy``, which is 1 - ``EER``, and ``AUC`` over all pairs.

        Of many images some count, see `metrics.embeddings`. Where vectors may have any length, their mean
        ``vector_length`` is said, too.
        """
        if not values:
            return dict(_NONE)
        names, keys, vectors = zip(*values, strict=True)
        stacked = np.stack(vectors)
        found, _, _ = metric.pairs(metric.partial(stacked, names, keys, self._network.form.metric))
        judged = verification.result(found, fars=(), replicates=1).metrics
        rate, area = (judged[name].value for name in ("EER", "AUC"))
        numbers = dict(_NONE)
        if rate is not None and area is not None:
            numbers = {"verification_accuracy": 1 - rate, "EER": rate, "AUC": area}
        if self._network.form.normalisation == "none":
            numbers["vector_length"] = float(np.linalg.norm(stacked, axis=1).mean())
        return numbers

    def vectors(self, values: Sequence[Any]) -> tuple[list[str], Tensor]:
        """Return the classes and the vectors (N, D) of a few pictures of a few classes of a validation."""
        names = [name for name, _, _ in values]
        rows = few_of_each(names)
        return [names[row] for row in rows], torch.stack([torch.from_numpy(values[row][2]) for row in rows])

    def inside(self, examples: Sequence[Example]) -> list[Strip]:
        """Return the hardest pairs of the examples."""
        return list(hardest_pairs(*self._seen(examples)))

    def inside_step(self, examples: Sequence[Example]) -> list[Strip]:
        """Return the triplets that the loss mines among the examples of a step; nothing of other losses."""
        how = self._spec.embedding
        return list(mined_triplets(*self._seen(examples), how.mining)) if how.kind == "triplet" else []

    def _seen(self, examples: Sequence[Example]) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return the pictures, their embeddings (N, D), and the numbers of their classes (N,)."""
        starts = range(0, len(examples), _TOGETHER)
        vectors = torch.cat([self._embedded(examples[start : start + _TOGETHER]) for start in starts])
        return [one.pixels for one in examples], vectors, torch.tensor([one.target[0] for one in examples])

    def _embedded(self, examples: Sequence[Example]) -> Tensor:
        batch = self.on_device(self.collate(examples, training=False), None)
        with torch.inference_mode():
            return self._normalised(self.module(*batch.inputs).float())

    def learned(self, state: Mapping[str, Tensor]) -> Learned:
        """Return the network's own state, without the loss's, and what it takes to build it again."""
        prefix = "tuned.network."
        form = asdict(self._network.form)
        return Learned(
            architecture={
                "task": "embed",
                "model": self._model,
                "library": self._network.library,
                "features": form.pop("features"),
            },
            preprocessing={**asdict(self._network.preprocessing), **form},
            classes=self._classes,
            state={
                name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)
            },
            about={
                "weights": self._network.weights,
                "tuned": [name for name, _ in self._parts.tuned] + [self._parts.head[0]],
                "frozen": [name for name, _ in self._parts.frozen],
                **self._least_loss(),
            },
        )

    def _least_loss(self) -> dict[str, float | None]:
        """Return the lower bound of a triplet loss without its maximum, None for none; nothing of others."""
        how = self._spec.embedding
        if how.kind != "triplet" or how.hinge:
            return {}
        margin = how.margin or MARGINS[how.kind]
        is_unit = self._network.form.normalisation == "l2"
        return {"least_loss": margin - _FARTHEST if is_unit else None}


class Embedding(nn.Module):
    """A network with the loss that it is trained by, whose own parameters are learned beside it."""

    def __init__(self, tuned: tuned_blocks.Tuned, criterion: nn.Module, is_frozen: bool) -> None:
        super().__init__()
        self.tuned = tuned
        self.criterion = criterion
        network: Shortened = tuned.network  # type: ignore[assignment]
        self._head = [network.head] if is_frozen else []  # In a list, since it is in `tuned` already.

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the embeddings (N, D) of pictures, or of features where what gives them is frozen."""
        found: Tensor = self._head[0](inputs) if self._head else self.tuned(inputs)
        return found


def _beyond(label: str) -> int:
    """Return a number for a class that does not train, the same everywhere."""
    return _UNKNOWN + int.from_bytes(hashlib.blake2b(label.encode(), digest_size=6).digest())


def _require_applicable(spec: Train) -> None:
    if others := asked(spec, _NOT_FOR_PAIRS):
        raise UserError(
            f"{', '.join(others)}: not for embeddings, which are learned from pairs of whole pictures\n"
            "  what to do: leave it out; task.features says which block is read, and train.embedding has the "
            "losses"
        )
