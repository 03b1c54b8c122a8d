"""MTCNN's published weights, which are three files of a package."""

from __future__ import annotations

import hashlib

from cnnbatch.errors import UserError
from cnnbatch.models.choice import Choice
from cnnbatch.models.face_detector import FaceDetector
from cnnbatch.models.mtcnn.detector import MTCNN
from cnnbatch.models.network import library
from cnnbatch.models.weights import files
from cnnbatch.storage.package import is_installed

FILES = {
    "pnet": (
        "package:facenet_pytorch/data/pnet.pt",
        "a2a71925e0b9996a42f63e47efc1ca19043e69558b5c523b978d611dfae49c8f",
    ),
    "rnet": (
        "package:facenet_pytorch/data/rnet.pt",
        "bbb937de72efc9ef83b186c49f5f558467a1d7e3453a8ece0d71a886633f6a86",
    ),
    "onet": (
        "package:facenet_pytorch/data/onet.pt",
        "165bfbe42940416ccfb977545cf0e976d5bf321f67083ae2aaaa5c764280118d",
    ),
}
"""Network -> (address, SHA-256), as facenet-pytorch 2.6.0 (MIT) has them."""

IDENTITY = hashlib.sha256("".join(f"{sha256}\n" for _, sha256 in FILES.values()).encode()).hexdigest()
"""What tells this set of three files from others: the SHA-256 of theirs, one a line."""

_PACKAGE = "facenet-pytorch==2.6.0"


def mtcnn(choice: Choice) -> FaceDetector:
    """Return MTCNN (Zhang et al. 2016), with the published weights, those of one file, or random ones.

    A file has the tensors of all three networks, as ``pnet.conv1.weight``; the state dict of
    facenet-pytorch's own MTCNN is one.

    Raises:
        UserError: the package is not installed, or the weights don't fit.
    """
    module = MTCNN()
    if choice.seed is not None:
        return FaceDetector(module, library=library("cnnbatch"))
    if choice.weights == "DEFAULT":
        _load_published(module, choice.sha256)
        return FaceDetector(module, licence="MIT", weights=IDENTITY, library=library("cnnbatch"))
    path = files.fetch(choice.weights, choice.sha256, choice.storage)
    loaded = files.load(path)
    key_map = files.read_key_map(choice.key_map) if choice.key_map else None
    files.apply(module, loaded, key_map, str(path))
    return FaceDetector(
        module,
        weights=files.identity(path, loaded),
        library=library("cnnbatch"),
        notes=loaded.notes(path),
    )


def _load_published(module: MTCNN, sha256: str | None) -> None:
    _require_package()
    if sha256 is not None and sha256.lower() != IDENTITY:
        raise UserError(
            f"task.sha256: expected {sha256}, mtcnn's published weights have {IDENTITY}\n"
            "  what to do: leave it out; each of the three files is checked by its own"
        )
    for name, (address, published) in FILES.items():
        path = files.fetch_published(address, published)
        files.apply(module.get_submodule(name), files.load(path), where=str(path))


def _require_package() -> None:
    if not is_installed("facenet_pytorch"):
        raise UserError(
            "task.model: mtcnn needs the weights that a package ships, which is not installed here\n"
            f"  what to do: pip install --no-deps {_PACKAGE}\n"
            "  (without --no-deps it would want an outdated torch, which is not needed to read its files)"
        )
