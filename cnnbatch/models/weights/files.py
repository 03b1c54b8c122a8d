"""From the name of a weights file to a checked state dict.

Only data is read, never code: safetensors, torch files through ``weights_only``, Keras' HDF5 files, or
the tensors of an ONNX file; formats that need a pickle are refused, and have to be converted once by
whoever trusts them.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.models.weights import files, keras_files, onnx_files
from cnnbatch.models.weights.state_dicts import StateDict, unwrapped
from cnnbatch.storage.text import decoded

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cnnbatch.storage import Storage
from cnnbatch.storage.cache import cache_folder

_NAMES_SHOWN = 8
_MD5_DIGITS = 32
_LONGEST_MAP = 4 << 20  # characters; a detector's of 500 tensors has 50 thousand
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.")
_COUNTER = "num_batches_tracked"  # counts training steps; inference never reads it


def fetch(spec: str, sha256: str | None = None, storage: Storage | None = None) -> Path:
    """Return the local file that ``spec`` names: a path, a URL, or ``package:NAME/PATH``.

    ``sha256`` may be an MD5, where a publisher has no other.

    A URL is downloaded once into the user's cache; a package's file is read where it lies, without
    importing the package.

    Raises:
        UserError: there is no such file, or its SHA-256 is not ``sha256`` (hexadecimal).
    """
    from cnnbatch.storage import is_local, normalize

    files.refuse(spec, "task.weights")
    if spec.startswith("package:"):
        path = _package_file(spec)
    elif is_local(spec):
        path = Path(normalize(spec))
    else:
        path = _download(spec, storage)
    if not os.path.isfile(path):  # Which bears a name too long for any file.
        raise UserError(
            f"task.weights: expected a .safetensors, torch, .onnx or .h5 file, but there is no file {path}"
        )
    verify(path, sha256)
    return path


def fetch_published(address: str, published: str | None, storage: Storage | None = None) -> Path:
    """Return the local copy of a publisher's file, checked by its published hash, or by that in its name.

    Raises:
        EnvironmentFault: it can't be had, or what came is another file, which is not kept.
    """
    from cnnbatch.storage import is_local, redact

    try:
        path = fetch(address, storage=storage)
    except UserError as error:  # The address is the publisher's, not the person's.
        raise unreachable([redact(address)], error) from error
    named = _HASH_IN_NAME.search(PurePosixPath(address).name)
    expected = published or (named[1] if named else "")
    if is_file_of(path, published) if published else is_named_by_hash(path, address) or not named:
        return path
    came = _md5(path) if len(expected) == _MD5_DIGITS else digest(path)
    if not is_local(address) and not address.startswith("package:"):
        path.unlink()
    raise other_than_published([redact(address)], f"expected the hash {expected}, came {came}")


def identity(path: Path, loaded: StateDict) -> str:
    """Return what tells weights from others: their file's SHA-256, and of averages which part they are."""
    return f"{digest(path)} {loaded.part}" if loaded.is_average else digest(path)


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal.

    An ONNX file may keep its tensors in other files: then it is that of all their digests, one a line,
    the file's own first and the others by name.
    """
    digests = [_digest_of(part) for part in (path, *_beside(path))]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(f"{one}\n" for one in digests).encode()).hexdigest()


def _beside(path: Path) -> list[Path]:
    return onnx_files.other_files(path) if path.suffix == onnx_files.SUFFIX else []


def _digest_of(path: Path) -> str:
    status = path.stat()
    return _digest(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=16)
def _digest(path: Path, _mtime_ns: int, _size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_named_by_hash(path: Path, address: str) -> bool:
    """Say whether a file is the one at an address whose name ends with the first digits of its SHA-256.

    So torchvision, torch.hub and timm name their files: ``mobilenet_v2-b0353104.pth``.
    """
    found = _HASH_IN_NAME.search(PurePosixPath(address).name)
    return found is not None and digest(path).startswith(found[1])


def is_file_of(path: Path, published: str) -> bool:
    """Say whether a file has a published SHA-256, or MD5."""
    return (_md5(path) if len(published) == _MD5_DIGITS else digest(path)) == published.lower()


def verify(path: Path, sha256: str | None) -> None:
    """Check a file against the SHA-256 that the job names, if it names one, or its publisher's MD5.

    Raises:
        UserError: they differ.
    """
    if sha256 is None:
        return
    if not is_file_of(path, sha256):
        is_md5 = len(sha256) == _MD5_DIGITS
        came = _md5(path) if is_md5 else digest(path)
        raise UserError(
            f"task.sha256: {str(path)!r} is not the file that the job, or the model.json beside it, names: "
            f"expected {'MD5' if is_md5 else 'SHA-256'} {sha256}, came {came}. Fetch the file again, or mend "
            "what names it."
        )


def _md5(path: Path) -> str:
    status = path.stat()
    return _md5_at(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=16)
def _md5_at(path: Path, _mtime_ns: int, _size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()


def load(path: Path) -> StateDict:
    """Read a state dict (name -> tensor, on the CPU): ``.safetensors``, ``.onnx``, ``.h5`` or a torch file.

    Of a training's checkpoint the averages are taken, where it has some, as timm does.

    Raises:
        UserError: the file is damaged, needs a pickle, or holds something other than a state dict.
    """
    if path.suffix == ".safetensors":
        return StateDict(_load_safetensors(path))
    if path.suffix == onnx_files.SUFFIX:
        return StateDict(onnx_files.initialisers(path))
    if path.suffix in keras_files.SUFFIXES:
        return StateDict(keras_files.load(path))
    keras_files.refuse_archive(path)
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch reports damage by many types; all of them mean the same here
        raise UserError(
            f"task.weights: {str(path)!r} is no plain torch state dict ({_first_line(error)}). Expected a "
            ".safetensors, .onnx or .h5 file, or one that torch.load reads with weights_only=True; "
            "to convert it, load it where you trust it and save model.state_dict() as safetensors."
        ) from error
    return unwrapped(content, path)


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"task.weights: {str(path)!r} is no whole safetensors file: {error}.") from error


def read_key_map(name: str) -> dict[str, str]:
    """Read a key map (name in the file -> name in the module): one of this package's, or a JSON file.

    Raises:
        UserError: there is none of that name, or it maps two names to one.
    """
    bundled = resources.files("cnnbatch.models") / "key_maps" / f"{name}.json"
    source = bundled if PurePosixPath(name).name == name and bundled.is_file() else Path(name).expanduser()
    try:
        with source.open("rb") as file:
            text = decoded(file.read(_LONGEST_MAP + 1))
        if len(text) > _LONGEST_MAP:
            raise ValueError(f"it has more than {_LONGEST_MAP:,} characters")
        content = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"task.key_map: {name!r} is no known key map and no JSON file: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise UserError(f"task.key_map: expected {{name in the file: name in the model}} in {name!r}")
    if len(set(content.values())) < len(content):
        raise UserError(f"task.key_map: {name!r} maps two names of the file to one of the model.")
    return content


def rename(state: Mapping[str, Tensor], key_map: Mapping[str, str] | None) -> dict[str, Tensor]:
    """Return ``state`` under the module's names; a name that the map does not know stays."""
    if not key_map:
        return dict(state)
    return {key_map.get(name, name): tensor for name, tensor in state.items()}


def apply(
    module: nn.Module,
    state: Mapping[str, Tensor],
    key_map: Mapping[str, str] | None = None,
    where: str = "the file",
) -> None:
    """Load ``state`` into ``module`` in place; every name and every shape has to fit.

    Raises:
        UserError: names are missing or unexpected, or shapes differ; it lists them.
    """
    renamed = rename(state, key_map)
    expected = module.state_dict()
    problems = list(misfits(expected, renamed))
    if problems and (
        prefix := getattr(state, "prefix", "")
    ):  # What looked like a wrapper is the module's own.
        whole = rename({prefix + name: tensor for name, tensor in state.items()}, key_map)
        if not list(misfits(expected, whole)):
            renamed, problems = whole, []
    if problems:
        raise UserError(
            f"task.weights: {where} does not fit {type(module).__name__}.\n"
            + "\n".join(problems)
            + "\nCheck task.model, task.classes (their number sizes the head) and task.key_map."
        )
    # Some modules (MNASNet) read a version from the metadata, which safetensors cannot carry.
    metadata = getattr(state, "_metadata", None) if not key_map else None
    ordered = type(expected)(renamed)
    ordered._metadata = metadata or getattr(expected, "_metadata", None)  # type: ignore[attr-defined]
    module.load_state_dict(ordered, strict=False)


def misfits(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield one line for the missing names, one for the unexpected ones and one a wrong shape."""
    missing = [name for name in expected if name not in state and not name.endswith(_COUNTER)]
    unexpected = [name for name in state if name not in expected and not name.endswith(_COUNTER)]
    if missing:
        yield f"  missing ({len(missing)}): {_some(missing)}"
    if unexpected:
        yield f"  unexpected ({len(unexpected)}): {_some(unexpected)}"
    for name in expected.keys() & state.keys():
        want, came = tuple(expected[name].shape), tuple(state[name].shape)
        if want != came:
            yield f"  {name}: expected shape {want}, came {came}"


def _some(names: list[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


def _package_file(uri: str) -> Path:
    from cnnbatch.storage import Unreadable
    from cnnbatch.storage.package import locate

    try:
        return Path(locate(uri))
    except Unreadable as error:
        raise UserError(f"task.weights: {error}") from error


def _download(uri: str, storage: Storage | None) -> Path:
    """Fetch a URL into the cache, under a name that changes when the object does."""
    from cnnbatch import storage as stores

    storage = storage or stores.Storage()
    try:
        entry = storage.head(uri)
        label = hashlib.sha256(f"{uri} {entry.etag} {entry.size}".encode()).hexdigest()[:16]
        target = cache_folder() / label / (PurePosixPath(uri.partition("?")[0]).name or "weights")
        if not target.is_file():
            _copy(storage, uri, target)
    except stores.NotFound as error:
        raise UserError(
            f"task.weights: there is no file at {stores.redact(uri)} ({_first_line(error)})\n"
            "  what to do: look at the address"
        ) from error
    except (stores.Forbidden, stores.Unreadable, EnvironmentFault) as error:
        raise unreachable([stores.redact(uri)], error) from error
    return target


def _copy(storage: Storage, uri: str, target: Path) -> None:
    """Copy an object to ``target`` in one step, so that workers started together never see a part of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file, storage.open(uri) as source:
            shutil.copyfileobj(source, file, 1 << 20)
        os.replace(name, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def unreachable(tried: list[str], error: Exception) -> EnvironmentFault:
    """Return the fault that a failed download of weights is: what was tried, and what to do instead."""
    return EnvironmentFault(
        "task.weights: these weights are not on this machine and could not be downloaded. Tried:\n"
        + "\n".join(f"  {place}" for place in tried)
        + f"\n  the last answer: {_first_line(error)}",
        "give the same command again where there is a network, or download the file there and give it here: "
        "task.weights=/path/file.safetensors",
    )


def other_than_published(places: list[str], words: str) -> EnvironmentFault:
    """Return the fault that a file of weights is whose hash is not the one that its publisher names."""
    return EnvironmentFault(
        f"task.weights: what came is not the published file ({words}); nothing of it was used. Tried:\n"
        + "\n".join(f"  {place}" for place in places),
        "give the same command again; if it stays so, look at what lies between this machine and that "
        "address, or give the file from elsewhere: task.weights=/path/file.safetensors",
    )


_GRAPH = "saved_model.pb"


def refuse(spec: str, field: str) -> None:
    """Refuse a SavedModel: its folder, or any ``.pb`` file; ``field`` is the job's field that names it.

    Raises:
        UserError: it is one; says how to export it to ONNX.
    """
    trimmed = spec.rstrip("/")
    if trimmed.endswith(".pb"):
        folder = trimmed.rpartition("/")[0] or "."
    elif "://" not in trimmed and os.path.isfile(os.path.join(trimmed, _GRAPH)):
        folder = trimmed
    else:
        return
    raise UserError(
        f"{field}: {spec!r} is a TensorFlow SavedModel, which needs TensorFlow; expected an ONNX file\n"
        "  what to do: export it where TensorFlow is installed (pip install tf2onnx), and run that:\n"
        f"  python -m tf2onnx.convert --saved-model {folder} --output model.onnx\n"
        "  and give task.model=onnx task.weights=model.onnx (docs/onnx.md has the rest)"
    )
