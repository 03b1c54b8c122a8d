"""How fast faces are found and embedded, beside facenet-pytorch and dlib called one picture at a time.

The others' way: facenet-pytorch's MTCNN finds the faces of one picture, OpenCV cuts each to dlib's template,
and dlib embeds it. Both ways have the same weights, one thread, the same decoded pictures, and the allocator
as the job's workers set it; both find the same faces, and give them the same embeddings. They take turns, and
what counts is the processor's time. dlib-bin is built without AVX: a dlib that is built on the machine itself
embeds faster.

Then the stages of the pipeline, each alone, and the share of the rate that their sum allows; and alignment
beside a loop over OpenCV's warpAffine.

    python -m tests.bench.faces [PICTURES]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import dlib
import numpy as np
import torch
from facenet_pytorch import MTCNN as FacenetPytorch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from cnnbatch.inference.worker.malloc import keep_freed_memory
from cnnbatch.models.architectures.face_models import DLIB_WEIGHTS
from cnnbatch.models.choice import Choice
from cnnbatch.models.face_alignment import aligned, transforms_to
from cnnbatch.models.face_detectors import build_face_detector
from cnnbatch.models.face_embedder import FaceEmbedder
from cnnbatch.models.face_embedders import build_face_embedder
from cnnbatch.models.face_pipeline import FacePipeline
from cnnbatch.storage.package import locate
from cnnbatch.types import Precision, Runtime
from tests.bench.face_detection import BATCH, FOLDERS, batches, pictures
from tests.bench.measuring import SHARED

ROUNDS = 3
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
"""Of the embedder; the detector is always in float32."""
SAME = 1e-3
"""How far an embedding of ours may be from dlib's, in float32; embeddings are about 1.4 long."""

Pictures = Sequence[NDArray[np.uint8]]
Way = Callable[[], Any]


def in_turns(ways: Mapping[str, Way]) -> dict[str, float]:
    """Return the median seconds of processor time that each way takes, after one pass that warms up."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(ROUNDS + 1):
        for name, way in ways.items():
            started = time.process_time()
            way()
            if turn:
                taken[name].append(time.process_time() - started)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


@dataclass(frozen=True)
class TheirWay:
    """MTCNN, alignment and dlib's network, one picture and one face at a time."""

    detector: Any
    network: Any
    chip: FaceEmbedder

    def __call__(self, found: Pictures) -> list[NDArray[np.float64]]:
        """Return the embeddings (K, 128) of each picture's faces."""
        return [self.embedded(one) for one in found]

    def embedded(self, picture: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return the embeddings (K, 128) of a picture's faces."""
        boxes, _, points = self.detector.detect(picture, landmarks=True)
        faces = np.zeros((0, 5, 2)) if boxes is None else points.astype(np.float64)
        transforms = transforms_to(self.chip.template, torch.from_numpy(faces)).numpy()
        chips = [cv2.warpAffine(picture, one, self.chip.size[::-1]) for one in transforms]
        vectors = [self.network.compute_face_descriptor(chip) for chip in chips]
        return np.array(vectors, np.float64).reshape(-1, self.chip.dimensions)


def pipeline(precision: Precision) -> FacePipeline:
    """Return the pipeline of the job's defaults, eager, on one thread."""
    detector, embedder = build_face_detector(Choice("mtcnn")), build_face_embedder(Choice("dlib_resnet"))
    return FacePipeline(detector, embedder, Runtime("cpu", precision, "eager", threads=1, batch=BATCH))


def compare(console: Console, name: str, found: Pictures) -> None:
    """Print the rates of the whole pipelines on some pictures."""
    ours = {precision: pipeline(precision) for precision in PRECISIONS}
    embedder = build_face_embedder(Choice("dlib_resnet"))
    theirs = TheirWay(
        FacenetPytorch(keep_all=True, select_largest=False),
        dlib.face_recognition_model_v1(locate(DLIB_WEIGHTS[0])),
        embedder,
    )
    batched = batches(found)

    def run(one: FacePipeline) -> list[NDArray[np.float32]]:
        return [face["embeddings"].numpy() for batch in batched for face in one(*batch)]

    _require_same(run(ours["fp32"]), theirs(found))
    ways: dict[str, Way] = {"theirs": lambda: theirs(found)}
    ways |= {precision: partial(run, one) for precision, one in ours.items()}
    seconds = in_turns(ways)
    faces = sum(map(len, theirs(found)))
    table = Table("", "images/s", "ratio", title=f"{name}: {len(found)} pictures, {faces} faces, one thread")
    for way, taken in seconds.items():
        label = "one at a time" if way == "theirs" else f"cnnbatch, {way}"
        table.add_row(label, f"{len(found) / taken:.1f}", f"{seconds['theirs'] / taken:.2f}")
    console.print(table)


def _require_same(ours: Sequence[NDArray[Any]], theirs: Sequence[NDArray[Any]]) -> None:
    """Insist on the same faces, of which most have the same embedding.

    Ours makes a face of more than 300 pixels smaller before it is cut.
    """
    assert [len(one) for one in ours] == [len(one) for one in theirs], "other faces were found"
    apart: list[float] = []
    for one, other in zip(ours, theirs, strict=True):
        if len(one):
            apart += np.linalg.norm(one[:, None].astype(np.float64) - other, axis=2).min(1).tolist()
    assert np.median(apart) < SAME, f"embeddings are {np.median(apart):.4f} apart"


def stages(console: Console, name: str, found: Pictures) -> None:
    """Print what each stage takes by itself, and how near the pipeline comes to their sum."""
    whole, embedder = pipeline("fp32"), build_face_embedder(Choice("dlib_resnet"))
    detector = build_face_detector(Choice("mtcnn")).module
    batched = batches(found)
    with torch.inference_mode():
        faces = [one["keypoints"] for batch in batched for one in detector(*batch)]
    pixels = [torch.tensor(one).permute(2, 0, 1) for one in found]

    def detect() -> None:
        with torch.inference_mode():
            for batch in batched:
                detector(*batch)

    def align() -> list[Tensor]:
        chips = []
        for first in range(0, len(found), BATCH):
            some = faces[first : first + BATCH]
            transforms = transforms_to(embedder.template, torch.cat(some))
            counts = [len(one) for one in some]
            chips.append(aligned(pixels[first : first + BATCH], transforms, counts, embedder.size))
        return chips

    chips = align()

    def embed() -> None:
        with torch.inference_mode():
            for some in chips:
                whole._embedded(some)

    ways: dict[str, Way] = {"detection": detect, "alignment": align, "embedding": embed}
    seconds = in_turns({**ways, "pipeline": lambda: [whole(*batch) for batch in batched]})
    total = sum(seconds[stage] for stage in ways)
    table = Table("stage, fp32", "CPU ms a picture", title=name)
    for stage, taken in seconds.items():
        table.add_row(stage, f"{1000 * taken / len(found):.2f}")
    console.print(table)
    console.print(f"the pipeline has {total / seconds['pipeline']:.0%} of the rate that its stages allow")


def alignment(console: Console, name: str, found: Pictures) -> None:
    """Print what alignment takes beside a loop over OpenCV's warpAffine with the same transforms."""
    detector, embedder = (
        build_face_detector(Choice("mtcnn")).module,
        build_face_embedder(Choice("dlib_resnet")),
    )
    with torch.inference_mode():
        faces = [one["keypoints"] for batch in batches(found) for one in detector(*batch)]
    transforms = transforms_to(embedder.template, torch.cat(faces))
    counts = [len(points) for points in faces]
    each = [some.numpy() for some in torch.split(transforms, counts)]
    pixels = [torch.tensor(one).permute(2, 0, 1) for one in found]
    size = embedder.size[::-1]

    def ours() -> Tensor:
        return aligned(pixels, transforms, counts, embedder.size)

    def loop() -> list[Any]:
        return [
            cv2.warpAffine(one, transform, size)
            for one, some in zip(found, each, strict=True)
            for transform in some
        ]

    def often(way: Way) -> Way:
        return lambda: [way() for _ in range(20)]

    seconds = in_turns({"ours": often(ours), "loop": often(loop)})
    console.print(
        f"{name}: alignment takes {seconds['ours'] / seconds['loop']:.2f} of a loop over warpAffine"
    )


def main(count: int = 32) -> None:
    """Print the tables."""
    keep_freed_memory()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    console = Console()
    for name, folder in FOLDERS.items():
        if not (SHARED / "data" / folder).is_dir():
            console.print(f"{name}: no pictures beside the checkout")
            continue
        found = pictures(SHARED / "data" / folder, count)
        compare(console, name, found)
        stages(console, name, found)
        alignment(console, name, found)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
