"""A network that was trained on aligned faces, as what embeds faces that are aligned in the same way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms.v2.functional import center_crop

from cnnbatch.errors import UserError
from cnnbatch.models.choice import Choice
from cnnbatch.models.embedding_network import build_embedding, parted
from cnnbatch.models.face_conventions import CONVENTIONS
from cnnbatch.models.face_embedder import FaceEmbedder
from cnnbatch.models.preprocessing import Preprocessing

_SMOOTH = ("bilinear", "bicubic")


def is_trained(preprocessing: Mapping[str, object]) -> bool:
    """Say whether a choice's fields are those of a folder that the task `embed` was trained into."""
    return {"resize", "crop", "dimensions", "template"} <= preprocessing.keys()


def trained_face_embedder(choice: Choice) -> FaceEmbedder:
    """Return the network of a folder with its weights; its chips are those of the convention it learned from.

    Raises:
        UserError: the folder does not say how its faces were aligned.
    """
    preprocessing, how = parted(choice)
    mirror = bool(preprocessing.pop("mirror", False))
    if how.template is None:
        raise UserError(
            "task.embedder: the folder does not say how the faces that it was trained on were aligned\n"
            "  what to do: train it on chips (cnnbatch export --format chips) with task.template=dlib, "
            "arcface or facenet: the convention of the embedder that they were cut for"
        )
    network = build_embedding(replace(choice, preprocessing=preprocessing), how, trained=True)
    convention, pictures = CONVENTIONS[how.template], network.preprocessing
    return FaceEmbedder(
        module=_OfChips(network.module, pictures, convention.size),
        template=convention.template,
        size=convention.size,
        dimensions=network.dimensions,
        mean=_in_bytes(pictures.mean),
        std=_in_bytes(pictures.std),
        normalisation=how.normalisation,
        metric=how.metric,
        mirror=mirror,
        licence=network.licence,
        weights=network.weights,
        library=network.library,
        notes=network.notes,
    )


def _in_bytes(colour: tuple[float, float, float]) -> tuple[float, float, float]:
    red, green, blue = (255 * value for value in colour)
    return red, green, blue


class _OfChips(nn.Module):
    """A network behind what its training did to a picture: resized, and cut from the centre."""

    def __init__(self, network: nn.Module, how: Preprocessing, size: tuple[int, int]) -> None:
        super().__init__()
        self.network = network
        self._size, self._crop = list(how.resized(size)), list(how.crop)
        self._mode = how.interpolation

    def forward(self, chips: Tensor) -> Tensor:
        """Return embeddings (N, D) of normalised chips (N, 3, height, width)."""
        smooth = {"antialias": True, "align_corners": False} if self._mode in _SMOOTH else {}
        resized = functional.interpolate(chips, self._size, mode=self._mode, **smooth)
        found: Tensor = self.network(center_crop(resized, self._crop))
        return found
