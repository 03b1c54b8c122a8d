"""MTCNN's three networks against facenet-pytorch's, layer by layer the same weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cnnbatch.models.architectures.mtcnn import ONet, PNet, RNet, _MaxPool, _PReLU
from cnnbatch.models.network import seeded

LAYOUTS = torch.contiguous_format, torch.channels_last


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 5, 7, 4), (1, 3, 1, 6), (0, 4, 3, 3)])
def test_prelu_is_torchs_in_both_layouts(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    ours, theirs = _PReLU(shape[1]), nn.PReLU(shape[1])
    with seeded(1), torch.no_grad():
        theirs.weight.normal_()
        ours.load_state_dict(theirs.state_dict())
        features = torch.randn(shape).contiguous(memory_format=layout)
        torch.testing.assert_close(ours(features), theirs(features), rtol=0, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("shape", [(2, 10, 7, 12), (1, 3, 8, 9), (3, 5, 3, 4), (2, 7, 10, 5), (0, 4, 6, 6)])
def test_pools_are_torchs_in_both_layouts(
    shape: tuple[int, ...], size: int, layout: torch.memory_format
) -> None:
    with seeded(1):
        features = torch.randn(shape).contiguous(memory_format=layout)
    expected = nn.MaxPool2d(size, 2, ceil_mode=True)(features) if len(features) else torch.zeros(0, 4, 3, 3)
    assert torch.equal(_MaxPool(size, 2, ceil_mode=True)(features), expected)


@pytest.mark.parametrize(
    ("network", "parameters"), [(PNet, 6632), (RNet, 100178), (ONet, 389040)], ids=["pnet", "rnet", "onet"]
)
def test_a_network_has_the_published_number_of_parameters(network: type[nn.Module], parameters: int) -> None:
    assert sum(one.numel() for one in network().parameters()) == parameters


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 3, 40, 33), (1, 3, 12, 12), (1, 3, 13, 19)])
def test_pnet_is_facenet_pytorchs(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    theirs = pytest.importorskip("facenet_pytorch.models.mtcnn").PNet()
    ours = PNet().to(memory_format=layout)
    ours.load_state_dict(theirs.state_dict())
    with seeded(2), torch.no_grad():
        pixels = torch.rand(shape) * 2 - 1
        offsets, probabilities = theirs(pixels)
        scores, features = ours(pixels.contiguous(memory_format=layout))
        ours_offsets = ours.offsets(features)
    torch.testing.assert_close(scores, probabilities[:, 1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours_offsets, offsets.permute(0, 2, 3, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("count", [3, 1])
def test_rnet_is_facenet_pytorchs(count: int, layout: torch.memory_format) -> None:
    theirs = pytest.importorskip("facenet_pytorch.models.mtcnn").RNet()
    ours = RNet().to(memory_format=layout)
    ours.load_state_dict(theirs.state_dict())
    with seeded(3), torch.no_grad():
        crops = torch.rand(count, 3, 24, 24) * 2 - 1
        offsets, probabilities = theirs(crops)
        found = ours(crops.contiguous(memory_format=layout))
    torch.testing.assert_close(found, (probabilities[:, 1], offsets), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("count", [3, 1])
def test_onet_is_facenet_pytorchs(count: int, layout: torch.memory_format) -> None:
    theirs = pytest.importorskip("facenet_pytorch.models.mtcnn").ONet()
    ours = ONet().to(memory_format=layout)
    ours.load_state_dict(theirs.state_dict())
    with seeded(4), torch.no_grad():
        crops = torch.rand(count, 3, 48, 48) * 2 - 1
        offsets, points, probabilities = theirs(crops)
        found = ours(crops.contiguous(memory_format=layout))
    expected = probabilities[:, 1], offsets, torch.stack([points[:, :5], points[:, 5:]], 2)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_networks_take_no_crops_at_all() -> None:
    scores, offsets, points = ONet().to(memory_format=torch.channels_last)(torch.zeros(0, 3, 48, 48))
    assert (scores.shape, offsets.shape, points.shape) == ((0,), (0, 4), (0, 5, 2))
    scores, offsets = RNet().to(memory_format=torch.channels_last)(torch.zeros(0, 3, 24, 24))
    assert (scores.shape, offsets.shape) == ((0,), (0, 4))
