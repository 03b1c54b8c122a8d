"""Losses over the pixels of maps: cross-entropy, Dice, focal, Lovász-softmax; ignored pixels count in none.

All but Lovász-softmax are made of a few sums over pixels, which workers add up: so two workers with half of a
step's pictures each have the loss, and the gradient, of one worker with all. Lovász-softmax sorts the pixels,
and is the mean of the workers' own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cnnbatch.config.train import Loss
from cnnbatch.tasks.recipes.recipe import Batch

IGNORED = -1
"""The place of pixels that do not count."""
_TINY = 1e-12


class _OfTruth(torch.autograd.Function):
    """The true classes' log-probabilities, and the sums of all probabilities, from logits.

    By itself, autograd takes several passes over all classes' maps for what one formula gives in two.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, places: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
        """Return (N, 1, H, W) and, over the pixels that count, (C,), for ``logits`` (N, C, H, W)."""
        by_pixel = logits.is_contiguous(memory_format=torch.channels_last)
        ctx.layout = torch.channels_last if by_pixel else torch.contiguous_format
        logs = functional.log_softmax(logits.contiguous(), 1)
        of_truth = logs.gather(1, places)
        probabilities = logs.exp_()
        said = torch.bmm(counted.flatten(2), probabilities.flatten(2).transpose(1, 2))  # [N, 1, C]
        ctx.save_for_backward(probabilities, places, counted)
        return of_truth, said.sum((0, 1))

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None]:
        """Return the slope of the logits: p * (u m - m sum(p u) - d), and d more at the true class.

        d is the slope of a pixel's log-probability, u those of the classes' sums, m whether it counts.
        """
        of_truth, said = slopes
        probabilities, places, counted = ctx.saved_tensors
        common = torch.matmul(said, probabilities.flatten(2)).view_as(of_truth)  # sum(p u)
        found = torch.addcmul(-(common * counted) - of_truth, said.view(1, -1, 1, 1), counted)
        found.mul_(probabilities).scatter_add_(1, places, of_truth)
        return found.contiguous(memory_format=ctx.layout), None, None  # As it is fastest to reduce.


@dataclass(frozen=True, slots=True)
class Pixels:
    """The pixels of a batch's maps.

    ``logits`` float32 (N, C, H, W); ``of_truth`` (N, 1, H, W) are the logarithms of the true classes'
    probabilities, ``said`` (C,) the sums of each class's over the pixels that count; ``places`` int64
    (N, 1, H, W) are the true classes, 0 where pixels do not count, ``counted`` (N, 1, H, W) is 1.0 where they
    do, else 0.0.
    """

    logits: Tensor
    of_truth: Tensor
    said: Tensor
    places: Tensor
    counted: Tensor

    @classmethod
    def of(cls, logits: Tensor, truth: Tensor) -> Pixels:
        """Return the pixels of ``truth``, int (N, H, W) with `IGNORED`, and of ``logits`` (N, C, h, w).

        Logits are resized to the truth's size, as they are for a prediction.
        """
        if logits.shape[2:] != truth.shape[1:]:
            logits = functional.interpolate(logits, truth.shape[1:], mode="bilinear", align_corners=False)
        places, counted = truth[:, None].long().clamp(min=0), (truth >= 0)[:, None].to(logits.dtype)
        of_truth, said = _OfTruth.apply(logits, places, counted)
        return cls(logits, of_truth, said, places, counted)

    def sums(self, values: Tensor) -> Tensor:
        """Return the sums of ``values`` (N, 1, H, W) over the pixels of each true class that count, (C,)."""
        found = values.new_zeros(self.logits.shape[:2])  # An image each: float32 adds up no more exactly.
        flat = (values * self.counted).flatten(1)
        return found.scatter_add(1, self.places.flatten(1), flat).sum(0)


def parts(
    logits: Tensor, truth: Tensor, how: Loss, weights: Tensor | None, batch: Batch
) -> dict[str, Tensor]:
    """Return the parts of the loss by their names, each times its weight in ``how``.

    ``logits`` are float32 (N, C, h, w), ``truth`` int (N, H, W) with `IGNORED`; ``weights`` (C,) are those of
    the classes in cross-entropy and focal loss.
    """
    pixels, found = Pixels.of(logits, truth), dict[str, Tensor]()
    if how.cross_entropy:
        found["cross_entropy"] = how.cross_entropy * cross_entropy(pixels, batch, weights)
    if how.dice:
        found["dice"] = how.dice * dice(pixels, batch)
    if how.focal:
        found["focal"] = how.focal * cross_entropy(pixels, batch, weights, how.focal_gamma)
    if how.lovasz:
        found["lovasz"] = how.lovasz * lovasz_softmax(pixels)
    return found


def balanced(pixels: Tensor, power: float) -> Tensor | None:
    """Return weights of classes that have so many ``pixels`` (C,): their shares to the ``-power``.

    Their mean over pixels is 1. None for the power 0. A class without pixels weighs as one with one.
    """
    if not power:
        return None
    shares = pixels.double().clamp(min=1) / pixels.sum().clamp(min=1)
    weights = shares**-power
    return (weights / (shares * weights).sum()).float()


def cross_entropy(pixels: Pixels, batch: Batch, weights: Tensor | None, gamma: float = 0.0) -> Tensor:
    """Return the mean of -(1 - p)^gamma log p over pixels, p being the true class's probability.

    ``weights`` (C,) weigh the pixels by their class in this mean, as in torch's ``cross_entropy``. With a
    ``gamma`` it is the focal loss of Lin et al. 2017, "Focal loss for dense object detection", equation 5,
    whose alpha the weights are.
    """
    counted, logs = pixels.counted, pixels.of_truth
    if weights is not None:
        counted = counted * weights.to(logs)[pixels.places]
    wrong = -logs
    if gamma:
        wrong = wrong * (-torch.expm1(logs)).clamp(min=_TINY) ** gamma
    total, weight = over_workers(torch.stack([(wrong * counted).sum(), counted.sum()]), batch)
    mean: Tensor = total / weight.clamp(min=_TINY)
    return mean


def dice(pixels: Pixels, batch: Batch) -> Tensor:
    """Return the mean of 1 - Dice over the classes that the step's maps have.

    Milletari et al. 2016, "V-Net", section 3, over a class's pixels of all pictures together, without the
    squares in its denominator. By gathering the true class's probability rather than by maps of 0 and 1 for
    each class, which take a sixth of a step.
    """
    right, true = pixels.sums(pixels.of_truth.exp()), pixels.sums(pixels.counted)
    right, true, said = over_workers(torch.stack([right, true, pixels.said]), batch)
    present = (true > 0).to(true.dtype)
    wrong = 1 - 2 * right / (true + said).clamp(min=_TINY)
    mean: Tensor = (wrong * present).sum() / present.sum().clamp(min=1)
    return mean


def lovasz_softmax(pixels: Pixels) -> Tensor:
    """Return the Lovász-softmax loss of the classes that the batch's maps have.

    Berman et al. 2018, "The Lovász-softmax loss", section 3 and algorithm 1, over all pictures together.
    """
    counted = pixels.counted.flatten() > 0
    places, probabilities = pixels.places.flatten()[counted], pixels.logits.softmax(1)
    found = [
        _lovasz(probabilities[:, place].flatten()[counted], places == place)
        for place in torch.unique(places).tolist()
    ]
    return torch.stack(found).mean() if found else pixels.logits.sum() * 0


def _lovasz(probabilities: Tensor, is_class: Tensor) -> Tensor:
    """Return the Lovász extension of a class's Jaccard loss, of pixels (P,)."""
    true = is_class.to(probabilities.dtype)
    errors, order = (true - probabilities).abs().sort(descending=True)
    sorted_true = true[order]
    union = true.sum() + (1 - sorted_true).cumsum(0)
    jaccard = 1 - (true.sum() - sorted_true.cumsum(0)) / union
    steps = torch.diff(jaccard, prepend=jaccard.new_zeros(1))
    return (errors * steps.detach()).sum()


def over_workers(sums: Tensor, batch: Batch) -> Tensor:
    """Return ``sums`` over all workers of a step, with gradients of this worker's own.

    The gradient of each is weighted by its share of the images later, see `training.loop`; so it is divided
    by that here.
    """
    share = torch.as_tensor(batch.share, dtype=sums.dtype, device=sums.device)
    own = torch.where(share > 0, sums, 0)
    total = batch.total(own.detach().clone())
    return total + (own - own.detach()) / share.clamp(min=_TINY)
