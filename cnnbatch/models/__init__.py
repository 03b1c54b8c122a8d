"""Networks as values: architecture, weights, preprocessing and class names together.

A model outside this package is a function that returns a `Network` or a `Detector`, and is named
``mypackage.module:build``.
"""

from cnnbatch.models.building import Choice, build_classifier
from cnnbatch.models.detector import Detector
from cnnbatch.models.network import Network
from cnnbatch.models.preprocessing import Preprocessing
from cnnbatch.models.resizing import Resizing

__all__ = ["Choice", "Detector", "Network", "Preprocessing", "Resizing", "build_classifier"]
