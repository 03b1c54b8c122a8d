"""Face embedders by name: their weights, what is said of these, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.models import Choice, FaceEmbedder
from cnnbatch.models.architectures import face_models, iresnet
from cnnbatch.models.architectures.dlib_resnet import DlibResNet
from cnnbatch.models.architectures.inception_resnet import InceptionResnetV1
from cnnbatch.models.face_conventions import ARCFACE, DLIB, FACENET
from cnnbatch.models.face_embedder import embedder
from cnnbatch.models.face_embedders import build_face_embedder, names
from cnnbatch.models.weights import files
from cnnbatch.storage.package import locate
from tests import dlib_written


@pytest.fixture
def small_iresnet(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """Return an IResNet of few channels, as which all depths are built."""
    monkeypatch.setattr(iresnet, "IResNet", partial(iresnet.IResNet, widths=(2, 3, 4, 5)))
    monkeypatch.setattr(iresnet, "BLOCKS", {50: (1, 1, 1, 1), 100: (1, 2, 1, 1)})
    return iresnet.IResNet(iresnet.BLOCKS[50]).eval()


@pytest.fixture
def published() -> str:
    try:
        return locate(face_models.DLIB_WEIGHTS[0])
    except EnvironmentFault:
        pytest.skip("the package face_recognition_models, which has the weights, is not installed")


def test_dlibs_weights_come_with_a_package(published: str) -> None:
    found = build_face_embedder(Choice("dlib_resnet"))
    assert found.licence == "CC0-1.0"
    assert found.allows_commercial_use
    assert found.weights == face_models.DLIB_WEIGHTS[1] == files.digest(Path(published))
    assert (found.dimensions, found.size, found.normalisation, found.metric) == (
        128,
        (150, 150),
        "none",
        "euclidean",
    )
    assert found.template == DLIB.template
    assert not found.notes
    assert not found.module.training
    own = build_face_embedder(Choice("dlib_resnet", weights=published))
    assert (own.licence, own.weights) == (found.licence, found.weights)


def test_without_the_package_the_command_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(face_models, "is_installed", lambda name: False)
    with pytest.raises(UserError, match="pip install --no-deps face-recognition-models==0.3.0"):
        build_face_embedder(Choice("dlib_resnet"))


def test_another_file_than_the_published_one_is_refused(published: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task\.sha256"):
        build_face_embedder(Choice("dlib_resnet", sha256="0" * 64))
    cut, other = tmp_path / "cut.dat", tmp_path / "other.dat"
    cut.write_bytes(Path(published).read_bytes()[:-1])
    other.write_bytes(dlib_written.layers().file())
    with pytest.raises(UserError, match="it is cut off"):
        build_face_embedder(Choice("dlib_resnet", weights=str(cut)))
    with pytest.raises(UserError, match="but not the one of dlib_face_recognition_resnet_model_v1"):
        build_face_embedder(Choice("dlib_resnet", weights=str(other)))


def test_dlibs_network_loads_a_state_dict_of_ours(tmp_path: Path) -> None:
    module = DlibResNet()
    save_file(module.state_dict(), tmp_path / "trained.safetensors")
    found = build_face_embedder(Choice("dlib_resnet", weights=str(tmp_path / "trained.safetensors")))
    assert all(torch.equal(one, found.module.state_dict()[name]) for name, one in module.state_dict().items())
    assert found.licence is None


@pytest.mark.slow
@pytest.mark.parametrize(("people", "data"), [(8_631, "VGGFace2"), (10_575, "CASIA-WebFace")])
def test_published_state_dicts_of_facenet_load_without_their_classes(
    people: int, data: str, tmp_path: Path
) -> None:
    module = InceptionResnetV1()
    classes = {"logits.weight": torch.zeros(people, 512), "logits.bias": torch.zeros(people)}
    torch.save({**module.state_dict(), **classes}, tmp_path / "published.pt")
    found = build_face_embedder(Choice("facenet", weights=str(tmp_path / "published.pt")))
    assert all(torch.equal(one, found.module.state_dict()[name]) for name, one in module.state_dict().items())
    assert (found.dimensions, found.size, found.normalisation) == (512, (160, 160), "l2")
    assert not found.allows_commercial_use
    assert data in (found.licence or "")
    assert f"facenet is not for commercial use: licence MIT, trained on {data}" in found.notes[-1]


def test_a_file_that_does_not_say_its_licence_may_be_a_published_one(
    small_iresnet: nn.Module, tmp_path: Path
) -> None:
    torch.save(small_iresnet.state_dict(), tmp_path / "backbone.pth")
    found = build_face_embedder(Choice("iresnet50", weights=str(tmp_path / "backbone.pth")))
    assert not found.allows_commercial_use
    assert "iresnet50 is not for commercial use: licence unknown; insightface's files" in found.notes[0]
    assert (found.dimensions, found.size, found.metric) == (512, (112, 112), "cosine")
    with pytest.raises(UserError, match=r"does not fit IResNet"):
        build_face_embedder(Choice("iresnet100", weights=str(tmp_path / "backbone.pth")))


def test_random_weights_follow_from_their_seed(small_iresnet: nn.Module) -> None:
    chips = torch.randn(1, 3, 112, 112)
    one, same, other = (
        build_face_embedder(Choice("iresnet50", weights=f"random:{seed}")) for seed in (3, 3, 4)
    )
    assert torch.equal(one.module(chips), same.module(chips))
    assert not torch.equal(one.module(chips), other.module(chips))
    assert (one.weights, one.allows_commercial_use, one.notes) == ("random:3", True, ())


@pytest.mark.parametrize("model", ["facenet", "iresnet50", "iresnet100"])
def test_networks_without_weights_of_their_own_say_what_to_give(model: str) -> None:
    said = rf"task\.embedder\.weights: {model} has no weights 'DEFAULT' of its own\n  what to do: give a file"
    with pytest.raises(UserError, match=said):
        build_face_embedder(Choice(model))


def test_an_unknown_name_proposes_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean iresnet50"):
        build_face_embedder(Choice("iresnet5"))
    assert names() == [*face_models.OWN] == ["dlib_resnet", "facenet", "iresnet50", "iresnet100"]


class Mean(nn.Module):
    """Gives the three mean colours, or what ``spoil`` makes of them."""

    def __init__(self, spoil: Callable[[torch.Tensor], object] = lambda found: found) -> None:
        super().__init__()
        self.spoil = spoil

    def forward(self, chips: torch.Tensor) -> object:
        return self.spoil(chips.mean((2, 3)))


def mine() -> FaceEmbedder:
    """Return an embedder as another package makes one."""
    return embedder(Mean(), 3, ARCFACE)


def test_a_function_of_another_package_gives_an_embedder() -> None:
    found = build_face_embedder(Choice(f"{__name__}:mine", weights="random"))
    assert found.template == ARCFACE.template
    assert found.weights == "random:0"
    with pytest.raises(
        UserError, match=r"expected .*dlib_written:layers to return a cnnbatch.models.FaceEmbedder"
    ):
        build_face_embedder(Choice("tests.dlib_written:layers", weights="random"))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda found: found[:, :2], r"expected to give a vector of 3 numbers .* got shape \(1, 2\)"),
        (lambda found: [found], "got list"),
        (lambda found: found / 0, "infinite or undefined numbers"),
        (lambda found: found @ found, "refuses a chip of 112 x 112 pixels"),
    ],
)
def test_outputs_that_are_no_embeddings(
    spoil: Callable[[torch.Tensor], object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.mine", lambda: embedder(Mean(spoil), 3, ARCFACE))
    with pytest.raises(UserError, match=said):
        build_face_embedder(Choice(f"{__name__}:mine", weights="random"))


def test_a_job_replaces_how_chips_are_normalised() -> None:
    choice = partial(Choice, f"{__name__}:mine", weights="random")
    found = build_face_embedder(
        choice(preprocessing={"mean": [1, 2, 3], "channels": "BGR", "metric": "euclidean", "mirror": True})
    )
    assert (found.mean, found.channels, found.metric) == ((1.0, 2.0, 3.0), "BGR", "euclidean")
    assert found.mirror
    for field, value, said in [
        ("std", 1, "expected three numbers"),
        ("metric", "manhattan", "expected euclidean or cosine, got 'manhattan'"),
        ("mirror", 1, "expected true or false, got 1"),
        ("chanels", "RGB", "did you mean channels"),
    ]:
        with pytest.raises(UserError, match=said):
            build_face_embedder(choice(preprocessing={field: value}))


# ---- ONNX files ----


class Small(nn.Module):
    """An embedder of ``dimensions`` numbers, small enough to be exported in a moment."""

    def __init__(self, dimensions: int = 16) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, 2), nn.Linear(4, dimensions)

    def forward(self, chips: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.fc(self.conv(chips).mean((2, 3)))
        return found


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    pytest.importorskip("onnxruntime", reason="ONNX Runtime, which runs the files, is not installed")
    from tests.models.onnx.test_onnx import export

    def write(module: nn.Module, side: int, **options: object) -> Path:
        path = tmp_path_factory.mktemp("onnx") / "faces.onnx"
        return export(module.requires_grad_(False), path, torch.zeros(2, 3, side, side), **options)

    return write


FREE = {"dynamic_axes": {"images": {0: "n"}}}


def onnx(path: Path, adapter: str | None, **more: object) -> FaceEmbedder:
    return build_face_embedder(Choice("onnx", weights=str(path), adapter=adapter, preprocessing=more))


@pytest.mark.parametrize("options", [FREE, {}])
def test_an_onnx_file_gives_what_torch_gives(
    exported: Callable[..., Path], options: dict[str, object]
) -> None:
    module = Small()
    path = exported(module, 112, **options)
    found = onnx(path, "arcface")
    chips = torch.randn(3, 3, 112, 112)
    assert torch.allclose(found.module(chips), module(chips), atol=1e-5)
    assert (found.dimensions, found.metric, found.template) == (16, "cosine", ARCFACE.template)
    assert found.weights == files.digest(path)
    assert onnx(path, "arcface", normalisation="none").normalisation == "none"


def test_an_onnx_file_of_another_size_is_refused(exported: Callable[..., Path]) -> None:
    path = exported(Small(), 160, **FREE)
    with pytest.raises(
        UserError,
        match=r"takes chips of 160 x 160 pixels, but arcface has .* 112 x 112\n.*facenet \(160 x 160\)",
    ):
        onnx(path, "arcface")
    assert onnx(path, "facenet").size == FACENET.size
    free = {"dynamic_axes": {"images": {0: "n", 2: "h", 3: "w"}}}
    assert onnx(exported(Small(), 64, **free), "dlib").size == (150, 150)


def test_an_onnx_file_needs_a_convention(exported: Callable[..., Path]) -> None:
    path = exported(Small(), 112)
    for adapter in (None, "yolo"):
        with pytest.raises(UserError, match=r"task\.adapter: expected arcface, dlib, facenet, got"):
            onnx(path, adapter)


class Two(Small):
    """Gives something beside its embedding."""

    def forward(self, chips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        return super().forward(chips), chips.mean((1, 2, 3))


class Maps(Small):
    """Gives more numbers than an embedding has."""

    def forward(self, chips: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.conv(chips).repeat(1, 8, 1, 1)
        return found


@pytest.mark.parametrize("module", [Two(), Maps()])
def test_an_onnx_file_that_gives_other_than_a_vector(
    module: nn.Module, exported: Callable[..., Path]
) -> None:
    with pytest.raises(UserError, match="to give one vector of numbers for each chip"):
        onnx(exported(module, 112, **FREE), "arcface")


class Pixels(nn.Module):
    """Takes pixels as they are."""

    def forward(self, chips: torch.Tensor) -> torch.Tensor:
        return chips.float().mean((2, 3))


def test_an_onnx_file_that_takes_pixels_gets_them(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="ONNX Runtime, which runs the files, is not installed")
    from tests.models.onnx.test_onnx import export

    path = export(Pixels(), tmp_path / "pixels.onnx", torch.zeros(1, 3, 112, 112, dtype=torch.uint8))
    found = onnx(path, "arcface")
    chips = torch.randint(0, 256, (1, 3, 112, 112)).float()
    mean, std = (torch.tensor(one).view(3, 1, 1) for one in (found.mean, found.std))
    assert torch.allclose(found.module((chips - mean) / std), chips.mean((2, 3)), atol=1e-2)
    with pytest.raises(UserError, match=r"task\.embedder\.mean: pixels\.onnx takes pixels"):
        onnx(path, "arcface", mean=[0, 0, 0])
    assert math.isclose(found.std[0], 255)
