"""The second head of torchvision's FCN and DeepLabV3, which helps their backbone to learn.

It reads an earlier layer's features (Zhao et al. 2017, "Pyramid scene parsing network", section 3.3); what
was learned is written without it.
"""

from __future__ import annotations

from typing import Any

import torchvision
from torch import Tensor, nn

from cnnbatch.models.network import seeded

_FAMILIES = ("fcn_", "deeplabv3_")  # of torchvision's names


class AuxiliaryHead(nn.Module):
    """A head of its own on the features of ``layer``, a part of the network, as that last gave them."""

    _features: Tensor | None = None

    def __init__(self, layer: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.head = head
        layer.register_forward_hook(self._keep)

    def _keep(self, _layer: nn.Module, _inputs: Any, features: Tensor) -> None:
        if self.training:
            self._features = features

    def forward(self) -> Tensor:
        """Return logits (N, C, h, w); the features are let go."""
        features, self._features = self._features, None
        assert features is not None
        logits: Tensor = self.head(features)
        return logits


def auxiliary_head(model: str, backbone: nn.Module, classes: int, seed: int) -> AuxiliaryHead | None:
    """Return the auxiliary head of torchvision's ``model``, with random weights; None where it has none."""
    if not model.startswith(_FAMILIES) or model not in torchvision.models.list_models():
        return None
    with seeded(seed):
        whole: Any = torchvision.models.get_model(
            model, weights=None, weights_backbone=None, num_classes=classes, aux_loss=True
        )
    layer = next(name for name, role in whole.backbone.return_layers.items() if role == "aux")
    return AuxiliaryHead(backbone.get_submodule(layer), whole.aux_classifier)
