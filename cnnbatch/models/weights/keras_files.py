"""Reads Keras' HDF5 files as data: the arrays by name, in the order of the layers; nothing in them is run.

HDF5 can point into other files and claim sizes that it does not store; a file that does is refused.
The two formats name their arrays differently: ``layers/conv2d/vars/0`` in a ``.weights.h5`` of Keras 3,
``conv1/conv1/kernel:0`` in an ``.h5`` of before, whose names say nothing and whose order says all.
"""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnbatch.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".h5", ".hdf5")
ARCHIVE = ".keras"

_UNSTORED_FLOOR = 1 << 26  # What was never written takes no place in a file, which is well for small arrays.
_EXPANSION = 1000  # the most that its compression gives


def package(name: str, field: str) -> Any:
    """Import ``keras`` or what comes with it.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise UserError(
            f"{field}: expected the package {name}, which is not installed here\n"
            "  what to do: pip install 'cnnbatch[keras]'"
        ) from error


def load(path: Path) -> dict[str, Tensor]:
    """Return the arrays of a ``.weights.h5`` or ``.h5`` by their names in the file; optimisers' are left out.

    Raises:
        UserError: the file is damaged, holds no weights, points elsewhere, or claims more than it stores.
    """
    import torch

    h5py = package("h5py", "task.weights")
    try:
        with h5py.File(path, "r") as file:
            arrays = {name: torch.from_numpy(_array(dataset)) for name, dataset in _datasets(h5py, file)}
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:  # h5py reports damage by many
        raise UserError(
            f"task.weights: {str(path)!r} is no whole HDF5 file of Keras' weights: {error}"
        ) from error
    if not arrays:
        raise UserError(f"task.weights: {str(path)!r} holds no weights; expected what save_weights writes")
    return arrays


def refuse_archive(path: Path) -> None:
    """Refuse a whole model in a ``.keras`` file: it holds code by name.

    Raises:
        UserError: it is one; says how to save its weights.
    """
    if path.suffix == ARCHIVE:
        raise UserError(
            f"task.weights: {str(path)!r} is a whole model, which Keras alone reads; expected its weights\n"
            "  what to do, where you trust it: keras.models.load_model(...).save_weights('model.weights.h5')"
        )


def _datasets(h5py: Any, file: Any) -> Iterator[tuple[str, Any]]:
    if "model_weights" in file:  # A whole model of before Keras 3; the rest of it is not looked at.
        file = _child(h5py, file, "model_weights")
    layers = _names(file, "layer_names")
    return _of_layers(h5py, file, layers) if layers else _of_tree(h5py, file, "")


def _of_layers(h5py: Any, group: Any, layers: list[str]) -> Iterator[tuple[str, Any]]:
    """Yield the arrays as before Keras 3: layer by layer, in the order that attributes give."""
    for layer in layers:
        inside = _child(h5py, group, layer)
        for name in _names(inside, "weight_names"):
            yield f"{layer}/{name}", _child(h5py, inside, name)


def _of_tree(h5py: Any, group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name in group:
        child = _child(h5py, group, name)
        if isinstance(child, h5py.Dataset):
            yield f"{prefix}{name}", child
        elif f"{prefix}{name}" != "optimizer" and name != "seed_generator":
            yield from _of_tree(h5py, child, f"{prefix}{name}/")


def _names(group: Any, attribute: str) -> list[str]:
    """Return a list of names from an attribute; a long one is cut into several, with numbers."""
    numbered = (f"{attribute}{number}" for number in itertools.count())
    cut = itertools.takewhile(lambda name: name in group.attrs, numbered)
    parts = [attribute] if attribute in group.attrs else cut
    found = (name for part in parts for name in group.attrs[part])
    return [name.decode() if isinstance(name, bytes) else str(name) for name in found]


def _child(h5py: Any, group: Any, path: str) -> Any:
    """Return what lies at ``path`` in ``group`` itself, never by a link to elsewhere."""
    for name in path.split("/"):
        if not isinstance(group, h5py.Group):
            raise ValueError(f"{path!r} leads through an array")
        kind = group.get(name, getclass=True, getlink=True)
        if kind is not h5py.HardLink:
            raise ValueError(f"{path!r} " + ("is not there" if kind is None else "is a link to elsewhere"))
        group = group[name]
    return group


def _array(dataset: Any) -> Any:
    """Return an array of numbers, after a look at where they lie and how many they are."""
    import numpy as np

    if dataset.external or dataset.is_virtual:
        raise ValueError(f"{dataset.name!r} lies in another file")
    if dataset.dtype.kind not in "fiub" or dataset.attrs.get("dtype") == "bfloat16":
        raise ValueError(f"{dataset.name!r} holds no numbers of a usual kind; save the weights in float32")
    size = math.prod(dataset.shape) * dataset.dtype.itemsize
    if size > _UNSTORED_FLOOR and size > _EXPANSION * dataset.id.get_storage_size():
        raise ValueError(f"{dataset.name!r} claims {size:,} bytes, of which next to nothing is stored")
    array = np.asarray(dataset[()])
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:  # Counters, of kinds that torch lacks.
        return array.astype(np.int64)
    return array.astype(array.dtype.newbyteorder("="), copy=False)
