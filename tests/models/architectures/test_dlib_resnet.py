"""dlib's ResNet: the same numbers as dlib's own code, and which files it takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.models.architectures import dlib_resnet
from cnnbatch.models.architectures.dlib_resnet import DlibResNet, Level
from cnnbatch.models.face_conventions import DLIB
from cnnbatch.models.weights import dlib_file
from cnnbatch.models.weights.dlib_file import DlibLayer
from cnnbatch.storage.package import locate
from tests import dlib_written
from tests.dlib_written import DIMENSIONS, LEVELS, Layers

OFFICIAL = "package:face_recognition_models/models/dlib_face_recognition_resnet_model_v1.dat"


def tiny() -> DlibResNet:
    return DlibResNet(LEVELS, DIMENSIONS).eval()


@pytest.fixture
def official() -> Path:
    try:
        return Path(locate(OFFICIAL))
    except EnvironmentFault:
        pytest.skip("the package face_recognition_models, which has the weights, is not installed")


def normalised(chips: NDArray[np.uint8]) -> torch.Tensor:
    """Return chips (N, 150, 150, 3) as the module wants them."""
    pixels = torch.from_numpy(chips).permute(0, 3, 1, 2).float()
    return (pixels - torch.tensor(DLIB.mean).view(3, 1, 1)) / torch.tensor(DLIB.std).view(3, 1, 1)


def as_dlib_runs_it(layers: tuple[DlibLayer, ...], x: torch.Tensor) -> torch.Tensor:
    """Run the layers of a file one by one, as dlib does: no affine layer is folded."""
    tagged = x
    for layer, after in zip(layers, [*layers[1:], DlibLayer("")], strict=True):
        if layer.kind == "add_prev_":
            x = added(x, tagged)
        elif layer.kind == "tag" and after.kind == "tag":  # tag2, and behind it skip1
            x, tagged = tagged, x
        elif layer.kind == "tag" and after.kind == "con_4":  # tag1
            tagged = x
        elif layer.kind != "tag":
            x = OPERATIONS[layer.kind](x, layer, *tensors(layer))
    return x


def tensors(layer: DlibLayer) -> list[torch.Tensor]:
    ends = np.cumsum([int(np.prod(shape)) for shape in layer.shapes])[:-1]
    parts = np.split(layer.parameters.copy(), ends)
    return [torch.from_numpy(part.reshape(shape)) for part, shape in zip(parts, layer.shapes, strict=False)]


OPERATIONS: dict[str, Callable[..., torch.Tensor]] = {
    "con_4": lambda x, layer, w, b: F.conv2d(x, w, b.ravel(), layer.numbers[3], layer.numbers[5]),
    "affine_": lambda x, layer, factor, summand: x * factor + summand,
    "relu_": lambda x, *_: F.relu(x),
    "max_pool_2": lambda x, *_: F.max_pool2d(x, 3, 2),
    "avg_pool_2": lambda x, layer, *_: F.avg_pool2d(x, 2) if layer.numbers[0] else x.mean((2, 3)),
    "fc_2": lambda x, layer, w, _: x @ w[:, :, 0, 0],
}


def added(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Add two maps of different sizes, whatever one lacks being zero."""
    total = torch.zeros(len(a), *(max(pair) for pair in zip(a.shape[1:], b.shape[1:], strict=True)))
    for one in (a, b):
        total[:, : one.shape[1], : one.shape[2], : one.shape[3]] += one
    return total


def test_a_small_network_gives_what_its_layers_give_one_by_one(tmp_path: Path) -> None:
    file = tmp_path / "tiny.dat"
    file.write_bytes(dlib_written.layers().file())
    module = tiny()
    dlib_resnet.load_weights(module, file)
    chips = np.random.default_rng(1).integers(0, 256, (2, 150, 150, 3), np.uint8)
    with torch.inference_mode():
        ours = module(normalised(chips))
        expected = as_dlib_runs_it(dlib_file.load(file).layers, normalised(chips))
    assert ours.shape == (2, DIMENSIONS)
    assert ours.dtype == torch.float32
    assert torch.allclose(ours, expected, atol=1e-5)
    assert float((ours[0] - ours[1]).abs().max()) > 1e-3


@pytest.mark.slow
def test_embeddings_are_dlibs(official: Path, shared: Path) -> None:
    dlib = pytest.importorskip("dlib", reason="the package dlib-bin, whose embeddings are the oracle")
    files = sorted((shared / "data" / "lfw" / "lfw").rglob("*.jpg"))[::80][:12]
    chips = np.stack(
        [
            np.asarray(Image.open(file).convert("RGB").crop((62, 62, 188, 188)).resize((150, 150)))
            for file in files
        ]
    )
    reference = dlib.face_recognition_model_v1(str(official))
    expected = np.array([reference.compute_face_descriptor(chip) for chip in chips])
    module = DlibResNet().eval()
    dlib_resnet.load_weights(module, official)
    module = module.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        ours = module(normalised(chips)).numpy()
    assert ours.shape == (12, 128)
    assert np.abs(ours - expected).max() <= 1e-5
    assert np.abs(expected).max() > 0.1


def test_the_official_file_has_29_convolutions(official: Path) -> None:
    network = dlib_file.load(official)
    assert sum(layer.kind == "con_4" for layer in network.layers) == 29
    assert sum(len(layer.parameters) for layer in network.layers) == 5_614_592
    module = DlibResNet()
    assert sum(isinstance(one, torch.nn.Conv2d) for one in module.modules()) == 29
    folded = sum(len(layer.parameters) for layer in network.layers if layer.kind == "affine_")
    assert sum(one.numel() for one in module.parameters()) == 5_614_592 - folded == 5_607_488


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: dlib_written.layers((*LEVELS, Level(4, 1))), "expected 52 layers, got 63"),
        (
            lambda: dlib_written.layers((Level(2, 2, halves=False), Level(5, 2), Level(4, 1))),
            "expected layer 22 to be con_4 3 ",
        ),
        (lambda: dlib_written.layers(dimensions=6), "expected layer 52 to be fc_2 5 4 1 .*, got fc_2 6 4"),
    ],
)
def test_another_network_is_named_by_where_it_differs(
    made: Callable[[], Layers], said: str, tmp_path: Path
) -> None:
    file = tmp_path / "other.dat"
    file.write_bytes(made().file())
    with pytest.raises(UserError, match=said):
        dlib_resnet.load_weights(tiny(), file)


def test_another_input_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.dat"
    file.write_bytes(dlib_written.layers().file(size=(112, 112)))
    with pytest.raises(UserError, match=r"expected chips of \(150, 150\), got \(112, 112\)"):
        dlib_resnet.load_weights(tiny(), file)
    file.write_bytes(dlib_written.layers().file(red=100.0))
    with pytest.raises(UserError, match=r"expected the means \(122.782"):
        dlib_resnet.load_weights(tiny(), file)


def test_a_damaged_file_leaves_the_module_as_it_was(tmp_path: Path) -> None:
    file, module = tmp_path / "tiny.dat", tiny()
    before = {name: one.clone() for name, one in module.state_dict().items()}
    file.write_bytes(dlib_written.layers().file()[:-1])
    with pytest.raises(UserError, match="cut off"):
        dlib_resnet.load_weights(module, file)
    assert all(torch.equal(one, before[name]) for name, one in module.state_dict().items())
