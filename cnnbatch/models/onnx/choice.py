"""Which ONNX file a job means, and what its classes are called.

Names come from the job, else from the file, else from a data set that has as many classes.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache

import torch
import torchvision

from cnnbatch.errors import UserError
from cnnbatch.models.choice import Choice, check_classes
from cnnbatch.models.onnx.module import OnnxModule, Outputs, picture_size
from cnnbatch.models.resizing import Size
from cnnbatch.models.weights import files, onnx_files
from cnnbatch.models.weights.onnx_files import OnnxFile

Names = tuple[str, ...]

_LONGEST = 1 << 20  # characters of metadata that are read; ImageNet's names are 30,000


def open_file(choice: Choice) -> OnnxFile:
    """Return what the ONNX file that the job's weights are says about itself.

    Raises:
        UserError: the weights are no ONNX file, or can't be had; or the job says what only other files have.
    """
    if choice.seed is not None or not choice.weights.partition("?")[0].endswith(onnx_files.SUFFIX):
        raise UserError(
            f"task.weights: task.model=onnx runs the ONNX file that the weights are; expected a path, a URL "
            f"or package:NAME/PATH that ends in {onnx_files.SUFFIX}, got {choice.weights}\n"
            "  what to do: give task.weights the file, or task.model the name of the network"
        )
    if choice.key_map:
        raise UserError("task.key_map: an ONNX file that is run keeps its own names; leave it out")
    return onnx_files.read(files.fetch(choice.weights, choice.sha256, choice.storage))


def require_size(file: OnnxFile, wanted: Size | None, field: str) -> None:
    """Insist that the job's ``field``, if given, is the (height, width) of a file that takes no other."""
    size = picture_size(file)
    if size and wanted and size != tuple(wanted):
        raise UserError(
            f"{field}: {file.path.name} takes pictures of {size[0]} x {size[1]} only, got "
            f"{wanted[0]} x {wanted[1]}\n"
            "  what to do: leave it out, or export the file with a free height and width"
        )


def first_outputs(network: OnnxModule, picture: tuple[int, int]) -> Outputs:
    """Return what a network gives for one black picture of (height, width), which tells the shapes.

    Raises:
        UserError: it refuses the picture.
    """
    try:
        found: Outputs = network(torch.zeros(1, 3, *picture))
    except RuntimeError as error:
        raise UserError(
            f"task.weights: {network.file.path.name} refuses a picture of {picture[0]} x {picture[1]}: "
            f"{error}\n  what to do: give the size that it was exported for: task.preprocessing.crop "
            "for a classifier, else task.size"
        ) from error
    return found


def names_inside(file: OnnxFile) -> Names | None:
    """Return the class names in a file's metadata, as Ultralytics and YOLOv5 write them; None without any.

    Raises:
        UserError: they can't be read, or are not numbered from 0.
    """
    text = file.metadata.get("names")
    if text is None:
        return None
    value = literal(text)
    numbered = dict(enumerate(value)) if isinstance(value, list | tuple) else value
    try:
        by_number = {int(number): str(name) for number, name in dict(numbered).items()}  # type: ignore[call-overload]
    except (TypeError, ValueError):
        by_number = {}
    if not by_number or sorted(by_number) != list(range(len(by_number))):
        raise UserError(
            f"task.weights: the class names in the metadata of {file.path.name} are no {{number: name}} "
            f"from 0: {text[:80]!r}\n  what to do: give task.classes the names"
        )
    names = tuple(by_number[number] for number in sorted(by_number))
    check_classes(names)
    return names


def literal(text: str) -> object:
    """Return the plain Python or JSON value that ``text`` is, None where it is none; no code is run."""
    try:
        return ast.literal_eval(text) if len(text) <= _LONGEST else None
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


@cache
def coco() -> Mapping[int, str]:
    """Return COCO's 80 classes by their numbers, 1 to 90."""
    return {number: name for number, name in enumerate(coco_labels()) if number and name != "N/A"}


def coco_labels() -> Names:
    """Return the names of the 91 labels that detectors for COCO give, as torchvision has them."""
    weights = torchvision.models.detection.FasterRCNN_ResNet50_FPN_Weights.DEFAULT
    return tuple(weights.meta["categories"])


def unnamed(file: OnnxFile, count: int | None, known: str) -> UserError:
    """Return the error for classes that have no names; ``known`` says which would have been."""
    number = "its" if count is None else f"its {count}"
    return UserError(
        f"task.classes: {file.path.name} does not say what {number} classes are called, "
        f"and they are not {known}\n"
        "  what to do: give their names in the network's order, as a list or as a file with one a line"
    )
