"""A detector that sees large pictures in small: what it is given, and where its faces lie afterwards."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cnnbatch.models.face_detector import Faces
from cnnbatch.models.face_detector_scaling import ScaledDetector
from tests.tiny_faces import LANDMARKS, Squares, picture


class Quarter(nn.Module):
    """Remembers what it was given, and finds the upper left quarter of every picture, eye at its corner."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, pictures: Tensor, sizes: Tensor) -> list[Faces]:
        found: list[Faces] = []
        for one, (height, width) in zip(pictures, sizes.tolist(), strict=True):
            self.seen.append(one[:, :height, :width])
            corner = torch.tensor([width / 2, height / 2])
            points = torch.zeros(1, 5, 2) - 0.5
            points[0, 0] = corner - 0.5
            found.append(
                {
                    "boxes": torch.cat([torch.zeros(2), corner])[None],
                    "scores": torch.ones(1),
                    "keypoints": points,
                }
            )
        return found


def batch_of(*sizes: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return pictures of noise at the top left of canvases of noise."""
    draw = torch.Generator().manual_seed(0)
    height, width = (max(sides) for sides in zip(*sizes, strict=True))
    shape = (len(sizes), 3, height + 7, width + 9)
    return torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8), torch.tensor(sizes)


def test_large_pictures_are_seen_in_small_and_their_faces_lie_in_the_original() -> None:
    inner = Quarter()
    pictures, sizes = batch_of((300, 401), (40, 50), (64, 48), (3, 1000))
    found = ScaledDetector(inner, 64)(pictures, sizes)
    assert [tuple(one.shape[1:]) for one in inner.seen] == [(48, 64), (40, 50), (64, 48), (1, 64)]
    for place in (1, 2):
        height, width = sizes[place].tolist()
        assert torch.equal(inner.seen[place], pictures[place, :, :height, :width])
    for one, (height, width) in zip(found, sizes.tolist(), strict=True):
        torch.testing.assert_close(one["boxes"], torch.tensor([[0, 0, width / 2, height / 2]]))
        torch.testing.assert_close(one["keypoints"][0, 0], torch.tensor([width / 2, height / 2]) - 0.5)
        torch.testing.assert_close(one["keypoints"][0, 1], torch.full((2,), -0.5))


def test_a_picture_is_seen_the_same_whatever_is_beside_it() -> None:
    alone, together = Quarter(), Quarter()
    pictures, sizes = batch_of((90, 120), (200, 100), (20, 30))
    ScaledDetector(together, 50)(pictures, sizes)
    for picture_, size in zip(pictures, sizes, strict=True):
        ScaledDetector(alone, 50)(picture_[None], size[None])
    assert all(torch.equal(one, other) for one, other in zip(alone.seen, together.seen, strict=True))


def test_small_pictures_go_through_untouched() -> None:
    pictures, sizes = batch_of((30, 40), (64, 10))
    inner = Quarter()
    ScaledDetector(inner, 64)(pictures, sizes)
    assert all(one.data_ptr() == canvas.data_ptr() for one, canvas in zip(inner.seen, pictures, strict=True))


def test_a_square_is_found_where_it_is() -> None:
    whole = torch.from_numpy(picture((400, 600), [("ann", 200, 100, 120)])).permute(2, 0, 1)[None]
    (found,) = ScaledDetector(Squares(), 150)(whole, torch.tensor([[400, 600]]))
    expected = torch.tensor([[200.0, 100, 320, 220]])
    assert (found["boxes"] - expected).abs().max() <= 8  # A pixel of the small one, and what it blurs.
    points = expected[:, None, :2] + torch.tensor(LANDMARKS) * 120 - 0.5
    assert (found["keypoints"] - points).abs().max() <= 8
