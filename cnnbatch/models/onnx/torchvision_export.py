"""The adapter ``torchvision``: torchvision's own detectors, as `torch.onnx.export` writes them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cnnbatch.models.choice import Choice
from cnnbatch.models.detector import PROBE, Detections, Detector
from cnnbatch.models.libraries.torchvision_detectors import BACKGROUND
from cnnbatch.models.onnx.choice import Names, coco_labels, first_outputs, names_inside, require_size, unnamed
from cnnbatch.models.onnx.detector import OnnxDetector, as_detector, best, unfit, wanted_size
from cnnbatch.models.onnx.module import OnnxModule, Outputs, picture_size
from cnnbatch.models.resizing import Resizing, Size
from cnnbatch.models.weights.onnx_files import OnnxFile


def torchvision(choice: Choice, file: OnnxFile) -> Detector:
    """Read a detector that resizes and normalises itself: it gets whole pictures, one by one.

    A job's size then bounds their sides before. Where the file insists on a size they are stretched to it.
    """
    classes = _classes(choice, file)
    fixed, wanted = picture_size(file), wanted_size(choice)
    require_size(file, wanted, "task.size")
    network = OnnxModule(file, fixed or PROBE)
    head = _head(file, first_outputs(network, fixed or PROBE))
    module = OnnxDetector(network, head, len(classes), one_by_one=True)
    return as_detector(choice, module, _resizing(fixed, wanted), classes, range(len(classes)))


def _resizing(fixed: Size | None, wanted: Size | None) -> Resizing:
    if fixed:
        return Resizing("stretch", fixed)
    return Resizing("sides", wanted) if wanted else Resizing("whole", PROBE)


def _head(file: OnnxFile, outputs: Outputs) -> TorchvisionHead:
    """Find the outputs by type and shape: names are what the exporting person called them."""
    boxes = [name for name, value in outputs.items() if value.ndim == 2 and value.shape[1] == 4]
    flat = {name: value for name, value in outputs.items() if value.ndim == 1}
    scores = [name for name, value in flat.items() if value.is_floating_point()]
    labels = [name for name, value in flat.items() if not value.is_floating_point()]
    if not len(boxes) == len(scores) == len(labels) == 1:
        expected = "of one picture boxes (K, 4), scores (K) and labels (K), which are whole numbers"
        raise unfit(file, outputs, "torchvision", expected)
    return TorchvisionHead(boxes[0], scores[0], labels[0])


def _classes(choice: Choice, file: OnnxFile) -> Names:
    names = choice.classes or names_inside(file)
    if names is not None:
        return BACKGROUND, *names
    # The outputs don't tell how many classes there are; a head for COCO has layers a multiple of 91 wide.
    if not any(length and length % len(coco_labels()) == 0 for length in file.lengths):
        raise unnamed(file, None, "COCO's, since no layer is a multiple of 91 wide")
    return coco_labels()


@dataclass(frozen=True, slots=True)
class TorchvisionHead:
    """The three outputs of torchvision's detectors for one picture: boxes (K, 4), scores and labels (K)."""

    boxes: str
    scores: str
    labels: str

    def __call__(self, outputs: Outputs, sizes: Tensor, least: float, most: int | None) -> list[Detections]:
        """Return the detections of the one picture; see `DetectionHead`."""
        return [best(outputs[self.boxes], outputs[self.scores], outputs[self.labels], least, most)]
