"""Has torchvision and timm imported without torch's compiler, for which they ask and which they hardly use.

The compiler (torch._dynamo, torch._inductor, sympy) takes more than a second to import. `torchvision.ops`
takes from it a function that `roi_align` calls where its compiled operator is missing, or where a GPU has to
be deterministic; `torchvision.tv_tensors` and timm take a decorator. Both load it once they are called. The
price is a hook on the import of these packages, and of no others.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_COMPILER = "torch._dynamo"
_ASKED = "torch._dynamo.utils"


def defer_compiler() -> None:
    """From now on, have these packages imported without torch's compiler; nothing is imported yet."""
    if _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)


class _Finder:
    """Finds what `_WHILE` names where Python does, and nothing else; see `sys.meta_path`."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in _WHILE:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:  # Left to the other finders: imported as usual.
            return None
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            with _WHILE[name]():
                run(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


@contextmanager
def _module_deferred() -> Iterator[None]:
    """Let a stand-in be found for the module that torchvision.ops asks for, unless that is there already."""
    if _ASKED in sys.modules:
        yield
        return
    sys.modules[_ASKED] = _StandIn(_ASKED)
    try:
        yield
    finally:
        _take_out()


@contextmanager
def _decorator_deferred() -> Iterator[None]:
    """Have `torch.compiler.disable` be what torch uses in its place: that loads nothing before a call."""
    from torch import _compile, compiler

    lazy = getattr(_compile, "_disable_dynamo", None)
    if lazy is None or _COMPILER in sys.modules:
        yield
        return
    eager, compiler.disable = compiler.disable, lazy
    try:
        yield
    finally:
        compiler.disable = eager


_WHILE: Mapping[str, Callable[[], AbstractContextManager[None]]] = {
    "torchvision": _module_deferred,
    "torchvision.tv_tensors": _decorator_deferred,
    "timm": _decorator_deferred,
}
"""What holds while a module is imported."""


class _StandIn(ModuleType):
    """Has one function of `torch._dynamo.utils`; who asks for anything else gets the real module's."""

    @staticmethod
    def is_compile_supported(device_type: Any) -> Any:
        """Return whether torch compiles for a device, once somebody wants to know."""
        return _real().is_compile_supported(device_type)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # What Python asks of every module.
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(_real(), name)


# As torch marks its own: the compiler takes the answer as a constant.
_StandIn.is_compile_supported._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _real() -> ModuleType:
    _take_out()
    return import_module(_ASKED)


def _take_out() -> None:
    if isinstance(sys.modules.get(_ASKED), _StandIn):
        sys.modules.pop(_ASKED, None)
