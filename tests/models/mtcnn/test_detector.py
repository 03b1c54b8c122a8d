"""MTCNN finds facenet-pytorch's faces, the same in any batch and on both ways of making tables."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image as Pictures
from torch import Tensor
from torchvision.ops import box_iou

from cnnbatch.models import summed_areas
from cnnbatch.models.choice import Choice
from cnnbatch.models.face_detector import Faces
from cnnbatch.models.face_detectors import build_face_detector
from cnnbatch.models.mtcnn import detector
from cnnbatch.models.mtcnn.detector import MTCNN
from cnnbatch.models.network import seeded


@pytest.fixture(scope="module")
def theirs() -> Any:
    package = pytest.importorskip(
        "facenet_pytorch", reason="facenet-pytorch, which has the weights, is missing"
    )
    return package.MTCNN(keep_all=True, select_largest=False)


@pytest.fixture(scope="module")
def ours(theirs: Any) -> MTCNN:
    module = build_face_detector(Choice("mtcnn")).module
    assert isinstance(module, MTCNN)
    return module


def photograph(name: str) -> NDArray[np.uint8]:
    """Return one of scikit-image's pictures."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        pytest.skip("scikit-image, which has the photographs, is not installed")
    return opened(Path(spec.origin).parent / "data" / name)


def opened(path: Path) -> NDArray[np.uint8]:
    return np.asarray(Pictures.open(path).convert("RGB"))


def batch_of(pictures: Sequence[NDArray[np.uint8]]) -> tuple[Tensor, Tensor]:
    """Return pictures at the top left of canvases full of noise, with their sizes."""
    sizes = torch.tensor([one.shape[:2] for one in pictures])
    height, width = sizes.amax(0).tolist()
    with seeded(0):
        canvases = torch.randint(0, 256, (len(pictures), 3, height, width), dtype=torch.uint8)
    for canvas, one in zip(canvases, pictures, strict=True):
        canvas[:, : one.shape[0], : one.shape[1]] = torch.tensor(one).permute(2, 0, 1)
    return canvases, sizes


def found_in(module: MTCNN, pictures: Sequence[NDArray[np.uint8]]) -> list[Faces]:
    with torch.inference_mode():
        found: list[Faces] = module(*batch_of(pictures))
    return found


def agree(ours: Faces, theirs: tuple[Any, Any, Any]) -> int:
    """Insist on the same faces, and return how many there are."""
    boxes, scores, points = (
        np.zeros((0, *shape), np.float32) if theirs[0] is None else np.asarray(one, np.float32)
        for one, shape in zip(theirs, ((4,), (), (5, 2)), strict=True)
    )
    assert len(ours["scores"]) == len(boxes)
    if not len(boxes):
        return 0
    best, at = box_iou(torch.from_numpy(boxes), ours["boxes"]).max(1)
    assert sorted(at.tolist()) == list(range(len(boxes)))
    assert float(best.min()) >= 0.999
    assert (ours["keypoints"][at] - torch.from_numpy(points)).abs().max() <= 0.05
    assert (ours["scores"][at] - torch.from_numpy(scores)).abs().max() <= 1e-4
    assert ours["scores"].diff().max() <= 0 if len(boxes) > 1 else True
    return len(boxes)


def same(some: Sequence[Faces], others: Sequence[Faces]) -> None:
    """Insist on the same faces, to what float32 tells apart: scores to 1e-6, pixels to 1e-4."""
    for one, other in zip(some, others, strict=True):
        for name in ("boxes", "scores", "keypoints"):
            atol = 1e-6 if name == "scores" else 1e-4
            torch.testing.assert_close(one[name], other[name], rtol=0, atol=atol)


def crowd(rows: int, columns: int) -> NDArray[np.uint8]:
    """Return a picture of the same face again and again, each 80 x 80 pixels."""
    face = Pictures.fromarray(photograph("astronaut.png")[0:200, 130:330]).resize((80, 80))
    return np.tile(np.asarray(face), (rows, columns, 1))


# --- The same faces as facenet-pytorch ---


@pytest.mark.parametrize("min_size", [20, 43])
def test_an_astronaut_is_found_as_facenet_pytorch_finds_her(ours: MTCNN, theirs: Any, min_size: int) -> None:
    picture = photograph("astronaut.png")[:300, :401]
    module = MTCNN(min_size)
    module.load_state_dict(ours.state_dict())
    theirs.min_face_size = min_size
    try:
        assert agree(found_in(module, [picture])[0], theirs.detect(picture, landmarks=True)) == 1
    finally:
        theirs.min_face_size = 20


@pytest.mark.slow
def test_forty_faces_are_forty(ours: MTCNN, theirs: Any) -> None:
    picture = crowd(5, 8)
    (found,) = found_in(ours, [picture])
    assert agree(found, theirs.detect(picture, landmarks=True)) == 40
    few = MTCNN(max_faces=7)
    few.load_state_dict(ours.state_dict())
    same(found_in(few, [picture]), [{name: value[:7] for name, value in found.items()}])


@pytest.mark.slow
@pytest.mark.parametrize("turns", [1, 2])
def test_a_turned_face_is_whatever_facenet_pytorch_finds(ours: MTCNN, theirs: Any, turns: int) -> None:
    picture = np.rot90(photograph("astronaut.png")[:256, 100:400], turns).copy()
    agree(found_in(ours, [picture])[0], theirs.detect(picture, landmarks=True))


def test_made_weights_and_smooth_noise_give_facenet_pytorchs_boxes(theirs: Any) -> None:
    """Weights drawn at random, with heads that let a part of all windows through each network."""
    functions = pytest.importorskip("facenet_pytorch.models.utils.detect_face")
    networks = pytest.importorskip("facenet_pytorch.models.mtcnn")
    module = made()
    nets = networks.PNet(False), networks.RNet(False), networks.ONet(False)
    for net, own in zip(nets, (module.pnet, module.rnet, module.onet), strict=True):
        net.load_state_dict(own.state_dict())
    pictures = [smooth(seed, 61, 74) for seed in range(4)]
    counts = []
    for picture, faces in zip(pictures, found_in(module, pictures), strict=True):
        with torch.no_grad():
            boxes, points = functions.detect_face(
                picture, 20, *(net.eval() for net in nets), [0.6, 0.7, 0.7], 0.709, torch.device("cpu")
            )
        counts.append(agree(faces, (boxes[0][:, :4], boxes[0][:, 4], points[0])))
    assert min(counts) >= 2


def made() -> MTCNN:
    with seeded(1):
        module = MTCNN()
        heads = module.pnet.conv4_1, module.rnet.dense5_1, module.onet.dense6_1
        for head, factor in zip(heads, (60, 150, 600), strict=True):
            parameters = dict(head.named_parameters())
            with torch.no_grad():
                parameters["weight"].mul_(factor)
                parameters["bias"].zero_()
    return module.eval()


def smooth(seed: int, height: int, width: int) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 8, 3), dtype=np.uint8)
    return np.asarray(Pictures.fromarray(coarse).resize((width, height), Pictures.Resampling.BICUBIC))


@pytest.mark.slow
@pytest.mark.parametrize(("folder", "every", "least"), [("lfw/lfw", 13, 40), ("coco-sample/images", 4, 10)])
def test_real_pictures_have_facenet_pytorchs_faces(
    ours: MTCNN, theirs: Any, shared: Path, folder: str, every: int, least: int
) -> None:
    paths = sorted((shared / "data" / folder).rglob("*.jpg"))[::every]
    if not paths:
        pytest.skip(f"no pictures in {folder} beside the checkout")
    pictures = [opened(path) for path in paths]
    found = [one for few in range(0, len(pictures), 10) for one in found_in(ours, pictures[few : few + 10])]
    counts = [
        agree(*both)
        for both in zip(found, (theirs.detect(one, landmarks=True) for one in pictures), strict=True)
    ]
    assert sum(counts) >= least


# --- Batches, bands and tables ---


def test_a_face_is_the_same_in_any_batch(ours: MTCNN) -> None:
    whole = photograph("astronaut.png")
    pictures = [
        whole[:220, 100:350],
        whole[:230, 90:330],
        whole[:220, 90:340],
        whole[280:, :60],
        whole[:9, :9],
    ]
    alone = [found_in(ours, [one])[0] for one in pictures]
    assert [len(one["scores"]) for one in alone] == [1, 1, 1, 0, 0]
    same(found_in(ours, pictures), alone)
    same(found_in(ours, pictures[::-1])[::-1], alone)


def test_bands_chunks_and_groups_change_no_face(ours: MTCNN, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [photograph("astronaut.png")[:240, 90:350], crowd(1, 2)]
    whole = found_in(ours, pictures)
    monkeypatch.setattr(detector, "_PASS_PIXELS", 3000)
    monkeypatch.setattr(detector, "_GROUP_PIXELS", 1)
    monkeypatch.setattr(detector, "_R_CROPS", 5)
    monkeypatch.setattr(detector, "_O_CROPS", 3)
    assert [len(one["scores"]) for one in whole] == [1, 2]
    same(found_in(ours, pictures), whole)


def test_tables_made_by_torch_give_the_same_faces(ours: MTCNN, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [photograph("astronaut.png")[:240, 90:350], crowd(1, 2)]
    by_opencv = found_in(ours, pictures)
    monkeypatch.setattr(detector, "summed_areas", summed_areas.DeviceAreas)
    same(found_in(ours, pictures), by_opencv)


def test_tf32_is_off_while_faces_are_looked_for_only(ours: MTCNN, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def watched(pictures: Sequence[Tensor]) -> list[Faces]:
        seen.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
        return [dict[str, Tensor]() for _ in pictures]

    monkeypatch.setattr(ours, "_faces", watched)
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        for allowed in (True, False):
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
            found_in(ours, [np.zeros((30, 30, 3), np.uint8)])
            assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == allowed
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    assert seen == [(False, False)] * 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_finds_the_same_faces(ours: MTCNN) -> None:
    pictures = [photograph("astronaut.png")[:240, 90:350], crowd(1, 2)]
    module = MTCNN()
    module.load_state_dict(ours.state_dict())
    found = found_in(module.cuda(), pictures)
    for one, other in zip(found, found_in(ours, pictures), strict=True):
        torch.testing.assert_close(one["boxes"], other["boxes"], rtol=0, atol=0.05)
        torch.testing.assert_close(one["scores"], other["scores"], rtol=0, atol=1e-4)


@pytest.mark.slow
def test_a_face_in_twenty_white_megapixels_is_found(ours: MTCNN) -> None:
    face = photograph("astronaut.png")[:300, 80:380]
    picture = np.full((4000, 5000, 3), 255, np.uint8)
    picture[3600:3900, 4600:4900] = face
    module = MTCNN(min_size=45)
    module.load_state_dict(ours.state_dict())
    (alone,), (found,) = found_in(module, [face]), found_in(module, [picture])
    assert len(found["scores"]) == 1
    shifted = alone["boxes"] + torch.tensor([4600, 3600, 4600, 3600])
    assert float(box_iou(found["boxes"], shifted)) > 0.8


# --- Pictures without faces ---


@pytest.mark.parametrize("size", [(1, 1), (10, 10), (20, 20), (19, 300), (64, 48)])
@pytest.mark.parametrize("value", [0, 255])
def test_a_picture_of_one_colour_has_no_face(ours: MTCNN, size: tuple[int, int], value: int) -> None:
    (found,) = found_in(ours, [np.full((*size, 3), value, np.uint8)])
    assert {name: tuple(one.shape) for name, one in found.items()} == {
        "boxes": (0, 4),
        "scores": (0,),
        "keypoints": (0, 5, 2),
    }


@pytest.mark.parametrize("passing", ["pnet", "rnet", "onet"])
def test_nothing_left_after_a_network_is_no_face(ours: MTCNN, passing: str) -> None:
    module = MTCNN()
    module.load_state_dict(ours.state_dict())
    head = {"pnet": module.pnet.conv4_1, "rnet": module.rnet.dense5_1, "onet": module.onet.dense6_1}[passing]
    with torch.no_grad():
        dict(head.named_parameters())["bias"].copy_(torch.tensor([1e4, -1e4]))
    picture = photograph("astronaut.png")[:220, 100:350]
    assert [len(one["scores"]) for one in found_in(module, [picture])] == [0]


def test_a_batch_of_no_pictures_has_no_answers(ours: MTCNN) -> None:
    assert ours(torch.zeros(0, 3, 30, 30, dtype=torch.uint8), torch.zeros(0, 2, dtype=torch.int64)) == []
