"""FaceNet's Inception-ResNet-v1 against facenet-pytorch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cnnbatch.models.architectures.inception_resnet import DIMENSIONS, InceptionResnetV1

PUBLISHED = 23_482_624
"""Parameters without the classes. The published files, of 107 and 111 MiB, have 8,631 and 10,575 of them."""


def randomise(module: nn.Module) -> None:
    """Give batch normalisation the statistics of a trained network, so that each matters."""
    generator = torch.Generator().manual_seed(0)
    for one in module.modules():
        if isinstance(one, nn.BatchNorm1d | nn.BatchNorm2d):
            assert one.running_mean is not None
            assert one.running_var is not None
            one.running_mean.copy_(torch.randn(one.num_features, generator=generator) * 0.1)
            one.running_var.copy_(torch.rand(one.num_features, generator=generator) + 0.5)
            one.weight.data.copy_(torch.rand(one.num_features, generator=generator) + 0.5)
            one.bias.data.copy_(torch.randn(one.num_features, generator=generator) * 0.1)


@pytest.fixture(scope="module")
def reference() -> Any:
    package = pytest.importorskip(
        "facenet_pytorch", reason="the package facenet-pytorch, which is the oracle"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = package.InceptionResnetV1().eval()
    randomise(module)
    return module


def test_names_and_shapes_are_facenet_pytorchs(reference: Any) -> None:
    ours = InceptionResnetV1().state_dict()
    theirs = reference.state_dict()
    assert list(ours) == list(theirs)
    assert {name: one.shape for name, one in ours.items()} == {
        name: one.shape for name, one in theirs.items()
    }


def test_the_number_of_parameters_is_the_published_one() -> None:
    module = InceptionResnetV1()
    assert sum(one.numel() for one in module.parameters()) == PUBLISHED
    for classes, mebibytes in ((8_631, 107), (10_575, 111)):
        own = sum(one.nbytes for one in module.state_dict().values())
        assert (own + 4 * classes * (DIMENSIONS + 1)) / 2**20 == pytest.approx(mebibytes, abs=0.7)


@pytest.mark.slow
def test_embeddings_are_facenet_pytorchs(reference: Any) -> None:
    module = InceptionResnetV1().eval()
    module.load_state_dict(reference.state_dict())
    chips = torch.randn(3, 3, 160, 160, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        ours, theirs = module(chips), reference(chips)
    assert ours.shape == (3, DIMENSIONS)
    assert torch.allclose(F.normalize(ours), theirs, atol=1e-6)
    assert float((theirs[0] - theirs[1]).abs().max()) > 1e-4
