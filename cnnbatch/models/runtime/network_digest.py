"""Tells by a digest whether two networks compute the same: of their weights, their settings and their code.

Only what is wholly known has one: layers of packages that have a version, settings that are plain values. A
network with code of the user's, hooks, or a traced graph has none, rather than one that misses a change.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from cnnbatch.models.network import library

_OWN = "cnnbatch"
_PACKAGES = (_OWN, "timm", "torch", "torchvision")


class _Unknown(Exception):
    """Something that may change what a network computes, and that can't be told."""


def network_digest(module: nn.Module, example: Sequence[Any]) -> str | None:
    """Return the SHA-256 of a network on the CPU and of what its inputs look like; None where it has none."""
    digest = hashlib.sha256()
    try:
        digest.update(repr([_input(one) for one in example]).encode())
        for name, part in module.named_modules():
            digest.update(repr([name, *_layer(part)]).encode())
            for tensor in (*part._parameters.values(), *part._buffers.values()):
                if tensor is not None:
                    values = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
                    digest.update(memoryview(values.numpy()))
    except _Unknown:
        return None
    return digest.hexdigest()


def _input(value: Any) -> Any:
    if isinstance(value, Tensor):
        return (str(value.dtype), tuple(value.shape))
    if isinstance(value, Mapping):
        return {str(name): _input(one) for name, one in value.items()}
    return [type(value).__name__, *map(_input, value)]


def _layer(part: nn.Module) -> Iterator[Any]:
    """Yield a layer's code, its settings, and what its tensors are called and look like."""
    yield _code(type(part))
    for name, value in sorted(vars(part).items()):
        if name in ("_parameters", "_buffers"):
            yield [(key, None if one is None else _input(one)) for key, one in value.items()]
        else:
            yield name, list(value) if name == "_modules" else _setting(value)


def _setting(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str | torch.dtype):
        return repr(value)
    if isinstance(value, list | tuple):
        return [_setting(one) for one in value]
    if isinstance(value, set | frozenset):
        return sorted(repr(_setting(one)) for one in value)
    if isinstance(value, Mapping):
        return [(_setting(key), _setting(one)) for key, one in value.items()]
    if isinstance(value, functools.partial):
        return [_setting(value.func), _setting(value.args), _setting(value.keywords)]
    if isinstance(value, type | FunctionType | BuiltinFunctionType):
        return _code(value)
    raise _Unknown(type(value).__name__)


def _code(of: Any) -> tuple[str, str, str]:
    """Return the name of a class or a function with the version of its package; ours by their source."""
    package = (of.__module__ or "").partition(".")[0]
    if package not in _PACKAGES or "<" in of.__qualname__:
        raise _Unknown(of.__qualname__)
    return of.__module__, of.__qualname__, _source(of) if package == _OWN else library(package)


def _source(of: Any) -> str:
    path = inspect.getsourcefile(of)
    if path is None:
        raise _Unknown(of.__qualname__)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
