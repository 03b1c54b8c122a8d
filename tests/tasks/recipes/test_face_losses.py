"""Each loss of embeddings against a direct computation of its equation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from cnnbatch.config.train import EmbeddingLoss
from cnnbatch.tasks.recipes import face_losses as losses
from cnnbatch.tasks.recipes.recipe import Batch, Rows, of_all_workers

PEOPLE = torch.tensor([0, 0, 1, 1, 1, 2, 3])


def embeddings(seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(7, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def distance(one: Tensor, other: Tensor) -> float:
    return math.dist(one.tolist(), other.tolist())


def pairs(same: bool) -> list[tuple[int, int]]:
    every = itertools.combinations(range(len(PEOPLE)), 2)
    return [(one, other) for one, other in every if bool(PEOPLE[one] == PEOPLE[other]) == same]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_contrastive_is_hadsells() -> None:
    found = embeddings()
    near = mean([distance(found[one], found[other]) ** 2 / 2 for one, other in pairs(True)])
    far = mean([max(0.0, 4 - distance(found[one], found[other])) ** 2 / 2 for one, other in pairs(False)])
    assert losses.contrastive(found, PEOPLE, 4.0).item() == pytest.approx((near + far) / 2)


def test_contrastive_has_a_gradient_where_two_are_equal() -> None:
    found = torch.zeros(3, 2, requires_grad=True)
    losses.contrastive(found, torch.tensor([0, 0, 1]), 1.0).backward()  # type: ignore[no-untyped-call]
    assert found.grad is not None
    assert bool(found.grad.isfinite().all())


def test_siamese_verification_is_a_logistic_regression_on_squared_differences() -> None:
    found, head = embeddings().float(), losses.SiameseVerification(5)
    with torch.no_grad():
        head.layer.weight.copy_(torch.tensor([[-0.5, 0.3, -1.0, 0.2, -0.1]]))
    weights, bias = head.layer.weight[0].tolist(), head.layer.bias.item()

    def says(one: int, other: int) -> float:
        squares = [(a - b) ** 2 for a, b in zip(found[one].tolist(), found[other].tolist(), strict=True)]
        return 1 / (1 + math.exp(-sum(w * s for w, s in zip(weights, squares, strict=True)) - bias))

    near = mean([-math.log(says(*pair)) for pair in pairs(True)])
    far = mean([-math.log(1 - says(*pair)) for pair in pairs(False)])
    assert head(found, PEOPLE).item() == pytest.approx((near + far) / 2, rel=1e-5)


def test_the_bare_sum_of_squares_saturates() -> None:
    """The sigmoid of the sum of squares alone says 1 of every far pair, and never less than one half."""
    near, far = torch.zeros(1, 5), torch.full((1, 5), 9.0)
    bare = (near - far).square().sum(1).sigmoid()
    assert bare.item() == 1.0
    assert (near - near).square().sum(1).sigmoid().item() == 0.5
    learned = losses.SiameseVerification(5)
    assert learned.logits(near, near).sigmoid().item() > 0.5 > learned.logits(near, far).sigmoid().item()


def test_a_siamese_head_tells_people_apart_once_it_has_learned() -> None:
    head = losses.SiameseVerification(2)
    points = torch.tensor([[0.0, 0.0], [0.1, 3.0], [2.0, 0.0], [2.1, -3.0]])  # Only the first number tells.
    people = torch.tensor([0, 0, 1, 1])
    optimizer = torch.optim.Adam(head.parameters(), 0.1)
    for _ in range(200):
        optimizer.zero_grad()
        head(points, people).backward()
        optimizer.step()
    says = [
        head.logits(points[None, one], points[None, other]).item() > 0
        for one, other in ((0, 1), (2, 3), (0, 2))
    ]
    assert says == [True, True, False]


def triplets(found: Tensor, mining: str) -> list[tuple[float, float]]:
    """Return the squared distances of the triplets by hand."""
    chosen = []
    for anchor in range(len(PEOPLE)):
        positives = [one for one in range(7) if one != anchor and PEOPLE[one] == PEOPLE[anchor]]
        strange = [
            distance(found[anchor], found[one]) ** 2 for one in range(7) if PEOPLE[one] != PEOPLE[anchor]
        ]
        squares = [distance(found[anchor], found[one]) ** 2 for one in positives]
        if mining == "batch_hard" and squares:
            chosen.append((max(squares), min(strange)))
        elif mining == "all":
            chosen += [*itertools.product(squares, strange)]
        elif mining == "semi_hard":
            beyond = [[one for one in strange if one > square] for square in squares]
            chosen += [
                (square, min(some) if some else max(strange))
                for square, some in zip(squares, beyond, strict=True)
            ]
    return chosen


@pytest.mark.parametrize("mining", ["all", "semi_hard", "batch_hard"])
@pytest.mark.parametrize("seed", range(4))
def test_triplets_are_mined_as_the_papers_say(mining: losses.Mining, seed: int) -> None:
    found = embeddings(seed)
    chosen = triplets(found, mining)
    hinged = mean([max(0.0, positive - negative + 0.5) for positive, negative in chosen])
    bare = mean([positive - negative + 0.5 for positive, negative in chosen])
    assert losses.triplet(found, PEOPLE, 0.5, mining).item() == pytest.approx(hinged)
    assert losses.triplet(found, PEOPLE, 0.5, mining, hinge=False).item() == pytest.approx(bare)
    squares = losses.squared_distances(found)
    anchors, positives, negatives = losses.mined(squares, PEOPLE, mining)
    assert (PEOPLE[anchors] == PEOPLE[positives]).all()
    assert (anchors != positives).all()
    assert (PEOPLE[anchors] != PEOPLE[negatives]).all()
    by_place = zip(squares[anchors, positives].tolist(), squares[anchors, negatives].tolist(), strict=True)
    assert sorted(by_place) == [pytest.approx(one) for one in sorted(chosen)]


def test_without_the_maximum_triplets_have_no_lower_bound() -> None:
    people = torch.tensor([0, 0, 1])
    apart = torch.tensor([[0.0], [0.0], [1.0]])
    values = [losses.triplet(scale * apart, people, 0.2, hinge=False).item() for scale in (1.0, 10.0, 100.0)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < -1000
    unit = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]))
    assert losses.triplet(unit, people, 0.2, hinge=False).item() == pytest.approx(
        0.2 - 4
    )  # The least there is.
    assert losses.triplet(100 * apart, people, 0.2).item() == 0


def test_a_step_without_triplets_has_no_loss_but_a_gradient() -> None:
    found = torch.randn(3, 2, requires_grad=True)
    loss = losses.triplet(found, torch.tensor([0, 1, 2]), 0.2)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert found.grad is not None


def by_hand(logits: list[list[float]]) -> float:
    """Return the cross-entropy of logits with `PEOPLE`."""
    each = []
    for row, person in zip(logits, PEOPLE.tolist(), strict=True):
        each.append(math.log(sum(math.exp(one - row[person]) for one in row)))
    return mean(each)


def test_softmax_is_a_cross_entropy() -> None:
    head = losses.Softmax(5, 4).double()
    logits = embeddings() @ head.layer.weight.T + head.layer.bias
    assert head(embeddings(), PEOPLE).item() == pytest.approx(by_hand(logits.tolist()))


def test_centre_loss_is_wens_and_moves_the_centres() -> None:
    head, found = losses.CentreLoss(5, 4, weight=0.1).double(), embeddings()
    before = torch.randn(4, 5, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    head.centres.copy_(before)
    logits = found @ head.softmax.layer.weight.T + head.softmax.layer.bias
    away = mean(
        [distance(one, before[person]) ** 2 for one, person in zip(found, PEOPLE.tolist(), strict=True)]
    )
    assert head(found, PEOPLE).item() == pytest.approx(by_hand(logits.tolist()) + 0.05 * away)
    for person in range(4):
        own = found[person == PEOPLE]
        delta = (before[person] - own).sum(0) / (1 + len(own))
        assert torch.allclose(head.centres[person], before[person] - 0.5 * delta)
    head.eval()
    still = head.centres.clone()
    head(found, PEOPLE)
    assert torch.equal(head.centres, still)


def cosines(found: Tensor, weight: Tensor) -> list[list[float]]:
    return [
        [float(one @ other) / (float(one.norm()) * float(other.norm())) for other in weight] for one in found
    ]


def test_cosface_is_wangs() -> None:
    head, found = losses.CosFace(5, 4, margin=0.35, scale=16.0).double(), embeddings()
    rows = cosines(found, head.weight.detach())
    for row, person in zip(rows, PEOPLE.tolist(), strict=True):
        row[person] -= 0.35
    assert head(found, PEOPLE).item() == pytest.approx(by_hand([[16 * one for one in row] for row in rows]))


@pytest.mark.parametrize("margin", [0.5, 2.5])
def test_arcface_is_dengs(margin: float) -> None:
    head, found = losses.ArcFace(5, 4, margin=margin, scale=16.0).double(), embeddings()
    rows, passed = cosines(found, head.weight.detach()), []
    for row, person in zip(rows, PEOPLE.tolist(), strict=True):
        angle = math.acos(row[person]) + margin
        passed.append(angle > math.pi)
        row[person] = row[person] - margin * math.sin(margin) if angle > math.pi else math.cos(angle)
    assert any(passed) == (margin > 2)
    found_loss = head(found, PEOPLE).item()
    assert found_loss == pytest.approx(by_hand([[16 * one for one in row] for row in rows]), rel=1e-6)


def test_a_softmax_is_lius() -> None:
    head, found = losses.ASoftmax(5, 4, margin=4, easing=3.0).double(), embeddings(scale=2.0)
    rows = cosines(found, head.weight.detach())
    for row, person, one in zip(rows, PEOPLE.tolist(), found, strict=True):
        angle = math.acos(row[person])
        k = next(k for k in range(4) if k * math.pi / 4 <= angle <= (k + 1) * math.pi / 4)
        psi = (-1) ** k * math.cos(4 * angle) - 2 * k
        row[person] = (3.0 * row[person] + psi) / 4.0
        row[:] = [float(one.norm()) * value for value in row]
    assert head(found, PEOPLE).item() == pytest.approx(by_hand(rows), rel=1e-6)


@pytest.mark.parametrize("margin", [1, 2, 4])
def test_psi_falls_all_the_way(margin: int) -> None:
    head = losses.ASoftmax(2, 2, margin, easing=0.0)
    values = head.with_margin(torch.linspace(1, -1, 200))
    assert bool((values.diff() <= 1e-5).all())
    assert values[-1].item() == pytest.approx(1 - 2 * margin, abs=0.02)


def rows_of(every: Tensor, first: int, end: int, _: Tensor) -> Rows:
    return Rows(every, first, end - first)


@pytest.mark.parametrize("kind", ["triplet", "siamese", "arcface"])
def test_workers_together_take_the_step_of_one(kind: Any) -> None:
    """Each has a part of a step's pictures; their gradients are weighted and averaged as the loop does."""
    pictures, features = embeddings().float(), 5
    people = PEOPLE
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weight = torch.randn(features, features)
        loss = losses.criterion(EmbeddingLoss(kind=kind), features, int(people.max()) + 1)

    def gradient(parts: Sequence[tuple[int, int]]) -> torch.Tensor:
        whole = torch.zeros_like(weight)
        rows = torch.nn.functional.normalize(pictures @ weight, dim=1)
        for first, end in parts:
            learned = weight.clone().requires_grad_()
            own = torch.nn.functional.normalize(pictures[first:end] @ learned, dim=1)
            every = rows.clone()
            batch = Batch(
                (),
                None,
                end - first,
                share=(end - first) / len(pictures),
                together=partial(rows_of, every, first, end),
            )
            value = loss(of_all_workers(own, batch), people)
            value.backward()
            assert learned.grad is not None
            whole += learned.grad * batch.share
        return whole

    count = len(pictures)
    alone = gradient([(0, count)])
    assert bool(alone.abs().sum() > 0)
    several = gradient([(0, 2), (2, count - 1), (count - 1, count)])
    assert several.flatten().tolist() == pytest.approx(alone.flatten().tolist(), abs=1e-5)


def test_a_worker_without_images_has_a_gradient_of_nothing() -> None:
    """It computes with a picture of no weight, so that no other worker waits for its gradients."""
    every = embeddings().float()
    spare = torch.ones(1, 5, requires_grad=True)
    batch = Batch((), None, 1, share=torch.zeros(()), together=partial(rows_of, every, 0, 0))
    losses.criterion(EmbeddingLoss(kind="triplet", margin=9.0), 5, 4)(
        of_all_workers(spare, batch), PEOPLE
    ).backward()
    assert spare.grad is not None
    assert not spare.grad.any()
