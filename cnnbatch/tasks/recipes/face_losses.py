"""Losses that make embeddings of one person alike and of two people different.

Some compare the embeddings of a step with each other (contrastive, Siamese, triplet), others with a vector
for each person of the training (softmax, centre, A-softmax, CosFace, ArcFace).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from cnnbatch.config.train import EmbeddingLoss

Mining = Literal["all", "semi_hard", "batch_hard"]

MARGINS: Mapping[str, float] = {
    "contrastive": 1.0,
    "triplet": 0.2,
    "a_softmax": 4.0,
    "cosface": 0.35,
    "arcface": 0.5,
}
"""Where a job says none: of embeddings of length 1, those of the papers."""
SCALES: Mapping[str, float] = {
    "softmax": 16.0,
    "centre": 16.0,
    "a_softmax": 16.0,
    "cosface": 64.0,
    "arcface": 64.0,
}
"""The same; CosFace and ArcFace have those of their papers."""

_TINY = 1e-12


def squared_distances(embeddings: Tensor) -> Tensor:
    """Return the squared Euclidean distances of embeddings (N, D) from each other, (N, N)."""
    return (embeddings[:, None] - embeddings[None]).square().sum(-1)


def _pairs(people: Tensor) -> tuple[Tensor, Tensor]:
    """Return which pairs (i < j) are of one person and which of two, bool (N, N) each."""
    same = people[:, None] == people[None]
    upper = torch.ones_like(same).triu(1)
    return same & upper, ~same & upper


def _mean_of_kinds(of_same: Tensor, of_others: Tensor) -> Tensor:
    """Return the mean over both kinds of pairs, each of which counts one half; of one where the other lacks.

    There are many more pairs of strangers in a step than of one person.
    """
    means = [values.mean() for values in (of_same, of_others) if len(values)]
    return torch.stack(means).mean()


def contrastive(embeddings: Tensor, people: Tensor, margin: float) -> Tensor:
    """Return the contrastive loss over all pairs of ``embeddings`` (N, D); ``people`` (N,) are numbers.

    Hadsell, Chopra, LeCun 2006, "Dimensionality reduction by learning an invariant mapping", equation 4: half
    the squared distance of one person's, and half of max(0, margin - distance)^2 of two people's; pairs of
    both kinds count one half.
    """
    squares = squared_distances(embeddings)
    same, others = _pairs(people)
    apart = margin - squares[others].clamp(min=_TINY).sqrt()
    return _mean_of_kinds(squares[same] / 2, apart.clamp(min=0).square() / 2)


class SiameseVerification(nn.Module):
    """Says whether two embeddings are of one person: sigmoid(sum_i w_i (f(a)_i - f(b)_i)^2 + b).

    A fully connected layer on the squared differences, learned with the encoder that both share. It begins at
    the bare sum of squares, negative, since the nearer the more alike, with the bias ``begins``; without a
    bias it could say no more than one half of any pair.
    """

    def __init__(self, dimensions: int, begins: float = 1.0) -> None:
        super().__init__()
        self.layer = nn.Linear(dimensions, 1)
        with torch.no_grad():
            self.layer.weight.fill_(-1.0)
            self.layer.bias.fill_(begins)

    def logits(self, one: Tensor, other: Tensor) -> Tensor:
        """Return the logits (N,) that pairs of embeddings (N, D) are of one person."""
        logits: Tensor = self.layer((one - other).square())[:, 0]
        return logits

    def forward(self, embeddings: Tensor, people: Tensor) -> Tensor:
        """Return the binary cross-entropy over all pairs of a step; pairs of both kinds count one half."""
        same, others = _pairs(people)
        found = []
        for kind, target in ((same, 1.0), (others, 0.0)):
            rows, columns = kind.nonzero(as_tuple=True)
            logits = self.logits(embeddings[rows], embeddings[columns])
            target_of = torch.full_like(logits, target)
            found.append(functional.binary_cross_entropy_with_logits(logits, target_of, reduction="none"))
        return _mean_of_kinds(*found)


def triplet(
    embeddings: Tensor, people: Tensor, margin: float, mining: Mining = "semi_hard", hinge: bool = True
) -> Tensor:
    """Return the mean of max(0, |a - p|^2 - |a - n|^2 + margin) over mined triplets.

    Schroff, Kalenichenko, Philbin 2015, "FaceNet", equation 3. ``all``: every triplet of the step.
    ``semi_hard`` (section 3.2): for each pair of one person the nearest stranger that is farther from the
    anchor than the positive; where all are nearer, the farthest. ``batch_hard`` (Hermans, Beyer, Leibe 2017,
    "In defense of the triplet loss", equation 5): for each anchor its farthest positive and its nearest
    stranger. Without ``hinge`` the maximum is left out, and the loss has no lower bound unless embeddings are
    normalised.
    """
    squares = squared_distances(embeddings)
    anchors, positives, negatives = mined(squares.detach(), people, mining)
    differences = squares[anchors, positives] - squares[anchors, negatives] + margin
    if not len(differences):
        return embeddings.sum() * 0
    return (differences.clamp(min=0) if hinge else differences).mean()


class Triplets(NamedTuple):
    """The places (T,) of anchors, of their positives and of their negatives."""

    anchors: Tensor
    positives: Tensor
    negatives: Tensor


def mined(squares: Tensor, people: Tensor, mining: Mining) -> Triplets:
    """Return the triplets that count, see `triplet`.

    ``squares`` are the squared distances of all embeddings (N, N), ``people`` (N,) are numbers.
    """
    same = people[:, None] == people[None]
    positive = same & ~torch.eye(len(people), dtype=torch.bool, device=people.device)
    if mining == "batch_hard":
        anchors = (positive.any(1) & (~same).any(1)).nonzero()[:, 0]
        farthest = squares[anchors].masked_fill(~positive[anchors], -math.inf)
        nearest = squares[anchors].masked_fill(same[anchors], math.inf)
        return Triplets(anchors, farthest.argmax(1), nearest.argmin(1))
    anchors, others = (positive & (~same).any(1, keepdim=True)).nonzero(as_tuple=True)  # [T] * 2
    strange, to_all = ~same[anchors], squares[anchors]  # [T, N] * 2
    if mining == "all":
        rows, negatives = strange.nonzero(as_tuple=True)
        return Triplets(anchors[rows], others[rows], negatives)
    beyond = strange & (to_all > squares[anchors, others][:, None])
    farthest, nearest = to_all.masked_fill(~strange, -math.inf), to_all.masked_fill(~beyond, math.inf)
    negatives = torch.where(beyond.any(1), nearest.argmin(1), farthest.argmax(1))
    return Triplets(anchors, others, negatives)


class Softmax(nn.Module):
    """Cross-entropy over the people of the training, by a fully connected layer behind the embedding.

    As DeepFace is trained: Taigman et al. 2014, section 3.2.
    """

    def __init__(self, dimensions: int, people: int) -> None:
        super().__init__()
        self.layer = nn.Linear(dimensions, people)

    def forward(self, embeddings: Tensor, people: Tensor) -> Tensor:
        """Return the loss of ``embeddings`` (N, D), whose ``people`` (N,) are numbers."""
        return functional.cross_entropy(self.layer(embeddings), people)


class CentreLoss(nn.Module):
    """Softmax, and the distance of embeddings to the centre of their person.

    Wen et al. 2016, "A discriminative feature learning approach for deep face recognition", equation 5;
    centres move by equations 3 and 4, at the rate ``step``, with each training step.
    """

    centres: Tensor

    def __init__(self, dimensions: int, people: int, weight: float, step: float = 0.5) -> None:
        super().__init__()
        self.softmax = Softmax(dimensions, people)
        self.register_buffer("centres", torch.zeros(people, dimensions))
        self._weight, self._step = weight, step

    def forward(self, embeddings: Tensor, people: Tensor) -> Tensor:
        """Return the loss of ``embeddings`` (N, D), whose ``people`` (N,) are numbers."""
        differences = embeddings - self.centres[people]
        loss: Tensor = self.softmax(embeddings, people)
        if self.training:
            self._move(differences.detach(), people)
        return loss + self._weight / 2 * differences.square().sum(1).mean()

    def _move(self, differences: Tensor, people: Tensor) -> None:
        counts = torch.zeros(len(self.centres), device=people.device)
        counts.index_add_(0, people, torch.ones(len(people), device=people.device))
        sums = torch.zeros_like(self.centres).index_add_(0, people, differences.to(self.centres.dtype))
        self.centres.add_(self._step * sums / (1 + counts)[:, None])


class _Angular(nn.Module):
    """Cross-entropy over cosines to a vector for each person, that of the right person made less."""

    def __init__(self, dimensions: int, people: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(people, dimensions))
        nn.init.xavier_uniform_(self.weight)

    def cosines(self, embeddings: Tensor) -> Tensor:
        """Return the cosines (N, people) of ``embeddings`` (N, D) with the people's vectors."""
        return functional.linear(functional.normalize(embeddings), functional.normalize(self.weight))

    def forward(self, embeddings: Tensor, people: Tensor) -> Tensor:
        """Return the loss of ``embeddings`` (N, D), whose ``people`` (N,) are numbers."""
        cosines = self.cosines(embeddings)
        right = functional.one_hot(people, len(self.weight)).bool()
        logits = self.scale(embeddings) * torch.where(right, self.with_margin(cosines), cosines)
        return functional.cross_entropy(logits, people)

    def with_margin(self, cosines: Tensor) -> Tensor:
        """Return what stands in the place of the right person's cosine."""
        raise NotImplementedError

    def scale(self, embeddings: Tensor) -> Tensor | float:
        """Return what cosines are multiplied by."""
        raise NotImplementedError


class ASoftmax(_Angular):
    """SphereFace: the angle to the right person is multiplied by ``margin``.

    Liu et al. 2017, "SphereFace: deep hypersphere embedding for face recognition", equation 7: embeddings
    keep their length, psi(a) = (-1)^k cos(m a) - 2k on [k pi / m, (k + 1) pi / m]. ``easing`` is their
    lambda, with which the plain cosine is mixed in: (lambda cos a + psi(a)) / (1 + lambda).
    """

    def __init__(self, dimensions: int, people: int, margin: int, easing: float = 5.0) -> None:
        super().__init__(dimensions, people)
        self._margin, self._easing = margin, easing

    def with_margin(self, cosines: Tensor) -> Tensor:
        """Return the mixture of the cosine and psi."""
        angles = cosines.clamp(-1 + 1e-6, 1 - 1e-6).acos()
        k = (self._margin * angles.detach() / math.pi).floor()
        psi = (1 - 2 * (k % 2)) * (self._margin * angles).cos() - 2 * k
        return (self._easing * cosines + psi) / (1 + self._easing)

    def scale(self, embeddings: Tensor) -> Tensor:
        """Return the lengths of the embeddings."""
        lengths: Tensor = embeddings.norm(dim=1, keepdim=True)
        return lengths


class CosFace(_Angular):
    """CosFace: ``margin`` is taken from the right person's cosine.

    Wang et al. 2018, "CosFace: large margin cosine loss for deep face recognition", equation 4.
    """

    def __init__(self, dimensions: int, people: int, margin: float, scale: float) -> None:
        super().__init__(dimensions, people)
        self._margin, self._scale = margin, scale

    def with_margin(self, cosines: Tensor) -> Tensor:
        """Return the cosine without the margin."""
        return cosines - self._margin

    def scale(self, embeddings: Tensor) -> float:
        """Return the job's scale."""
        return self._scale


class ArcFace(_Angular):
    """ArcFace: ``margin`` is added to the angle to the right person.

    Deng et al. 2019, "ArcFace: additive angular margin loss for deep face recognition", equation 3. Where
    the angle would pass pi, beyond which its cosine would grow again, CosFace's margin m sin(m) stands
    instead, as in the authors' code.
    """

    def __init__(self, dimensions: int, people: int, margin: float, scale: float) -> None:
        super().__init__(dimensions, people)
        self._margin, self._scale = margin, scale

    def with_margin(self, cosines: Tensor) -> Tensor:
        """Return the cosine of the angle with the margin."""
        sines = (1 - cosines.square()).clamp(min=1e-9).sqrt()
        added = cosines * math.cos(self._margin) - sines * math.sin(self._margin)
        lowered = cosines - self._margin * math.sin(self._margin)
        return torch.where(cosines > math.cos(math.pi - self._margin), added, lowered)

    def scale(self, embeddings: Tensor) -> float:
        """Return the job's scale."""
        return self._scale


class _OfPairs(nn.Module):
    """A loss without parameters of its own."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self._loss = loss

    def forward(self, embeddings: Tensor, people: Tensor) -> Tensor:
        """Return the loss of ``embeddings`` (N, D), whose ``people`` (N,) are numbers."""
        return self._loss(embeddings, people)


class _Scaled(nn.Module):
    """A loss over embeddings that are made longer before, since those of length 1 hardly move a softmax."""

    def __init__(self, loss: nn.Module, scale: float) -> None:
        super().__init__()
        self.loss = loss
        self._scale = scale

    def forward(self, embeddings: Tensor, people: Tensor) -> Tensor:
        """Return the loss of ``embeddings`` (N, D), whose ``people`` (N,) are numbers."""
        found: Tensor = self.loss(self._scale * embeddings, people)
        return found


def criterion(how: EmbeddingLoss, dimensions: int, people: int) -> nn.Module:
    """Return the loss that a job names, called with embeddings (N, D) and the people's numbers (N,)."""
    margin, scale = how.margin or MARGINS.get(how.kind, 0.0), how.scale or SCALES.get(how.kind, 1.0)
    match how.kind:
        case "contrastive":
            return _OfPairs(partial(contrastive, margin=margin))
        case "siamese":
            return SiameseVerification(dimensions)
        case "triplet":
            return _OfPairs(partial(triplet, margin=margin, mining=how.mining, hinge=how.hinge))
        case "softmax":
            return _Scaled(Softmax(dimensions, people), scale)
        case "centre":
            return _Scaled(CentreLoss(dimensions, people, how.weight), scale)
        case "a_softmax":
            return _Scaled(ASoftmax(dimensions, people, round(margin)), scale)
        case "cosface":
            return CosFace(dimensions, people, margin, scale)
        case "arcface":
            return ArcFace(dimensions, people, margin, scale)
