"""R-CNNs of torchvision on a feature pyramid over any of its classifiers: ``maskrcnn_mobilenet_v2_fpn``.

Built of torchvision's own parts, so that on a ResNet they are what its builders make, tensor by tensor.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, KeypointRCNN, MaskRCNN
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from cnnbatch.models.libraries import torchvision_models
from cnnbatch.models.libraries.torchvision_backbones import Body, body
from cnnbatch.models.network import Network

KINDS = {"fasterrcnn": FasterRCNN, "maskrcnn": MaskRCNN, "keypointrcnn": KeypointRCNN}

CHANNELS = 256
_ASPECTS = (0.5, 1.0, 2.0)
_NAME = re.compile(rf"({'|'.join(KINDS)})_(\w+?)_fpn")


def parse(name: str) -> tuple[str, str] | None:
    """Return the kind of R-CNN and the classifier that a name stands for; None where it is none."""
    found = _NAME.fullmatch(name)
    return (found[1], found[2]) if found and found[2] in torchvision_models.names() else None


class Pyramid(nn.Module):
    """A body with a feature pyramid on its maps (Lin et al. 2017), and one level more above the last."""

    def __init__(self, inner: Body) -> None:
        super().__init__()
        self.body = inner
        channels = [level.channels for level in inner.levels]
        self.fpn = FeaturePyramidNetwork(channels, CHANNELS, extra_blocks=LastLevelMaxPool())
        self.out_channels = CHANNELS

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return maps (N, 256, h, w), the largest first; the last is called ``pool``."""
        found: dict[str, Tensor] = self.fpn(OrderedDict(self.body(pixels)))
        return found


def make(kind: str, network: Network, name: str, classes: int, points: int | None = None) -> nn.Module:
    """Return an R-CNN with random heads on the body of ``network``, torchvision's classifier ``name``.

    ``classes`` counts the background, ``points`` are those of an object of a ``keypointrcnn``. An anchor is
    eight steps of its level wide, as on ResNets there.

    Raises:
        UserError: the classifier has no body.
    """
    pyramid = Pyramid(body(network, name))
    strides = [level.stride for level in pyramid.body.levels]
    sizes = tuple((8 * stride,) for stride in [*strides, 2 * strides[-1]])
    how = network.preprocessing
    options: dict[str, Any] = {"image_mean": list(how.mean), "image_std": list(how.std)}
    if points is not None:
        options["num_keypoints"] = points
    module: nn.Module = KINDS[kind](
        pyramid,
        num_classes=classes,
        rpn_anchor_generator=AnchorGenerator(sizes, (_ASPECTS,) * len(sizes)),
        **options,
    )
    return module
