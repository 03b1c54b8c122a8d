"""From pictures to embedded faces: found, aligned by their landmarks, and embedded, each step in batches.

The detector is given all pictures of a batch at once, and the embedder the faces of all of them. The detector
stays in float32: in bfloat16 it finds other faces. The job's precision and backend are the embedder's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from cnnbatch.models.face_alignment import aligned, opencv, points_in, transforms_to
from cnnbatch.models.face_conventions import Alignment
from cnnbatch.models.face_detector import FaceDetector, Faces
from cnnbatch.models.face_embedder import FaceEmbedder
from cnnbatch.models.runtime.backends import executable, noise
from cnnbatch.types import Runtime

_FOUND = ("boxes", "scores", "keypoints")
CHIPS = {"cpu": 16, "mps": 64, "cuda": 256}
"""How many faces go through the embedder at once, by the type of the device."""


EmbeddedFaces = Mapping[str, Tensor]
"""The faces of one picture, on the CPU, as `Faces`; and ``embeddings`` [K, D] float32, ``chips`` [K, height,
width, 3] uint8 RGB, as the embedder was given them."""


class FacePipeline:
    """A face detector and a face embedder on one device; ``align`` says how a face becomes a chip."""

    def __init__(
        self,
        detector: FaceDetector,
        embedder: FaceEmbedder,
        runtime: Runtime,
        align: Alignment = "similarity",
    ) -> None:
        self._detector, self._align = detector.module.to(runtime.device), align
        self._chip, self._device = embedder, runtime.device
        if runtime.device == "cpu":
            opencv().setNumThreads(runtime.threads)  # Its own pool has a thread for each core.
        self._count = CHIPS[runtime.device.partition(":")[0]]
        how = replace(runtime, batch=self._count)
        self._embedder = executable(embedder.module, noise(embedder.size), how)
        std, mean = (torch.tensor(one).view(3, 1, 1) for one in (embedder.std, embedder.mean))
        self._factor, self._shift = (1 / std).to(self._device), (-mean / std).to(self._device)

    def __call__(self, pictures: Tensor, sizes: Tensor) -> list[EmbeddedFaces]:
        """Return the faces of each of the ``pictures``, in the detector's order.

        ``pictures`` are uint8 RGB (N, 3, H, W), each at the top left of its canvas, ``sizes`` (N, 2) their
        (height, width). Raises FloatingPointError where float16 was too narrow.
        """
        pictures = pictures.to(self._device, non_blocking=True)
        with torch.inference_mode():
            found = self._detector(pictures, sizes)
            counts = [len(one["scores"]) for one in found]
            chips = self._chips(pictures, sizes, torch.cat([self._points(one) for one in found]), counts)
            embeddings = torch.split(self._embedded(chips).cpu(), counts)
            return [
                {**{name: one[name].cpu() for name in _FOUND}, "embeddings": vectors, "chips": cut}
                for one, vectors, cut in zip(found, embeddings, torch.split(chips.cpu(), counts), strict=True)
            ]

    def _points(self, faces: Faces) -> Tensor:
        """Return the points (K, 5, 2) that are led to the template."""
        return faces["keypoints"] if self._align == "similarity" else points_in(faces["boxes"])

    def _chips(self, pictures: Tensor, sizes: Tensor, points: Tensor, counts: list[int]) -> Tensor:
        """Return the chips of all faces, uint8 (K, height, width, 3); each picture has ``counts`` of them."""
        transforms = transforms_to(self._chip.template, points.cpu())
        inside = [
            picture[:, :height, :width]
            for picture, (height, width) in zip(pictures, sizes.tolist(), strict=True)
        ]
        return aligned(inside, transforms, counts, self._chip.size)

    def _embedded(self, chips: Tensor) -> Tensor:
        """Return the embeddings (K, D) of ``chips`` (K, height, width, 3), float32, normalised."""
        found = [
            self._outputs(self._normalized(some)) for some in torch.split(chips, self._count) if len(some)
        ]
        vectors = torch.cat(found) if found else torch.zeros(0, self._chip.dimensions)
        if not bool(vectors.isfinite().all()):
            raise FloatingPointError("embeddings that are no numbers; use compute.precision=bf16 or fp32")
        return functional.normalize(vectors, dim=1) if self._chip.normalisation == "l2" else vectors

    def _outputs(self, inputs: Tensor) -> Tensor:
        """Return what the embedder gives, float32 (K, D); with ``mirror`` the mean over both directions."""
        found: Tensor = self._embedder(inputs).float()
        return (found + self._embedder(inputs.flip(3)).float()) / 2 if self._chip.mirror else found

    def _normalized(self, chips: Tensor) -> Tensor:
        """Return the embedder's input (K, 3, height, width), in memory as (K, height, width, 3)."""
        pixels = chips.permute(0, 3, 1, 2)
        if self._chip.channels == "BGR":
            pixels = pixels.flip(1)
        values = torch.addcmul(self._shift, pixels.float(), self._factor)
        return values.to(self._embedder.dtype, memory_format=torch.channels_last)
