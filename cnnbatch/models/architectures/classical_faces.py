"""Faces before deep networks: features that are computed, and a projection found in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from cnnbatch.models.embedding_head import Batches, EmbeddingHead
from cnnbatch.models.preprocessing import Preprocessing

GRAY = (0.299, 0.587, 0.114)
MOST = 4000
"""Training pictures whose pixels are looked at together."""
_HOW = Preprocessing(resize=(64, 64), crop=(64, 64), mean=(0, 0, 0), std=(1, 1, 1), fit="squash")
_NEIGHBOURS, _RADIUS = 8, 2
_LABELS = _NEIGHBOURS * (_NEIGHBOURS - 1) + 3
_CELLS = 7  # a side


class ComputedFaces(nn.Module):
    """A network whose features are computed, and whose head is fitted to those of the training pictures."""

    def __init__(self, features: nn.Module, head: EmbeddingHead) -> None:
        super().__init__()
        self.body = features
        self.head = head

    def features(self, pixels: Tensor) -> Tensor:
        """Return the features (N, F) of pictures (N, 3, H, W), from 0 to 1."""
        found: Tensor = self.body(pixels)
        return found

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the embeddings (N, D)."""
        found: Tensor = self.head(self.features(pixels))
        return found


class GrayPixels(nn.Module):
    """The gray values of a picture, one after the other."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Return (N, H * W) of (N, 3, H, W)."""
        weights = torch.tensor(GRAY, dtype=pixels.dtype, device=pixels.device).view(3, 1, 1)
        return (pixels * weights).sum(1).flatten(1)


class Eigenfaces(EmbeddingHead):
    """Turk and Pentland 1991, "Eigenfaces for recognition": the principal components of the pixels."""

    def directions(self, features: Tensor) -> Tensor:
        """Return the features as they are."""
        return features.float()

    def fit(self, batches: Batches) -> None:
        """Take the mean, and the components in which the training pictures differ most."""
        values, _ = _some(batches)
        centre = values.mean(0)
        _, _, components = torch.linalg.svd(values - centre, full_matrices=False)
        self._set(centre, components)

    def _set(self, centre: Tensor, rows: Tensor) -> None:
        """Project onto ``rows`` (K, F), as many as there are; the other numbers are 0."""
        count = min(len(rows), self.linear.out_features)
        with torch.no_grad():
            self.centre.copy_(centre)
            self.linear.weight.zero_()
            self.linear.weight[:count].copy_(rows[:count])


class Fisherfaces(Eigenfaces):
    """Belhumeur, Hespanha, Kriegman 1997, "Eigenfaces vs. Fisherfaces": linear discriminants.

    The pixels are first projected onto as many principal components as there are pictures more than people,
    so that the scatter within people can be inverted (their equation 5).
    """

    def fit(self, batches: Batches) -> None:
        """Take the directions in which people differ most beside how pictures of one person differ."""
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

        values, people = _some(batches)
        labels = people.numpy()
        centre, count = values.mean(0), len(np.unique(labels))
        _, _, components = torch.linalg.svd(values - centre, full_matrices=False)
        kept = components[: max(1, len(values) - count)]
        projected = (values - centre) @ kept.T
        found = LinearDiscriminantAnalysis(solver="eigen", shrinkage=1e-4).fit(projected.numpy(), labels)
        scalings = torch.from_numpy(np.ascontiguousarray(found.scalings_[:, : count - 1]))
        self._set(centre, scalings.T @ kept)


class Histograms(EmbeddingHead):
    """Histograms as they are, compared by the distance of their square roots (Hellinger's)."""

    def fit(self, batches: Batches) -> None:
        """There is nothing to be learned."""


def _some(batches: Batches) -> tuple[Tensor, Tensor]:
    """Return the features of the first pictures, float64 (N, F), and their classes (N,), on the CPU."""
    features, people, count = [], [], 0
    for some, classes in batches:
        if count < MOST:
            features.append(some[: MOST - count].double().cpu())
            people.append(classes[: MOST - count].cpu())
            count += len(features[-1])
    return torch.cat(features), torch.cat(people)


class LocalBinaryPatterns(nn.Module):
    """Ahonen, Hadid, Pietikäinen 2006, "Face description with local binary patterns": histograms by cells.

    Eight neighbours at two pixels, the 58 uniform patterns and one for all others (Ojala et al. 2002), in
    cells of a grid. The paper compares histograms by chi squared.
    """

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.from_numpy(_uniform_labels()))

    def labels(self, gray: Tensor) -> Tensor:
        """Return the pattern's label (N, H, W) at each pixel of gray pictures (N, H, W)."""
        padded = functional.pad(gray, (_RADIUS + 1,) * 4)
        codes = torch.zeros_like(gray, dtype=torch.int64)
        for place in range(_NEIGHBOURS):
            angle = 2 * math.pi * place / _NEIGHBOURS
            down, right = (round(_RADIUS * value, 5) for value in (-math.sin(angle), math.cos(angle)))
            codes += (_shifted(padded, down, right, gray.shape[1:]) >= gray).long() << place
        return self.table[codes]

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the histograms of all cells (N, cells * labels), each a share of the cell's pixels."""
        gray = GrayPixels()(pixels).view(len(pixels), *pixels.shape[2:]).double()
        labels = self.labels((255 * gray).round())
        ones = functional.one_hot(labels, _LABELS).permute(0, 3, 1, 2).float()
        return functional.adaptive_avg_pool2d(ones, _CELLS).flatten(1)


def _shifted(padded: Tensor, down: float, right: float, size: torch.Size) -> Tensor:
    """Return what lies so far from each pixel of padded pictures, by bilinear interpolation."""
    top, left = math.floor(down), math.floor(right)
    below, beside = down - top, right - left
    height, width = size

    def at(row: int, column: int) -> Tensor:
        first, start = _RADIUS + 1 + row, _RADIUS + 1 + column
        return padded[:, first : first + height, start : start + width]

    if not below and not beside:
        return at(top, left)
    upper = (1 - beside) * at(top, left) + beside * at(top, left + 1)
    lower = (1 - beside) * at(top + 1, left) + beside * at(top + 1, left + 1)
    return (1 - below) * upper + below * lower


def _uniform_labels() -> NDArray[np.int64]:
    """Return the label of each code (256,): one for each uniform pattern, and one for all others."""
    labels = np.full(1 << _NEIGHBOURS, _LABELS - 1, np.int64)
    uniform = [code for code in range(1 << _NEIGHBOURS) if _changes(code) <= 2]
    labels[uniform] = np.arange(len(uniform))
    return labels


def _changes(code: int) -> int:
    bits = [code >> place & 1 for place in range(_NEIGHBOURS)]
    return sum(one != other for one, other in zip(bits, bits[1:] + bits[:1], strict=True))


def _make(body: Callable[[], nn.Module], head: type[EmbeddingHead], most: int | None) -> Maker:
    def make(dimensions: int | None) -> tuple[ComputedFaces, Preprocessing]:
        features = body()
        width = features(torch.zeros(1, 3, *_HOW.crop)).shape[1]
        return ComputedFaces(features, head(width, dimensions or most or width, most is None)), _HOW

    return make


Maker = Callable[[int | None], tuple[ComputedFaces, Preprocessing]]

OWN: Mapping[str, Maker] = {
    "eigenfaces": _make(GrayPixels, Eigenfaces, 150),
    "fisherfaces": _make(GrayPixels, Fisherfaces, 150),
    "lbp": _make(LocalBinaryPatterns, Histograms, None),
}
"""By name what makes a network of so many dimensions, and how its pictures are prepared."""
