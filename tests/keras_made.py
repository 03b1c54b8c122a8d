"""Keras models and files as Keras itself makes them, to hold ours against; importing this needs Keras."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from cnnbatch.models.libraries import keras_layers, keras_models
from cnnbatch.models.libraries.keras_table import MODELS

if find_spec("keras") is None:  # Importing it to see would choose its backend.
    pytest.skip("Keras is not installed: pip install 'cnnbatch[keras]'", allow_module_level=True)

keras = keras_layers.package()

SMALLEST = {
    "xception": "Xception",
    "vgg16": "VGG16",
    "vgg19": "VGG19",
    "resnet": "ResNet50",
    "resnet_v2": "ResNet50V2",
    "inception_v3": "InceptionV3",
    "inception_resnet_v2": "InceptionResNetV2",
    "mobilenet": "MobileNet",
    "mobilenet_v2": "MobileNetV2",
    "mobilenet_v3": "MobileNetV3Small",
    "densenet": "DenseNet121",
    "nasnet": "NASNetLarge",
    "efficientnet": "EfficientNetB0",
    "efficientnet_v2": "EfficientNetV2B0",
    "convnext": "ConvNeXtTiny",
}
"""The least of each family."""


def made(name: str, classes: int = 5, size: int | None = None) -> Any:
    """Return Keras' own model for its smallest input, with other than its first weights and statistics."""
    side = size or MODELS[name].least
    keras.utils.set_random_seed(1)
    keras.layers.Conv2D(1, 1), keras.layers.BatchNormalization()  # So that Keras' numbers don't begin at 0.
    model = getattr(keras.applications, name)(
        weights=None, classes=classes, classifier_activation=None, input_shape=(side, side, 3)
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for variable in model.weights:
            if variable.value.is_floating_point():
                variable.value.add_(torch.rand(variable.shape, generator=generator) - 0.5, alpha=0.02)
    return model


def normalize_by(model: Any, name: str, pixels: torch.Tensor) -> None:
    """Give batch normalisation the statistics of these pictures, so that the logits tell them apart."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    with torch.inference_mode():
        model(keras_layers.arranged(pixels, MODELS[name].colours), training=True)


def answers(model: Any, name: str, pixels: torch.Tensor) -> torch.Tensor:
    """Return the logits of Keras' own model for pictures in RGB that are normalised already."""
    pictures = keras_layers.arranged(pixels, MODELS[name].colours)
    with torch.inference_mode():
        found: torch.Tensor = model(pictures, training=False)
    return found.clone()


def pictures(name: str, side: int | None = None, count: int = 2) -> torch.Tensor:
    """Return noise (N, 3, H, W) in the range that a model wants."""
    side = side or MODELS[name].least
    noise = torch.rand((count, 3, side, side), generator=torch.Generator().manual_seed(2))
    how = keras_models.preprocessing(MODELS[name])
    return (noise - torch.tensor(how.mean).view(3, 1, 1)) / torch.tensor(how.std).view(3, 1, 1)


def write(model: Any, path: Path) -> Path:
    """Write weights as Keras 3 does."""
    with told_of_copies():
        model.save_weights(path)
    return path


def write_legacy(model: Any, path: Path) -> Path:
    """Write weights as Keras did before its version 3, and as those are that it publishes."""
    import h5py
    from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

    with told_of_copies(), h5py.File(path, "w") as file:
        save_weights_to_hdf5_group(file, model)
    return path


@contextmanager
def told_of_copies() -> Iterator[None]:
    """Let Keras write: its variables answer NumPy 2 as NumPy 1 asked."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        yield


@contextmanager
def published(file: Path | None = None) -> Iterator[list[tuple[str, str | None]]]:
    """Let Keras get ``file`` for any of its published weights, or take none; yields what it asked for."""
    from keras.src.utils import file_utils

    asked: list[tuple[str, str | None]] = []

    def get_file(name: str, origin: str, cache_subdir: str, file_hash: str | None = None) -> str:
        asked.append((origin, file_hash))
        return str(file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_utils, "get_file", get_file)
        if file is None:
            patch.setattr(keras.Model, "load_weights", lambda self, path: None)
        yield asked
