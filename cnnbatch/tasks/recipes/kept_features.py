"""Features of pictures that do not change, by a network that does not learn: computed once each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from cnnbatch.models.depth import Shortened

MOST_BYTES = 1 << 30
"""Of features that are kept; those of further pictures are computed in each epoch."""


class KeptFeatures:
    """The features that a frozen network gives of pictures that do not change, computed once each."""

    def __init__(self, network: Shortened) -> None:
        self._network = network
        self._kept: dict[str, Tensor] = {}
        self._bytes = 0

    def of(self, keys: Sequence[str], pixels: Tensor, normalized: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the features (N, F), float32, of pictures (N, 3, H, W) with these keys."""
        lacking = [place for place, key in enumerate(keys) if key not in self._kept]
        found = dict[int, Tensor]()
        if lacking:
            self._network.eval()
            with torch.no_grad():
                features = self._network.features(normalized(pixels[lacking])).float()
            found = dict(zip(lacking, features, strict=True))
            self._keep({keys[place]: row for place, row in found.items()})
        rows = [found[place] if place in found else self._kept[key] for place, key in enumerate(keys)]
        return torch.stack(rows)

    def _keep(self, features: Mapping[str, Tensor]) -> None:
        for key, row in features.items():
            size = row.numel() * row.element_size()
            if self._bytes + size <= MOST_BYTES:
                self._kept[key] = row.clone()
                self._bytes += size
