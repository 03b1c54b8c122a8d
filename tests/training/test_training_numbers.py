"""Schedules, optimisers and measures of similarity against torch, scikit-learn and closed forms."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from cnnbatch.config.train import Strategy, Train
from cnnbatch.tasks.recipes.recipe import Parameters, TrainingData
from cnnbatch.training import probes as similarity
from cnnbatch.training.optimizers import Muon, learning_rate, optimizer, orthogonal
from cnnbatch.training.schedules import factor
from cnnbatch.training.strategy import epochs_for
from cnnbatch.training.strategy_rule import Depth, by_table, figures
from cnnbatch.truth.classes import named_alike
from tests import tiny


@pytest.mark.parametrize(("steps", "warmup"), [(100, 0.3), (40, 0.25), (1000, 0.1)])
def test_one_cycle_is_torchs(steps: int, warmup: float) -> None:
    weights = [nn.Parameter(torch.zeros(1))]
    sgd = torch.optim.SGD(weights, lr=1.0)
    oracle = torch.optim.lr_scheduler.OneCycleLR(
        sgd, max_lr=1.0, total_steps=steps, pct_start=warmup, cycle_momentum=False
    )
    for step in range(steps):
        assert factor("one_cycle", step, steps, warmup) == pytest.approx(sgd.param_groups[0]["lr"], rel=1e-6)
        sgd.step()
        if step + 1 < steps:
            oracle.step()


def test_cosine_and_step_and_constant() -> None:
    assert [factor("cosine", step, 100, 0.0) for step in (0, 50, 75)] == pytest.approx(
        [1, 0.5, (1 + np.cos(0.75 * np.pi)) / 2]
    )
    assert [factor("step", step, 100, 0.0) for step in (0, 49, 50, 74, 75, 90)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.001]
    )
    assert [factor("constant", step, 100, 0.0) for step in (0, 99)] == [1, 1]
    poly = [(1 - step / 100) ** 0.9 for step in (0, 30, 99)]
    assert [factor("poly", step, 100, 0.0) for step in (0, 30, 99)] == pytest.approx(poly)
    risen = [factor("cosine", step, 100, 0.1) for step in range(12)]
    assert risen[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "poly", "step", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("warmup", [0.0, 0.5, 1.0])
def test_short_trainings_have_a_learning_rate(schedule: Any, steps: int, warmup: float) -> None:
    assert all(0 <= factor(schedule, step, steps, warmup) <= 1 for step in range(steps))


@pytest.mark.parametrize("shape", [(8, 8), (16, 4), (4, 16)])
def test_muon_is_torchs_for_matrices(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(shape), [torch.randn(shape) for _ in range(4)]
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    mine = Muon([{"params": [ours], "weight_decay": 0.1}], lr=0.05)
    oracle = torch.optim.Muon([theirs], lr=0.05, weight_decay=0.1, momentum=0.95)
    for gradient in gradients:
        for parameter, one in ((ours, mine), (theirs, oracle)):
            parameter.grad = gradient.clone()
            one.step()
    moved = (theirs - start).abs().max()
    assert (ours - theirs).abs().max() < 0.03 * moved  # torch's iterates in bfloat16


def test_an_orthogonal_direction_has_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((12, 12), (30, 7), (7, 30)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
        assert float(values.min()) > 0.5
        assert float(values.max()) < 1.3


def test_biases_and_normalisations_do_not_decay_and_stages_keep_their_scale() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    groups = [
        Parameters("body", [*module.parameters()], 0.5),
        Parameters("head", [nn.Parameter(torch.ones(2, 2))]),
    ]
    found = optimizer(groups, Train(optimizer="sgd", weight_decay=0.1), 0.2)
    assert [(len(one["params"]), one["weight_decay"], one["lr"]) for one in found.param_groups] == [
        (1, 0.1, 0.1),
        (3, 0.0, 0.1),
        (1, 0.1, 0.2),
    ]
    assert learning_rate(Train(learning_rate=0.3, strategy="all")) == 0.3
    rates = {name: learning_rate(Train(optimizer="sgd", strategy=name)) for name in get_args(Strategy)}
    earlier = learning_rate(Train(optimizer="sgd", strategy="head", features="layer1"))
    assert earlier == 5 * rates["head"]
    assert rates["head"] == rates["last_blocks"] == 2 * rates["all"] == rates["scratch"] / 5


def blobs(count: int, distance: float, classes: int = 3, size: int = 20) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    labels = np.arange(count) % classes
    centres = rng.normal(0, distance, (classes, size))
    return (centres[labels] + rng.normal(0, 1, (count, size))).astype(np.float32), labels.astype(np.int64)


def test_probe_and_neighbours_tell_what_can_be_told() -> None:
    features, labels = blobs(300, 2.0)
    scaled = similarity.standardized(features)
    assert similarity.linear_probe(scaled, labels) > 0.97
    assert similarity.nearest_neighbours(scaled, labels) > 0.97
    shuffled = np.random.default_rng(1).permutation(labels)
    assert similarity.linear_probe(scaled, shuffled) == pytest.approx(1 / 3, abs=0.1)
    assert similarity.nearest_neighbours(scaled, shuffled) == pytest.approx(1 / 3, abs=0.1)


def test_neighbours_are_scikit_learns() -> None:
    neighbors = pytest.importorskip("sklearn.neighbors")
    features, labels = blobs(120, 0.4)
    scaled = similarity.standardized(features)
    right = 0
    for place in range(len(labels)):
        others = np.arange(len(labels)) != place
        oracle = neighbors.KNeighborsClassifier(1, metric="cosine").fit(scaled[others], labels[others])
        right += int(oracle.predict(scaled[place : place + 1])[0] == labels[place])
    assert similarity.nearest_neighbours(scaled, labels, k=1) == right / len(labels)


def test_the_probe_is_ridge_regression() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    features, labels = blobs(90, 0.5)
    scaled = similarity.standardized(features)
    fold = np.random.default_rng(0).permutation(90) % 5
    right = 0
    for number in range(5):
        fit, judge = fold != number, fold == number
        centred = scaled[fit] - scaled[fit].mean(0)
        penalty = np.trace(centred @ centred.T) / fit.sum()
        oracle = linear.Ridge(alpha=penalty).fit(scaled[fit], np.eye(3)[labels[fit]])
        right += int((oracle.predict(scaled[judge]).argmax(1) == labels[judge]).sum())
    assert similarity.linear_probe(scaled, labels) == right / 90


def evidence(features: NDArray[Any], target: NDArray[Any], alpha: float, beta: float) -> float:
    """Return the log evidence by its definition (Bishop 2006, equation 3.86), a mean over images."""
    count, size = features.shape
    matrix = alpha * np.eye(size) + beta * features.T @ features
    mean = beta * np.linalg.solve(matrix, features.T @ target)
    error = beta / 2 * ((target - features @ mean) ** 2).sum() + alpha / 2 * mean @ mean
    found = size / 2 * np.log(alpha) + count / 2 * np.log(beta) - error
    determinant = float(np.linalg.slogdet(matrix)[1])
    return float((found - determinant / 2 - count / 2 * np.log(2 * np.pi)) / count)


@pytest.mark.parametrize("size", [6, 60])
def test_log_evidence_is_the_greatest_there_is(size: int) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    features, labels = blobs(50, 1.0, classes=2, size=size)
    scaled = similarity.standardized(features)
    greatest = []
    for number in range(2):
        target = (labels == number).astype(float)

        def negative(logs: NDArray[Any], target: NDArray[Any] = target) -> float:
            return -evidence(scaled, target, *np.exp(logs))

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = min(
                optimize.minimize(negative, start, method="Nelder-Mead").fun
                for start in ([0, 0], [2, 2], [3, 0])
            )
        greatest.append(-found)
    assert similarity.log_evidence(scaled, labels) == pytest.approx(float(np.mean(greatest)), abs=2e-3)


@pytest.mark.parametrize(
    ("each", "distance", "expected"),
    [(20, 3.0, "head"), (20, 0.1, "head"), (400, 3.0, "last_blocks"), (400, 0.1, "all")],
)
def test_the_table_reads_both_axes(each: int, distance: float, expected: str) -> None:
    features, labels = blobs(120, distance)
    data = TrainingData(("a", "b", "c"), {}, 3 * each)
    decision = by_table(figures(features, labels, data, ("x",)))
    assert decision.strategy == expected
    assert f"{each} a class" in decision.why
    assert decision.strong == (each == 20 and distance < 1)
    assert decision.features is None


def profile(probes: Sequence[float], evidences: Sequence[float]) -> list[Depth]:
    """Return twelve depths, three a quarter."""
    return [Depth(f"block{place}", probes[place // 3], evidences[place // 3]) for place in range(12)]


RISING, FLAT = (0.4, 0.5, 0.7, 0.8), (0.7, 0.8, 0.8, 0.8)
EARLY = (-0.7, -0.6, -0.8, -0.9)


@pytest.mark.parametrize(
    ("each", "depths", "strategy", "features"),
    [
        (20, profile(RISING, RISING), "head", None),
        (20, profile(FLAT, EARLY), "head", "block5"),
        (20, profile(FLAT, RISING), "head", None),
        (400, profile(RISING, RISING), "last_blocks", None),
        (400, profile(FLAT, EARLY), "all", None),
    ],
)
def test_likeness_is_what_later_features_add(
    each: int, depths: list[Depth], strategy: str, features: str | None
) -> None:
    given, labels = blobs(120, 3.0)
    decision = by_table(figures(given, labels, TrainingData(("a", "b", "c"), {}, 3 * each), ("x",)), depths)
    assert (decision.strategy, decision.features) == (strategy, features)
    probes = [depth.probe for depth in depths]
    gain = 1 - (1 - probes[-1]) / (1 - probes[3])
    assert decision.figures["similarity"] == pytest.approx(gain)
    assert decision.strong == (each == 20 and gain < 0.4)
    assert f"{probes[3]:.0%}, on those of its last in {probes[-1]:.0%}" in decision.why


def test_names_are_compared_by_letters_and_digits() -> None:
    known = ("tiger cat", "Egyptian cat", "tench")
    assert named_alike(("Tiger_Cat", "dog"), known) == {"Tiger_Cat": "tiger cat"}


def test_a_small_set_is_seen_more_often(tmp_path: Any) -> None:
    job = tiny.job(tmp_path, tmp_path, {"epochs": "auto"})
    few, many = (TrainingData(("a", "b"), {}, count) for count in (40, 4000))
    assert epochs_for(job, "head", few) > epochs_for(job, "head", many)
    assert epochs_for(job, "as_is", few) == 0
    assert epochs_for(tiny.job(tmp_path, tmp_path, {"epochs": 3}), "all", few) == 3
