"""Networks as values: architecture, weights, preprocessing and class names together.

A model outside this package is a function that returns a `Network`, named ``mypackage.module:build``.
"""

from cnnbatch.models.building import Choice, build_classifier
from cnnbatch.models.network import Network
from cnnbatch.models.preprocessing import Preprocessing

__all__ = ["Choice", "Network", "Preprocessing", "build_classifier"]
