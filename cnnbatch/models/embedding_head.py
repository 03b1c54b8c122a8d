"""The head of an embedding network: from features to a vector."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from cnnbatch.models.network import seeded

Batches = Iterable[tuple[Tensor, Tensor]]
"""Features (N, F) of some pictures, and the numbers of their classes (N,), one batch after the other."""

_TINY = 1e-12


class EmbeddingHead(nn.Module):
    """From features to embeddings: their direction, as it differs from the mean of the training, projected.

    With ``root`` the signed square root is taken first, which keeps a few large features from deciding alone
    (RootSIFT: Arandjelović and Zisserman 2012, "Three things everyone should know to improve object
    retrieval"). The projection begins as the identity, or as a part of a random rotation where it gives fewer
    numbers than there are features.
    """

    centre: Tensor

    def __init__(self, features: int, dimensions: int, root: bool, seed: int = 0) -> None:
        super().__init__()
        self._root = root
        self.register_buffer("centre", torch.zeros(features))
        self.linear = nn.Linear(features, dimensions, bias=False)
        with seeded(seed), torch.no_grad():
            if features == dimensions:
                nn.init.eye_(self.linear.weight)
            else:
                nn.init.orthogonal_(self.linear.weight)

    def fit(self, batches: Batches) -> None:
        """Take the mean of what the head reads of the training pictures."""
        total, count = torch.zeros_like(self.centre, dtype=torch.float64), 0
        for features, _ in batches:
            total += self.directions(features).sum(0, dtype=torch.float64)
            count += len(features)
        if count:
            self.centre.copy_(total / count)

    def directions(self, features: Tensor) -> Tensor:
        """Return the directions (N, F) of features (N, F), from which the centre is not yet taken."""
        features = features.float()
        if self._root:
            features = features.sign() * features.abs().clamp(min=_TINY).sqrt()
        return functional.normalize(features, dim=1)

    def forward(self, features: Tensor) -> Tensor:
        """Return the embeddings (N, D) of features (N, F)."""
        directions = self.directions(features) - self.centre
        found: Tensor = self.linear(directions.to(self.linear.weight.dtype))
        return found
