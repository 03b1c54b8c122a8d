"""Eigenfaces, Fisherfaces and local binary patterns beside scikit-learn and scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage.feature import local_binary_pattern
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from cnnbatch.models.architectures import classical_faces
from cnnbatch.models.architectures.classical_faces import Eigenfaces, Fisherfaces, LocalBinaryPatterns


def features(people: int = 6, each: int = 4, width: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    names = np.repeat(np.arange(people), each)
    values = rng.normal(size=(people, width))[names] + 0.5 * rng.normal(size=(people * each, width))
    return torch.from_numpy(values).float(), torch.from_numpy(names)


def same_up_to_signs(found: NDArray[np.float64], expected: NDArray[np.float64]) -> None:
    signs = np.sign((found * expected).sum(0))
    assert found * signs == pytest.approx(expected, abs=1e-3 * np.abs(expected).max())


def test_eigenfaces_are_principal_components() -> None:
    values, people = features()
    head = Eigenfaces(40, 5, root=False)
    head.fit([(values[:10], people[:10]), (values[10:], people[10:])])
    expected = PCA(5, svd_solver="full").fit_transform(values.double().numpy())
    with torch.no_grad():
        same_up_to_signs(head(values).double().numpy(), expected)


def test_fisherfaces_are_discriminants_of_principal_components() -> None:
    values, people = features()
    head = Fisherfaces(40, 8, root=False)
    head.fit([(values, people)])
    projected = PCA(24 - 6, svd_solver="full").fit_transform(values.double().numpy())
    discriminants = LinearDiscriminantAnalysis(solver="eigen", shrinkage=1e-4).fit(projected, people.numpy())
    expected = projected @ discriminants.scalings_[:, :5]  # One less than there are people.
    with torch.no_grad():
        found = head(values).double().numpy()
    same_up_to_signs(found[:, :5], expected)
    assert not found[:, 5:].any()


def test_no_more_pictures_are_looked_at_than_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    values, people = features()
    monkeypatch.setattr(classical_faces, "MOST", 12)
    one, other = Eigenfaces(40, 5, root=False), Eigenfaces(40, 5, root=False)
    one.fit([(values[:7], people[:7]), (values[7:], people[7:])])
    other.fit([(values[:12], people[:12])])
    assert torch.equal(one.linear.weight, other.linear.weight)


def test_patterns_are_those_of_scikit_image() -> None:
    gray = np.random.default_rng(0).integers(0, 256, (2, 40, 50))
    gray[1, 10:30, 10:30] = 100  # Neighbours that are equal count as brighter.
    found = LocalBinaryPatterns().labels(torch.from_numpy(gray).double()).numpy()
    for mine, picture in zip(found, gray, strict=True):
        theirs = local_binary_pattern(picture.astype(np.uint8), 8, 2, "nri_uniform").astype(int)  # type: ignore[no-untyped-call]
        pairs = {(int(a), int(b)) for a, b in zip(mine.flat, theirs.flat, strict=True)}
        # The same partition into 59 patterns, under other numbers.
        assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs)
        assert {a for a, b in pairs if b == 58} <= {58}


def test_histograms_are_shares_of_each_cell() -> None:
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = LocalBinaryPatterns()(pixels)
    assert found.shape == (2, 7 * 7 * 59)
    assert found.view(2, 59, 49).sum(1).flatten().tolist() == pytest.approx([1.0] * 98, abs=1e-5)
