"""Networks as values: architecture, weights, preprocessing and class names together.

A model outside this package is a function that returns a `Network`, a `Detector`, a `Segmenter`, a
`FaceDetector` or a `FaceEmbedder`, and is named ``mypackage.module:build``. What is named here is imported
when it is asked for, since most of it loads torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cnnbatch.models.libraries.without_compiler import defer_compiler

if TYPE_CHECKING:
    from cnnbatch.models.building import build_classifier
    from cnnbatch.models.choice import Choice
    from cnnbatch.models.detector import Detector
    from cnnbatch.models.face_detector import FaceDetector
    from cnnbatch.models.face_embedder import FaceEmbedder
    from cnnbatch.models.network import Network
    from cnnbatch.models.preprocessing import Preprocessing
    from cnnbatch.models.resizing import Resizing
    from cnnbatch.models.segmenter import Segmenter

__all__ = [
    "Choice",
    "Detector",
    "FaceDetector",
    "FaceEmbedder",
    "Network",
    "Preprocessing",
    "Resizing",
    "Segmenter",
    "build_classifier",
]

_MODULES = {
    "Choice": "choice",
    "Detector": "detector",
    "FaceDetector": "face_detector",
    "FaceEmbedder": "face_embedder",
    "Network": "network",
    "Preprocessing": "preprocessing",
    "Resizing": "resizing",
    "Segmenter": "segmenter",
    "build_classifier": "building",
}

defer_compiler()  # Here, since each process that builds a network comes by before it imports one of them.


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
