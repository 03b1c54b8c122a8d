"""Losses over pixels equal torch's, the papers' formulas, and themselves on several workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cnnbatch.config.train import Loss
from cnnbatch.tasks.recipes import segmentation_losses as losses
from cnnbatch.tasks.recipes.recipe import Batch
from cnnbatch.tasks.recipes.segmentation_losses import IGNORED, Pixels

CLASSES = 5
ALONE = Batch((), None, 4)
WEIGHTS = torch.tensor([0.2, 1.0, 3.0, 0.5, 2.0])


def made(seed: int = 0, count: int = 4, size: tuple[int, int] = (6, 9)) -> tuple[Tensor, Tensor]:
    """Return logits and a truth that has no pixel of class 3, and ignored ones."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, CLASSES, *size, generator=generator, dtype=torch.float64)
    truth = torch.randint(-1, CLASSES, (count, *size), generator=generator, dtype=torch.int16)
    truth[truth == 3] = 1
    return logits, truth


def one_hot(truth: Tensor) -> Tensor:
    return functional.one_hot(truth.long().clamp(min=0), CLASSES).permute(0, 3, 1, 2) * (truth >= 0)[:, None]


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_cross_entropy_is_torchs(weights: Tensor | None) -> None:
    logits, truth = made()
    found = losses.cross_entropy(Pixels.of(logits, truth), ALONE, weights)
    expected = functional.cross_entropy(
        logits, truth.long(), None if weights is None else weights.double(), ignore_index=IGNORED
    )
    assert float(found) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("gamma", [0.5, 2.0, 5.0])
def test_focal_loss_is_that_of_lin(gamma: float) -> None:
    logits, truth = made()
    found = losses.cross_entropy(Pixels.of(logits, truth), ALONE, WEIGHTS, gamma)
    total = weight = 0.0
    probabilities = logits.softmax(1)
    for image, row, column in (truth >= 0).nonzero().tolist():
        place = int(truth[image, row, column])
        p, alpha = float(probabilities[image, place, row, column]), float(WEIGHTS[place])
        total -= alpha * (1 - p) ** gamma * float(torch.tensor(p).log())
        weight += alpha
    assert float(found) == pytest.approx(total / weight, rel=1e-5)


def test_dice_is_that_of_maps_of_zero_and_one() -> None:
    logits, truth = made()
    hot = one_hot(truth)
    said = logits.softmax(1) * (truth >= 0)[:, None]
    scores = 2 * (said * hot).sum((0, 2, 3)) / (said.sum((0, 2, 3)) + hot.sum((0, 2, 3)))
    present = [0, 1, 2, 4]
    found = losses.dice(Pixels.of(logits, truth), ALONE)
    assert float(found) == pytest.approx(float(1 - scores[present].mean()), rel=1e-9)


def test_lovasz_softmax_is_the_authors() -> None:
    """Against github.com/bermanmaxim/LovaszSoftmax, pytorch/lovasz_losses.py, as it is there."""

    def lovasz_grad(gt_sorted: Tensor) -> Tensor:
        p = len(gt_sorted)
        gts = gt_sorted.sum()
        intersection = gts - gt_sorted.float().cumsum(0)
        union = gts + (1 - gt_sorted).float().cumsum(0)
        jaccard = 1.0 - intersection / union
        if p > 1:
            jaccard[1:p] = jaccard[1:p] - jaccard[0:-1]
        return jaccard

    def lovasz_softmax_flat(probas: Tensor, labels: Tensor) -> Tensor:
        found = []
        for c in range(probas.size(1)):
            fg = (labels == c).float()
            if fg.sum() == 0:
                continue
            errors = (fg - probas[:, c]).abs()
            errors_sorted, perm = torch.sort(errors, 0, descending=True)
            found.append(torch.dot(errors_sorted, lovasz_grad(fg[perm])))
        return torch.stack(found).mean()

    logits, truth = (value.float() if value.is_floating_point() else value for value in made())
    mine, theirs = (logits.clone().requires_grad_() for _ in range(2))
    found = losses.lovasz_softmax(Pixels.of(mine, truth))
    flat = theirs.softmax(1).permute(0, 2, 3, 1).reshape(-1, CLASSES)
    counted = truth.flatten() != IGNORED
    expected = lovasz_softmax_flat(flat[counted], truth.flatten()[counted])
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    found.backward()  # type: ignore[no-untyped-call]
    expected.backward()  # type: ignore[no-untyped-call]
    assert mine.grad is not None
    assert theirs.grad is not None
    assert torch.allclose(mine.grad, theirs.grad, atol=1e-7)


ALL = Loss(cross_entropy=0.7, dice=0.5, focal=0.3, lovasz=0.2)


def gradient(logits: Tensor, truth: Tensor, how: Loss = ALL, batch: Batch = ALONE) -> tuple[float, Tensor]:
    """Return the sum of all parts, and its gradient."""
    given = logits.clone().requires_grad_()
    total = torch.stack([*losses.parts(given, truth, how, WEIGHTS, batch).values()]).sum()
    total.backward()  # type: ignore[no-untyped-call]
    assert given.grad is not None
    return float(total.detach()), given.grad


def test_ignored_pixels_count_in_no_part() -> None:
    logits, truth = made()
    value, slope = gradient(logits, truth)
    other = torch.where((truth < 0)[:, None], torch.randn_like(logits) * 9, logits)
    assert gradient(other, truth)[0] == pytest.approx(value, rel=1e-12)
    assert not slope.permute(0, 2, 3, 1)[truth < 0].any()
    assert slope.permute(0, 2, 3, 1)[truth >= 0].any(1).all()


def test_maps_of_which_nothing_counts_teach_nothing() -> None:
    logits, truth = made()
    value, slope = gradient(logits, torch.full_like(truth, IGNORED))
    assert value == 0
    assert not slope.any()


def test_gradients_are_those_of_differences() -> None:
    logits, truth = made(count=1, size=(2, 3))
    smooth = Loss(cross_entropy=0.7, dice=0.5, focal=0.3)

    def total(given: Tensor) -> Tensor:
        return torch.stack([*losses.parts(given, truth, smooth, WEIGHTS.double(), ALONE).values()]).sum()

    assert torch.autograd.gradcheck(total, logits.requires_grad_())


def test_logits_of_a_stride_are_resized_to_the_truth() -> None:
    logits, truth = made()
    small = logits[:, :, ::3, ::3]
    resized = functional.interpolate(small, truth.shape[1:], mode="bilinear", align_corners=False)
    assert gradient(resized, truth)[0] == pytest.approx(gradient(small, truth)[0], rel=1e-12)


def shared(some: Sequence[tuple[Tensor, Tensor]], how: Loss) -> tuple[list[float], Tensor]:
    """Return what workers, each with logits and truth, have together: the values, and all gradients.

    Workers here take turns: each sum over them is collected first, then given to all.
    """
    count = sum(len(logits) for logits, _ in some)
    collected: list[list[Tensor]] = [[] for _ in some]
    for own, (logits, truth) in zip(collected, some, strict=True):

        def note(values: Tensor, own: list[Tensor] = own) -> Tensor:
            own.append(values)
            return values

        share = len(logits) / count
        losses.parts(logits, truth, how, WEIGHTS, Batch((), None, len(logits), share, note))
    totals = [torch.stack(values).sum(0) for values in zip(*collected, strict=True)]
    values, slopes = [], []
    for logits, truth in some:
        waiting, share = iter(totals), len(logits) / count
        batch = Batch((), None, len(logits), share, lambda _, waiting=waiting: next(waiting))  # type: ignore[misc]
        value, slope = gradient(logits, truth, how, batch)
        values.append(value)
        slopes.append(slope * share)
    return values, torch.cat(slopes)


def test_workers_have_the_loss_and_the_gradient_of_one() -> None:
    how = Loss(cross_entropy=0.7, dice=0.5, focal=0.3)
    logits, truth = made()
    value, slope = gradient(logits, truth, how)
    values, slopes = shared([(logits[:1], truth[:1]), (logits[1:], truth[1:])], how)
    assert values == pytest.approx([value, value], rel=1e-6)
    assert torch.allclose(slopes, slope, rtol=1e-6, atol=1e-12)


def test_a_picture_of_no_weight_changes_no_sum() -> None:
    logits, truth = made()
    sent: list[Tensor] = []

    def total(values: Tensor) -> Tensor:
        sent.append(values)
        return values + 1

    _, slope = gradient(logits, truth, Loss(dice=1.0), Batch((), None, 4, 0.0, total))
    assert not any(values.any() for values in sent)
    assert not slope.any()


def test_weights_follow_from_the_shares_of_pixels() -> None:
    counts = torch.tensor([900.0, 90.0, 10.0])
    found = losses.balanced(counts, 0.5)
    assert found is not None
    assert found[2] / found[0] == pytest.approx(90**0.5)
    assert float((found * counts / 1000).sum()) == pytest.approx(1)
    assert losses.balanced(counts, 0.0) is None
    lacking = losses.balanced(torch.tensor([100.0, 0.0]), 1.0)
    assert lacking is not None
    assert bool(lacking.isfinite().all())


@pytest.mark.parametrize("names", [("cross_entropy",), ("dice", "lovasz"), ("focal",)])
def test_only_parts_with_a_weight_are_computed(names: Any) -> None:
    how = Loss.model_validate({"cross_entropy": 0.0, **dict.fromkeys(names, 1.0)})
    assert tuple(losses.parts(*made(), how, None, ALONE)) == names


def test_a_loss_without_any_part_is_refused() -> None:
    with pytest.raises(ValueError, match="a weight above 0"):
        Loss(cross_entropy=0.0)
