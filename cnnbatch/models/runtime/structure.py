"""Takes the tensors out of nested lists, tuples and mappings, and puts others in their places."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor


def flatten(value: Any) -> tuple[list[Tensor], Callable[[Sequence[Any]], Any]]:
    """Return the tensors in ``value``, in order, and what rebuilds it around as many others.

    Raises:
        TypeError: there is something other than tensors in lists, tuples and mappings.
    """
    tensors: list[Tensor] = []
    _collect(value, tensors)
    return tensors, lambda others: _rebuilt(value, iter(others))


def _collect(value: Any, found: list[Tensor]) -> None:
    if isinstance(value, Tensor):
        found.append(value)
    elif isinstance(value, Mapping):
        _collect(list(value.values()), found)
    elif isinstance(value, list | tuple):
        for one in value:
            _collect(one, found)
    else:
        raise TypeError(f"expected tensors in lists, tuples and mappings, got {type(value).__name__}")


def _rebuilt(value: Any, others: Iterator[Any]) -> Any:
    if isinstance(value, Tensor):
        return next(others)
    if isinstance(value, Mapping):
        return {name: _rebuilt(one, others) for name, one in value.items()}
    made = [_rebuilt(one, others) for one in value]
    return made if isinstance(value, list) else tuple(made)
