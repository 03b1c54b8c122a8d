"""Face detectors by name: which weights they get, and what is said where something does not fit."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.models import face_detectors
from cnnbatch.models.choice import Choice
from cnnbatch.models.face_detector import FaceDetector
from cnnbatch.models.face_detectors import build_face_detector
from cnnbatch.models.mtcnn import published
from cnnbatch.models.mtcnn.detector import MTCNN
from cnnbatch.storage.package import is_installed

needs_weights = pytest.mark.skipif(
    not is_installed("facenet_pytorch"), reason="facenet-pytorch, which has the weights, is not installed"
)


@needs_weights
def test_mtcnn_has_its_published_weights_their_licence_and_one_identity() -> None:
    found = build_face_detector(Choice("mtcnn"))
    digests = "".join(f"{sha256}\n" for _, sha256 in published.FILES.values())
    assert found.weights == hashlib.sha256(digests.encode()).hexdigest()
    assert found.licence == "MIT"
    assert not any(one.requires_grad for one in found.module.parameters())
    again = build_face_detector(Choice("mtcnn", sha256=found.weights.upper()))
    assert again.weights == found.weights


@needs_weights
def test_another_file_than_the_published_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    address, _ = published.FILES["rnet"]
    monkeypatch.setitem(published.FILES, "rnet", (address, "0" * 64))
    with pytest.raises(EnvironmentFault, match=r"what came is not the published file.*\n.*rnet"):
        build_face_detector(Choice("mtcnn"))


@needs_weights
def test_another_hash_of_the_set_is_refused() -> None:
    with pytest.raises(UserError, match="mtcnn's published weights have"):
        build_face_detector(Choice("mtcnn", sha256="0" * 64))


def test_where_the_package_lacks_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "is_installed", lambda name: False)
    with pytest.raises(UserError, match="pip install --no-deps facenet-pytorch==2.6.0"):
        build_face_detector(Choice("mtcnn"))


def test_random_weights_follow_from_their_seed() -> None:
    one, same, other = (build_face_detector(Choice("mtcnn", f"random:{seed}")) for seed in (3, 3, 4))
    assert one.weights == "random:3"
    states = [found.module.state_dict() for found in (one, same, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["pnet.conv1.weight"], states[2]["pnet.conv1.weight"])


def test_one_file_may_have_all_three_networks(tmp_path: Path) -> None:
    module = MTCNN()
    path = tmp_path / "mine.safetensors"
    save_file({name: one.contiguous() for name, one in module.state_dict().items()}, path)
    found = build_face_detector(Choice("mtcnn", str(path)))
    assert found.weights == hashlib.sha256(path.read_bytes()).hexdigest()
    assert torch.equal(found.module.state_dict()["onet.dense6_3.bias"], module.onet.dense6_3.bias)
    assert found.licence is None


def test_weights_of_one_network_are_not_those_of_three(tmp_path: Path) -> None:
    path = tmp_path / "pnet.pt"
    torch.save(MTCNN().pnet.state_dict(), path)
    with pytest.raises(UserError, match=r"does not fit MTCNN(.|\n)*missing"):
        build_face_detector(Choice("mtcnn", str(path)))


def test_an_unknown_name_proposes_the_nearest() -> None:
    with pytest.raises(UserError, match=r"no face detector is called 'mtcn'.*mtcnn"):
        build_face_detector(Choice("mtcn"))
    assert face_detectors.names() == ["mtcnn"]


# --- A function of another package ---


class _Fixed(nn.Module):
    """Finds one face wherever it looks."""

    def forward(self, pictures: Tensor, sizes: Tensor) -> list[dict[str, Tensor]]:
        return [
            {"boxes": torch.ones(1, 4), "scores": torch.ones(1), "keypoints": torch.ones(1, 5, 2)}
            for _ in sizes
        ]


class _WithoutKeypoints(nn.Module):
    def forward(self, pictures: Tensor, sizes: Tensor) -> list[dict[str, Tensor]]:
        return [{"boxes": torch.ones(1, 4), "scores": torch.ones(1)} for _ in sizes]


class _Refusing(nn.Module):
    def forward(self, pictures: Tensor, sizes: Tensor) -> list[dict[str, Tensor]]:
        raise ValueError("only squares")


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch) -> Callable[[nn.Module], Choice]:
    def choose(module: nn.Module) -> Choice:
        package = ModuleType("mine")
        package.build = lambda: FaceDetector(module, weights="abc")  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "mine", package)
        return Choice("mine:build")

    return choose


def test_a_function_of_another_package_may_give_one(mine: Callable[[nn.Module], Choice]) -> None:
    found = build_face_detector(mine(_Fixed()))
    assert (found.weights, found.library) == ("abc", "mine")


def test_what_gives_no_keypoints_is_refused(mine: Callable[[nn.Module], Choice]) -> None:
    with pytest.raises(UserError, match=r"expected to give for each picture boxes .*keypoints"):
        build_face_detector(mine(_WithoutKeypoints()))


def test_what_refuses_a_picture_is_said(mine: Callable[[nn.Module], Choice]) -> None:
    with pytest.raises(UserError, match="refuses a picture of 64 x 96 pixels: only squares"):
        build_face_detector(mine(_Refusing()))
