"""A task for tests of the engine: a tiny seeded network, with faults planted by the picture's key."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from cnnbatch.tasks import Task
from cnnbatch.types import Precision, Runtime

if TYPE_CHECKING:
    import torch

    from cnnbatch.models import Detector
    from cnnbatch.types import Image, Prepared


class Toy(Task):
    """Eight numbers a picture. ``fault`` happens at keys that hold ``at``; ``flag`` is a file it looks for.

    Faults: ``raise`` and ``kill`` and ``hang`` at the picture; ``device`` on every picture while
    ``flag`` exists; ``slow`` sleeps in every batch; ``gather`` also waits for other processes, which
    leave their marks in the folder ``flag``; ``memory`` at the picture, and above ``fits`` inputs.
    """

    precisions: ClassVar[frozenset[Precision]] = frozenset({"fp32", "bf16", "fp16"})

    fault: str = ""
    at: str = ""
    flag: str = ""
    fits: int = 2
    side: int = 16
    seed: int = 0

    def columns(self) -> pa.Schema:
        """Return the columns."""
        fields: list[pa.Field[Any]] = [
            pa.field("label", pa.string()),
            pa.field("score", pa.float32()),
            pa.field("values", pa.list_(pa.float32())),
        ]
        return pa.schema(fields)

    def load(self, runtime: Runtime) -> ToyModel:
        """Build the network."""
        return ToyModel(self)


class ToyModel:
    """The network, in the shape of `cnnbatch.tasks.Model`."""

    def __init__(self, task: Toy) -> None:
        import torch

        generator = torch.Generator().manual_seed(task.seed)
        self.weight = torch.randn(8, 3, 3, 3, generator=generator)
        self.task = task
        self.marked: set[int] = set()
        self.done = 0
        self.identity: Mapping[str, str] = {
            "weights": f"random:{task.seed}",
            "preprocessing": f"{task.side}",
            "library": "toy 1",
        }

    def decode_size(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """Ask for the whole picture."""
        return None

    def prepare(self, image: Image) -> Sequence[Prepared]:
        """Resize to a square; a marked picture carries its mark in its first pixel."""
        import torch

        from cnnbatch.types import Prepared

        side = self.task.side
        pixels = torch.nn.functional.interpolate(image.pixels[None].float(), (side, side)).to(torch.uint8)[0]
        pixels = pixels.clamp(max=254)
        if self.task.at and self.task.at in image.ref.key:
            pixels[:, 0, 0] = 255
        return [Prepared(pixels, (side, side))]

    def forward(self, batch: torch.Tensor, sizes: torch.Tensor) -> dict[str, torch.Tensor]:
        """Convolve and average, unless a fault is planted."""
        import torch

        marked = bool((batch[:, :, 0, 0] == 255).all(1).any())
        if self.task.fault == "memory" and (marked or len(batch) > self.task.fits):
            raise torch.OutOfMemoryError("CUDA out of memory. planted")
        self._misbehave(marked)
        features = torch.nn.functional.conv2d(batch.float() / 255, self.weight).mean((2, 3))
        return {"values": features}

    def _misbehave(self, marked: bool) -> None:
        fault, flag = self.task.fault, Path(self.task.flag)
        if fault == "slow":
            time.sleep(0.5)  # Long enough to be killed in the middle, also on a busy machine.
        if fault == "tell-device":
            time.sleep(0.3)  # Long enough for the other actors to get theirs.
        if fault == "device" and flag.exists():
            raise RuntimeError("planted: the device is broken")
        if fault == "gather":
            self._wait_for_others(flag)
        if marked:
            self._misbehave_on_marked(fault, flag)

    def _wait_for_others(self, flag: Path) -> None:
        """Be slow; once a shard is done, wait until four processes compute."""
        (flag / f"process-{os.getpid()}").touch()
        time.sleep(0.5)
        patience = time.monotonic() + 240
        while self.done >= 3 and len([*flag.iterdir()]) < 4 and time.monotonic() < patience:
            time.sleep(0.1)

    def _misbehave_on_marked(self, fault: str, flag: Path) -> None:
        if fault == "raise":
            raise ValueError("planted: this picture breaks the model")
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "kill-once" and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "hang":
            time.sleep(3600)

    def rows(
        self,
        images: Sequence[Image],
        prepared: Sequence[Sequence[Prepared]],
        outputs: Sequence[Sequence[Any]],
    ) -> pa.RecordBatch:
        """Name the largest of the eight numbers."""
        self.done += 1
        values = [output[0]["values"] for output in outputs]
        labels = [f"class {int(value.argmax())}" for value in values]
        if self.task.fault == "tell-device":
            labels = [os.environ.get("CUDA_VISIBLE_DEVICES", "none")] * len(values)
        columns: list[pa.Array[Any]] = [
            pa.array(labels, pa.string()),
            pa.array([float(value.max()) for value in values], pa.float32()),
            pa.array([value.tolist() for value in values], pa.list_(pa.float32())),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self.task.columns())


def poses() -> Detector:
    """Return torchvision's pose network, with few proposals so that a test of it is quick."""
    from torchvision.models.detection import keypointrcnn_resnet50_fpn

    from cnnbatch.models import Detector, Resizing
    from cnnbatch.models.libraries.torchvision_detectors import TorchvisionDetector

    module = keypointrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, rpn_post_nms_top_n_test=20, rpn_pre_nms_top_n_test=100
    )
    return Detector(
        TorchvisionDetector(module, ["keypoints"]),
        Resizing("sides", (64, 96), divisor=32),
        ("none", "person"),
    )
