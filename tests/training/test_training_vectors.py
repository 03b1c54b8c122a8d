"""Vectors of a lesson's validation by epoch: which are kept, and how they are projected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cnnbatch.training.vectors import VectorsByEpoch, principal_axes


class Shows:
    """A recipe that shows of each validation vectors that grow by the epoch."""

    metric = "accuracy"

    def vectors(self, values: Sequence[Any]) -> tuple[list[str], Tensor]:
        return ["a", "a", "b"], torch.stack([*values])


def vectors(epochs: int) -> list[Tensor]:
    made = torch.Generator().manual_seed(1)
    return list((1 + epochs) * torch.randn(3, 5, generator=made))


@pytest.mark.parametrize(
    ("epochs", "kept"),
    [(1, [0, 1]), (4, [0, 1, 2, 4]), (7, [0, 1, 2, 4, 7]), (40, [0, 1, 2, 4, 8, 16, 32, 40])],
)
def test_those_after_powers_of_two_and_the_newest_are_kept(epochs: int, kept: list[int]) -> None:
    found = VectorsByEpoch(Shows(), lesson=True)
    for number in range(epochs + 1):
        found.take(number, vectors(number), {"accuracy": 0.01 * number})
        if number == epochs // 2:
            state, found = found.state(), VectorsByEpoch(Shows(), lesson=True)
            found.restore(state)
    shown = found.projected()
    assert shown is not None
    assert [one["epochs"] for one in shown["states"]] == kept
    assert [one["measured"] for one in shown["states"]] == pytest.approx([0.01 * one for one in kept])
    assert shown["classes"] == ["a", "a", "b"]


def test_all_states_are_seen_by_the_principal_components_of_the_last() -> None:
    found = VectorsByEpoch(Shows(), lesson=True)
    for number in range(3):
        found.take(number, vectors(number), {"accuracy": 0.5})
    shown = found.projected()
    assert shown is not None
    last = torch.stack(vectors(2)).double().numpy()
    centre = last.mean(0)
    variances, axes = np.linalg.eigh(np.cov(last.T))
    for one in shown["states"]:
        expected = (torch.stack(vectors(one["epochs"])).double().numpy() - centre) @ axes[:, [-1, -2]]
        points = np.array(one["points"])
        signs = np.sign((points * expected).sum(0))  # An axis may point either way.
        assert points == pytest.approx(expected * signs, abs=1e-6)
    assert shown["share"] == pytest.approx(variances[-2:].sum() / variances.sum())


def test_two_pictures_have_one_axis() -> None:
    centre, axes, share = principal_axes(torch.tensor([[0.0, 0, 2], [0, 0, 0]]))
    assert centre.tolist() == [0, 0, 1]
    assert axes[:, 0].abs().tolist() == pytest.approx([0, 0, 1])
    assert ((torch.tensor([[0.0, 0, 2]]) - centre) @ axes)[0, 1] == pytest.approx(0)
    assert share == pytest.approx(1)


def test_nothing_is_kept_but_of_a_lesson_of_a_recipe_that_shows_vectors() -> None:
    class Silent:
        metric = "accuracy"

    for one in (VectorsByEpoch(Shows(), lesson=False), VectorsByEpoch(Silent(), lesson=True)):
        one.take(0, vectors(0), {"accuracy": 0.5})
        one.take(1, vectors(1), {"accuracy": 0.5})
        assert not one.are_kept
        assert one.projected() is None
