"""Keras' HDF5 files are data: read whole, or refused when they point elsewhere or claim too much."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cnnbatch.errors import UserError
from cnnbatch.models.weights import files as weights
from cnnbatch.models.weights import keras_files

h5py: Any = pytest.importorskip("h5py", reason="h5py is not installed: pip install 'cnnbatch[keras]'")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.weights.h5"


def test_arrays_come_by_name_and_optimisers_are_left_out(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["layers/dense/vars/0"] = np.arange(6, dtype=">f4").reshape(2, 3)
        file["layers/normalization/vars/2"] = np.int32(7)
        file["layers/dropout/seed_generator/vars/0"] = np.array([1, 2], np.uint32)
        file["optimizer/vars/0"] = np.zeros(2)
    found = weights.load(path)
    assert list(found) == ["layers/dense/vars/0", "layers/normalization/vars/2"]
    assert torch.equal(found["layers/dense/vars/0"], torch.arange(6.0).reshape(2, 3))
    assert found["layers/normalization/vars/2"].shape == ()


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("cut", [False, True])
def test_older_files_keep_the_order_of_their_layers(tmp_path: Path, whole: bool, cut: bool) -> None:
    path = tmp_path / "model.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("model_weights") if whole else file
        for layer in ("z", "a"):
            inside = group.create_group(layer)
            inside[f"{layer}/kernel:0"] = np.ones(2, np.float32)
            inside.attrs["weight_names"] = [f"{layer}/kernel:0".encode()]
        group.create_group("input").attrs["weight_names"] = []
        if cut:
            group.attrs["layer_names0"], group.attrs["layer_names1"] = [b"input", b"z"], [b"a"]
        else:
            group.attrs["layer_names"] = [b"input", b"z", b"a"]
    assert list(weights.load(path)) == ["z/z/kernel:0", "a/a/kernel:0"]


def test_a_file_may_not_point_elsewhere(path: Path, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = np.ones(3)
    (tmp_path / "raw").write_bytes(bytes(24))
    links: dict[str, Any] = {
        "external": lambda file: file.__setitem__("layers", h5py.ExternalLink("secret.h5", "/")),
        "soft": lambda file: file.__setitem__("layers", h5py.SoftLink("/elsewhere")),
        "raw": lambda file: file.create_dataset("w", (3,), "f8", external=[(str(tmp_path / "raw"), 0, 24)]),
        "virtual": lambda file: file.create_virtual_dataset("w", virtual(tmp_path / "secret.h5")),
    }
    for make in links.values():
        with h5py.File(path, "w") as file:
            make(file)
        with pytest.raises(UserError, match=r"a link to elsewhere|lies in another file"):
            weights.load(path)


def virtual(path: Path) -> Any:
    layout = h5py.VirtualLayout((3,), "f8")
    layout[:] = h5py.VirtualSource(path, "x", (3,))
    return layout


def test_sizes_that_are_not_stored_are_refused(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("bomb", (1 << 40,), "f4", chunks=(1 << 10,), compression="gzip")
    with pytest.raises(UserError, match="claims 4,398,046,511,104 bytes"):
        weights.load(path)


def test_damaged_empty_and_foreign_files_are_told(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["w"] = np.ones(10_000)
    whole = path.read_bytes()
    for content in (whole[:5000], b"no HDF5 at all", b""):
        path.write_bytes(content)
        with pytest.raises(UserError, match="is no whole HDF5 file"):
            weights.load(path)
    with h5py.File(path, "w"):
        pass
    with pytest.raises(UserError, match="holds no weights"):
        weights.load(path)
    with h5py.File(path, "w") as file:
        file["w"] = np.array([b"text"])
    with pytest.raises(UserError, match="no numbers"):
        weights.load(path)


def test_a_whole_model_is_answered_with_save_weights(tmp_path: Path) -> None:
    (tmp_path / "model.keras").write_bytes(b"PK")
    with pytest.raises(UserError, match="save_weights"):
        weights.load(tmp_path / "model.keras")


def test_without_h5py_it_is_said_what_to_install(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(UserError, match=r"expected the package h5py(?s:.*)pip install 'cnnbatch\[keras\]'"):
        keras_files.load(path)
