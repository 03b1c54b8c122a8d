"""Which models there are, in the numbers of their publishers: nothing is built, nothing is fetched.

What a publisher does not say in its package stays empty, rather than being looked up elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import timm
import torch
import torchvision
from huggingface_hub import try_to_load_from_cache
from timm.models import get_pretrained_cfg, model_entrypoint
from torchvision.models import WeightsEnum

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.humanize import meant
from cnnbatch.models import catalogue
from cnnbatch.models.architectures import darknet_models, face_models
from cnnbatch.models.libraries.keras_table import MODELS, KerasModel
from cnnbatch.models.mtcnn.published import FILES as MTCNN_FILES
from cnnbatch.storage import Unreadable
from cnnbatch.storage.cache import cache_folder
from cnnbatch.storage.package import locate

_METRICS = {
    "kp_map": ("keypoint_AP", "objects.keypoints"),
    "mask_map": ("mask_AP", "objects.mask"),
    "box_map": ("AP", "objects"),
    "miou": ("mIoU", "map"),
    "pixel_acc": ("pixel_accuracy", "map"),
    "acc@1": ("top1", "label"),
    "acc@5": ("top5", "label"),
}
"""torchvision's name of a metric -> ours, and the answer that it is of; the first that is there decides."""

_MODULES = (torchvision.models, torchvision.models.detection, torchvision.models.segmentation)
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class PublishedModel:
    """A model with its default weights.

    ``answer`` is its kind of answer, with what it has beside a box as in ``objects.mask``, ``embedding``
    where it is published without a classifier, ``embedding.fitted`` where it has no weights but is fitted to
    pictures, and ``faces`` where it finds faces or embeds them. ``weights`` are ``FILE`` where a person has
    to bring them. ``about`` says what it is, or where its weights are to be had.
    ``input_size`` is (height, width) in pixels, None where any will do or nothing is said; ``accuracy`` is in
    percent, on ``data``; ``at_hand``: the weights are on this machine, else ``download_mb`` is what they
    weigh, in megabytes.
    """

    name: str
    answer: str
    family: str
    library: str
    weights: str | None = None
    parameters: int | None = None
    input_size: tuple[int, int] | None = None
    accuracy: Mapping[str, float] = field(default_factory=dict)
    data: str | None = None
    licence: str | None = None
    at_hand: bool = False
    download_mb: float | None = None
    about: str = ""


OWN = {
    catalogue.EFFICIENTNET_LITE0[0]: PublishedModel(
        name="efficientnet_lite0",
        answer="label",
        family="efficientnet",
        library="cnnbatch",
        weights="DEFAULT",
        parameters=4_652_008,
        input_size=(224, 224),
        accuracy={"top1": 75.1},
        data="ImageNet-1K",
        licence="Apache-2.0",
    ),
    darknet_models.YOLOV3_TINY.weights[0]: PublishedModel(
        name="yolov3_tiny",
        answer="objects",
        family="darknet",
        library="cnnbatch",
        weights="DEFAULT",
        parameters=8_852_366,
        input_size=(416, 416),
        accuracy={"AP50": 33.1},
        data="COCO-test-dev",
        licence="MIT",
    ),
    MTCNN_FILES["pnet"][0]: PublishedModel(
        name="mtcnn",
        answer="faces",
        family="mtcnn",
        library="cnnbatch",
        weights="DEFAULT",
        parameters=495_850,
        licence="MIT",
    ),
    face_models.DLIB_WEIGHTS[0]: PublishedModel(
        name="dlib_resnet",
        answer="faces",
        family="dlib_resnet",
        library="cnnbatch",
        weights="DEFAULT",
        parameters=5_607_488,
        input_size=(150, 150),
        accuracy={"accuracy": 99.38},
        data="LFW",
        licence="CC0-1.0",
    ),
}
"""This package's own models, by where their weights lie, which come as the data of packages."""


def _to_bring(files: str) -> str:
    return f"give {files}; no package has it"


_ARCFACE = PublishedModel(
    name="iresnet50",
    answer="faces",
    family="iresnet",
    library="cnnbatch",
    weights="FILE",
    parameters=43_590_848,
    input_size=(112, 112),
    licence="non-commercial research",
    about=_to_bring(face_models.ARCFACE_FILES.format(depth=50)),
)
FROM_FILES = (
    PublishedModel(
        name="facenet",
        answer="faces",
        family="inception_resnet",
        library="cnnbatch",
        weights="FILE",
        parameters=23_482_624,
        input_size=(160, 160),
        accuracy={"accuracy": 99.65},
        data="LFW",
        licence="MIT, trained on VGGFace2 (non-commercial research)",
        about=_to_bring(face_models.FACENET_FILES),
    ),
    _ARCFACE,
    replace(
        _ARCFACE,
        name="iresnet100",
        parameters=65_156_160,
        about=_to_bring(face_models.ARCFACE_FILES.format(depth=100)),
    ),
)
"""This package's own models whose published weights a person brings as a file."""

_COMPUTED = PublishedModel(
    name="eigenfaces",
    answer="embedding.fitted",
    family="classical_faces",
    library="cnnbatch",
    weights="DEFAULT",
    input_size=(64, 64),
    at_hand=True,
    about="principal components of gray pixels (Turk and Pentland 1991); fitted, has no weights",
)
COMPUTED = (
    _COMPUTED,
    replace(
        _COMPUTED,
        name="fisherfaces",
        about="linear discriminants of gray pixels (Belhumeur et al. 1997); fitted, has no weights",
    ),
    replace(
        _COMPUTED,
        name="lbp",
        about="histograms of local binary patterns (Ahonen et al. 2006); computed, has no weights",
    ),
)
"""This package's own models whose features are computed."""


class _Entry(NamedTuple):
    """A name with its family, and what reads the rest."""

    name: str
    family: str
    read: Callable[[], PublishedModel]


def listing(pattern: str | None = None, family: str | None = None) -> list[PublishedModel]:
    """Return the models whose name fits ``pattern`` (``*`` and ``?``), and of a family, if given.

    timm's are among them only where a pattern or a family asks.

    Raises:
        UserError: there is none; it proposes the nearest name.
    """
    entries = [*_own(), *_torchvision(), *_keras()]
    if pattern is not None or family is not None:
        entries += _timm(tagged=pattern is not None and "." in pattern)
    require_option("--family", family, sorted({entry.family for entry in entries}))
    named = [entry for entry in entries if pattern is None or _fits(entry.name, pattern)]
    if not named:
        raise _no_such(str(pattern), [entry.name for entry in entries])
    return [entry.read() for entry in named if family in (None, entry.family)]


def require_option(option: str, name: str | None, known: Iterable[str]) -> None:
    """Insist on a known name, where an option of the command has one; raises UserError."""
    known = list(known)
    if name is not None and name not in known:
        raise UserError(
            f"{option}: expected one of {', '.join(known)}; got {name!r}{meant(name, known)}\n"
            "  what to do: give one of these, or leave the option out"
        )


def _fits(name: str, pattern: str) -> bool:
    """Say whether a pattern means a model; Keras' are found in whatever case, as in a job."""
    folded = (name.lower(), pattern.lower()) if name.startswith("keras/") else (name, pattern)
    return fnmatchcase(*folded)


def _no_such(pattern: str, known: list[str]) -> UserError:
    return UserError(
        f"no model is called {pattern!r}{meant(pattern.replace('*', ''), known)}\n"
        "  expected a name or a pattern, as in 'resnet*' (torchvision's), 'timm/resnet*' or 'keras/*'"
    )


# ---- our own ----------------------------------------------------------------------------------


def _own() -> Iterator[_Entry]:
    for address, row in OWN.items():
        yield _Entry(row.name, row.family, partial(replace, row, at_hand=_is_installed(address)))
    for row in (*FROM_FILES, *COMPUTED):
        yield _Entry(row.name, row.family, partial(replace, row))


def _is_installed(address: str) -> bool:
    try:
        return Path(locate(address)).is_file()
    except (EnvironmentFault, Unreadable):
        return False


# ---- torchvision ------------------------------------------------------------------------------


def _torchvision() -> Iterator[_Entry]:
    for module in _MODULES:
        for name in torchvision.models.list_models(module=module):
            builder = torchvision.models.get_model_builder(name)
            yield _Entry(name, _family(builder), partial(_of_torchvision, name, _family(builder)))


def _family(builder: Callable[..., Any]) -> str:
    """Return the module that a builder lies in: libraries keep a module a family."""
    return builder.__module__.rpartition(".")[2]


def _of_torchvision(name: str, family: str) -> PublishedModel:
    entry: WeightsEnum = torchvision.models.get_model_weights(name)["DEFAULT"]
    [(data, metrics)] = entry.meta["_metrics"].items()
    file = Path(torch.hub.get_dir(), "checkpoints", PurePosixPath(entry.url).name)
    return PublishedModel(
        name=name,
        answer=next(answer for metric, (_, answer) in _METRICS.items() if metric in metrics),
        family=family,
        library="torchvision",
        weights=entry.name,
        parameters=entry.meta["num_params"],
        input_size=_crop(entry.transforms()),
        accuracy={_METRICS[metric][0]: value for metric, value in metrics.items()},
        data=data,
        licence=entry.meta.get("license"),
        at_hand=file.is_file(),
        download_mb=entry.meta["_file_size"],
    )


def _crop(preset: Any) -> tuple[int, int] | None:
    side = getattr(preset, "crop_size", None)
    return (side[0], side[-1]) if side else None


# ---- Keras ------------------------------------------------------------------------------------


def _keras() -> Iterator[_Entry]:
    for model in MODELS.values():
        yield _Entry(f"keras/{model.name}", model.family, partial(_of_keras, model))


def _of_keras(model: KerasModel) -> PublishedModel:
    return PublishedModel(
        name=f"keras/{model.name}",
        answer="label",
        family=model.family,
        library="keras",
        weights="DEFAULT",
        parameters=model.parameters,
        input_size=(model.side, model.side),
        accuracy={"top1": model.top1} | ({} if model.top5 is None else {"top5": model.top5}),
        data="ImageNet-1K",
        at_hand=_is_downloaded(model.url),
        download_mb=model.download_mb,
    )


def _is_downloaded(url: str) -> bool:
    """Say whether `cnnbatch.models.weights.files.fetch` keeps a file of this name."""
    name = PurePosixPath(url).name
    return bool(name) and any(cache_folder().glob(f"*/{name}"))


# ---- timm -------------------------------------------------------------------------------------


def _timm(tagged: bool) -> Iterator[_Entry]:
    """Yield timm's models; ``tagged``: one entry for each of the weights that are published for one."""
    for name in timm.list_pretrained() if tagged else timm.list_models():
        family = _family(model_entrypoint(name.partition(".")[0]))
        yield _Entry(f"timm/{name}", family, partial(_of_timm, name, family))


def _of_timm(name: str, family: str) -> PublishedModel:
    config = get_pretrained_cfg(name)
    if config is None:
        return PublishedModel(f"timm/{name}", "label", family, "timm")
    published = config.hf_hub_id or config.url
    return PublishedModel(
        name=f"timm/{name}",
        answer="label" if config.num_classes else "embedding",
        family=family,
        library="timm",
        weights=(config.tag or "DEFAULT") if published else None,
        input_size=(config.input_size[1], config.input_size[2]),
        licence=config.license if published else None,
        at_hand=_is_cached(config),
    )


def _is_cached(config: Any) -> bool:
    """Say whether the weights lie where `models.libraries.timm_models` looks for them."""
    if config.hf_hub_id:
        repository, _, revision = config.hf_hub_id.partition("@")
        files = (config.hf_hub_filename,) if config.hf_hub_filename else _HUB_FILES
        found = (try_to_load_from_cache(repository, file, revision=revision or None) for file in files)
        return any(isinstance(path, str) for path in found)
    return _is_downloaded(config.url or "")
