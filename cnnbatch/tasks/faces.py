"""Finds the faces in a picture, aligns them by five landmarks, and embeds them.

The pipeline is one forward pass to the worker: a picture goes in whole, so that its faces are cut from all of
its pixels. The price: canvases of a few shapes, which hold some black beside the picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from cnnbatch.errors import UserError
from cnnbatch.models.face_conventions import Alignment
from cnnbatch.models.trained_files import TrainedInput
from cnnbatch.output.assets import as_asset
from cnnbatch.output.embeddings import EmbeddingSpace, Metric, Normalisation
from cnnbatch.tasks import Task
from cnnbatch.tasks.embed import EmbeddingInput
from cnnbatch.tasks.networks import fields_of
from cnnbatch.tasks.weighted import Side, WeightedTask, lists_of
from cnnbatch.truth import BOX, FACE, KEYPOINT
from cnnbatch.truth.classes import ModelClasses
from cnnbatch.types import Backend, Image, Precision, Prepared, Runtime

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from cnnbatch.models import Choice
    from cnnbatch.models.face_detector import FaceDetector
    from cnnbatch.models.face_embedder import FaceEmbedder

Colour = Annotated[tuple[float, float, float], Field(strict=False)]

QUALITY = pa.struct([(name, pa.float32()) for name in ("size", "blur", "yaw", "pitch", "roll")])
"""``size`` are pixels of the box's shorter side, ``blur`` goes from 0 (sharp) to 1, the angles are degrees;
see `cnnbatch.images.face_quality`."""

OUTPUTS = ("boxes", "scores", "keypoints", "embeddings", "chips")
_CANVAS = 128
"""Pixels of which a canvas's sides are multiples."""
_JPEG_QUALITY = 95


class FaceDetection(WeightedTask):
    """What finds the faces and their landmarks."""

    name: str = "face_detector"
    model: str = "mtcnn"
    adapters: ClassVar[tuple[str, ...]] = ("yunet", "retinaface", "scrfd")
    size: Side | None = None
    """How many pixels the longer side of a picture has at most when faces are looked for: a larger one is
    scaled down for the detector alone, and ``min_size`` counts the pixels that are left. Without it, all."""


class FaceEmbedding(WeightedTask):
    """What gives a vector to an aligned face."""

    trained_to: ClassVar[str] = "embed"
    trained_input: ClassVar[type[TrainedInput]] = EmbeddingInput

    name: str = "face_embedder"
    model: str = "dlib_resnet"
    adapters: ClassVar[tuple[str, ...]] = ("arcface", "dlib", "facenet")
    mean: Colour | None = None
    """Of an ONNX file, where it is not its convention's: what is subtracted from values of 0 to 255."""
    std: Colour | None = None
    """The same: what the rest is divided by."""
    channels: Literal["RGB", "BGR"] | None = None
    """The same: the order of the colours."""
    normalisation: Normalisation | None = None
    """The same: whether embeddings are divided by their Euclidean length (``l2``)."""
    metric: Metric | None = None
    """The same: by which distance embeddings are compared."""
    mirror: bool = False
    """Whether an embedding is the mean of those of a face and its mirror image, before it is normalised:
    twice the embedder's time for fewer false rejects. It can't be compared with embeddings without."""

    def changes(self) -> dict[str, Any]:
        """Return the fields of the embedder that the job replaces."""
        named = self.model_dump(include={"mean", "std", "channels", "normalisation", "metric"})
        mirror = {"mirror": True} if self.mirror else {}
        return {name: value for name, value in named.items() if value is not None} | mirror

    def choice(self, preprocessing: Mapping[str, Any], trains: bool = False) -> Choice:
        """Return which network the job means; a trained folder says itself how its pictures are prepared."""
        found = super().choice(preprocessing, trains)
        given = [name for name in ("mean", "std", "channels") if getattr(self, name) is not None]
        if given and "template" in found.preprocessing:
            raise UserError(
                f"task.embedder.{given[0]}: only for ONNX files; the folder of a training says it itself\n"
                "  what to do: leave it out"
            )
        return found


class Faces(Task):
    """Faces: ``objects`` from left to right, with landmarks, quality and an embedding each."""

    shard_size: ClassVar[int] = 250
    batch: ClassVar[Mapping[str, int]] = {"cuda": 32, "mps": 8, "cpu": 8}
    backends: ClassVar[frozenset[Backend]] = WeightedTask.backends
    precisions: ClassVar[frozenset[Precision]] = WeightedTask.precisions

    name: str = "faces"
    detector: FaceDetection = FaceDetection()
    """The network that finds faces: ``mtcnn``, or an ONNX file (``onnx``) with its ``adapter``."""
    embedder: FaceEmbedding = FaceEmbedding()
    """The network that embeds them (see ``cnnbatch models``), or an ONNX file."""
    min_size: Annotated[int, Field(ge=1, le=16_384)] | None = None
    """The shorter side of the smallest face that is looked for, in pixels; without it, the detector's own."""
    min_score: Annotated[float, Field(ge=0, le=1)] | None = None
    """The least score of a face; without it, the detector's own."""
    max_faces: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """How many faces of a picture are kept, the best; without it, all."""
    align: Alignment = "similarity"
    """How a face is moved to where the embedder wants it: by its landmarks (``similarity``), or not aligned,
    as the square around its ``box`` (to see what alignment is worth)."""
    turn: Annotated[float, Field(ge=-180, le=180, allow_inf_nan=False)] = 0.0
    """By how many degrees a picture is turned clockwise before faces are looked for (to see what that costs).
    Boxes and landmarks are in pixels of the upright original all the same."""
    crop: bool = False
    """Write each face as the embedder was given it, as a JPEG file."""

    def columns(self) -> pa.Schema:
        """Return ``objects``; what only the loaded embedder knows is in the columns of the model."""
        return self.columns_with(pa.field("embedding", pa.list_(pa.float32())))

    def columns_with(self, embedding: pa.Field[Any]) -> pa.Schema:
        """Return ``objects``, from left to right, whose embeddings are as the field says."""
        fields: list[pa.Field[Any]] = [
            pa.field("label", pa.string()),
            pa.field("score", pa.float32()),
            pa.field("box", BOX),
            pa.field("keypoints", pa.list_(KEYPOINT)),
            pa.field("quality", QUALITY),
            embedding,
        ]
        if self.crop:
            fields.append(as_asset(pa.field("crop", pa.large_binary()), "jpg"))
        return pa.schema([pa.field("objects", pa.list_(pa.struct(fields)))])

    def class_names(self) -> Sequence[str]:
        """Return the one class that there is."""
        return (FACE,)

    def load(self, runtime: Runtime) -> FaceModel:
        """Build both networks on ``runtime.device``."""
        return FaceModel(self, *self._networks(), runtime)

    def require_weights(self) -> None:
        """Build both networks, and forget them."""
        self._networks()

    def _networks(self) -> tuple[FaceDetector, FaceEmbedder]:
        from cnnbatch.models.face_detector_scaling import ScaledDetector
        from cnnbatch.models.face_detectors import build_face_detector
        from cnnbatch.models.face_embedders import build_face_embedder

        with fields_of("detector", self.detector):
            detector = build_face_detector(self.detector.choice({}))
        for name in ("min_size", "min_score", "max_faces"):
            if (value := getattr(self, name)) is not None:
                setattr(detector.module, name, value)
        if self.detector.size is not None:
            detector = replace(detector, module=ScaledDetector(detector.module, self.detector.size))
        with fields_of("embedder", self.embedder):
            return detector, build_face_embedder(self.embedder.choice(self.embedder.changes()))


class FaceModel:
    """Both networks on one device; see `cnnbatch.tasks.Model` for the steps."""

    def __init__(self, task: Faces, detector: FaceDetector, embedder: FaceEmbedder, runtime: Runtime) -> None:
        from cnnbatch.models.face_pipeline import FacePipeline

        space = EmbeddingSpace(
            task.embedder.model,
            embedder.weights,
            embedder.dimensions,
            embedder.normalisation,
            embedder.metric,
            embedder.mirror,
        )
        self._task, self.columns = task, task.columns_with(space.field())
        self._pipeline = FacePipeline(detector, embedder, runtime, task.align)
        self.classes = ModelClasses((FACE,))
        self.licence = " and ".join(dict.fromkeys(filter(None, (detector.licence, embedder.licence))))
        self.notes = (*detector.notes, *embedder.notes)
        self.identity: Mapping[str, str] = {
            "weights": f"{detector.weights} and {embedder.weights}",
            "preprocessing": _described(embedder),
            "library": " and ".join(dict.fromkeys(filter(None, (detector.library, embedder.library)))),
        }

    def decode_size(self, size: tuple[int, int]) -> None:
        """Ask for the whole picture, from which the faces are cut."""

    def prepare(self, image: Image) -> Sequence[Prepared]:
        """Return the picture as it is, or turned, uint8 (3, H, W), at the top left of a canvas."""
        from cnnbatch.models.resizing import Resizing, prepare_bytes

        return [prepare_bytes(_turned(image.pixels, self._task.turn), Resizing("own", divisor=_CANVAS))]

    def forward(self, batch: torch.Tensor, sizes: torch.Tensor) -> dict[str, list[Any]]:
        """Return of each picture its faces, as `cnnbatch.models.face_pipeline.EmbeddedFaces` names them.

        ``labels`` [K] are zeros: there is one class.
        """
        found = self._pipeline(batch, sizes)
        outputs = {name: [one[name] for one in found] for name in OUTPUTS}
        return {**outputs, "labels": [(0 * scores).long() for scores in outputs["scores"]]}

    def rows(
        self,
        images: Sequence[Image],
        prepared: Sequence[Sequence[Prepared]],
        outputs: Sequence[Sequence[Any]],
    ) -> pa.RecordBatch:
        """Build the rows: the faces of a picture from left to right, in pixels of the upright original."""
        import numpy as np

        found = [
            _from_left(
                _upright({name: inner[0][name].numpy() for name in OUTPUTS}, image.size, self._task.turn)
            )
            for image, inner in zip(images, outputs, strict=True)
        ]
        every = {name: np.concatenate([one[name] for one in found]) for name in OUTPUTS}
        limits = np.concatenate(
            [
                np.tile(image.size[::-1], (len(one["boxes"]), 2))
                for image, one in zip(images, found, strict=True)
            ]
        )
        boxes = every["boxes"].clip(0, limits).astype(float)
        arrays: dict[str, pa.Array[Any]] = {
            "label": pa.array([FACE] * len(boxes), pa.string()),
            "score": pa.array(every["scores"]),
            "box": pa.StructArray.from_arrays([pa.array(side) for side in boxes.T.copy()], fields=list(BOX)),
            "keypoints": _points(every["keypoints"]),
            "quality": _quality(every["boxes"], every["keypoints"], every["chips"]),
            "embedding": self._vectors(every["embeddings"]),
        }
        if self._task.crop:
            arrays["crop"] = pa.array([_jpeg(chip) for chip in every["chips"]], pa.large_binary())
        lists: Any = self.columns.field("objects").type
        fields = list(lists.value_type)
        objects = pa.StructArray.from_arrays([arrays[one.name] for one in fields], fields=fields)
        column = lists_of(objects, [len(one["scores"]) for one in found])
        return pa.RecordBatch.from_arrays([column], schema=self.columns)

    def _vectors(self, embeddings: NDArray[np.float32]) -> pa.Array[Any]:
        flat: Any = pa.array(embeddings.ravel(), pa.float32())
        return pa.FixedSizeListArray.from_arrays(flat, embeddings.shape[1])


def _turned(pixels: torch.Tensor, degrees: float) -> torch.Tensor:
    """Return a picture (3, H, W) turned clockwise."""
    if not degrees:
        return pixels
    import torch

    from cnnbatch.images.turned import turned

    return torch.from_numpy(turned(pixels.permute(1, 2, 0).cpu().numpy(), degrees)).permute(2, 0, 1)


def _upright(
    faces: Mapping[str, NDArray[Any]], size: tuple[int, int], degrees: float
) -> Mapping[str, NDArray[Any]]:
    """Return faces of a turned picture in pixels of the upright original of ``size``."""
    if not degrees:
        return faces
    from cnnbatch.images.turned import boxes_back, points_back

    return {
        **faces,
        "boxes": boxes_back(faces["boxes"], size, degrees),
        "keypoints": points_back(faces["keypoints"], size, degrees),
    }


def _from_left(faces: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    """Return faces in the order of their centres from left to right, equal ones from the top."""
    import numpy as np

    left, top, right, bottom = faces["boxes"].T
    order = np.lexsort((top + bottom, left + right))
    return {name: values[order] for name, values in faces.items()}


def _points(landmarks: NDArray[np.float32]) -> pa.Array[Any]:
    """Return landmarks (K, 5, 2) as K lists; each counts as visible, since no detector says which are not."""
    import numpy as np

    x, y = landmarks.reshape(-1, 2).astype(float).T
    columns: list[pa.Array[Any]] = [pa.array(x), pa.array(y), pa.array(np.full(len(x), 2, np.float32))]
    structs = pa.StructArray.from_arrays(columns, fields=list(KEYPOINT))
    return lists_of(structs, [landmarks.shape[1]] * len(landmarks))


def _quality(
    boxes: NDArray[np.float32], landmarks: NDArray[np.float32], chips: NDArray[np.uint8]
) -> pa.Array[Any]:
    """Return the `QUALITY` of faces; what can't be measured is null."""
    import numpy as np

    from cnnbatch.images.face_quality import blur, pose

    sizes = (boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=np.inf)
    values = np.column_stack([sizes, [blur(chip) for chip in chips], pose(landmarks)]).astype(np.float32)
    arrays = [pa.array(one, mask=np.isnan(one)) for one in values.T.copy()]
    return pa.StructArray.from_arrays(arrays, fields=list(QUALITY))


def _jpeg(chip: NDArray[np.uint8]) -> bytes:
    import simplejpeg

    data: bytes = simplejpeg.encode_jpeg(
        chip, quality=_JPEG_QUALITY, colorspace="RGB", colorsubsampling="444"
    )
    return data


def _described(embedder: FaceEmbedder) -> str:
    """Return what is done to a face before it is embedded, for the fingerprint."""
    chip = embedder.size, embedder.template, embedder.mean, embedder.std, embedder.channels
    return repr((*chip, "mirror") if embedder.mirror else chip)
