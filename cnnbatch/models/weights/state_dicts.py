"""A network's weights as they lie in a training script's checkpoint, under the keys that such scripts use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cnnbatch.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

_AVERAGES = ("state_dict_ema", "model_ema")
"""The keys under which training scripts keep averages of the weights; timm takes these before others."""
_WRAPPERS = (*_AVERAGES, "state_dict", "model")
"""All keys under which they keep a state dict, in the order of `timm.models.load_state_dict`."""
_PREFIXES = ("_orig_mod.", "module.", "_orig_mod.")
"""What ``torch.compile`` and data-parallel training put before each name, in either order; timm's list."""
_AVERAGED = "n_averaged"  # counts what torch's AveragedModel has averaged


class StateDict(dict[str, "Tensor"]):
    """Tensors by name; ``part`` is the key of the checkpoint in which they lay, ``others`` what lay beside.

    ``prefix`` was before every name there.
    """

    part = ""
    others: tuple[str, ...] = ()
    prefix = ""
    _metadata: object = None  # Versions of modules, which torch keeps as an attribute.

    @property
    def is_average(self) -> bool:
        """Whether these are averages of the weights."""
        return self.part in _AVERAGES

    def notes(self, path: Path) -> tuple[str, ...]:
        """Return in words which weights were taken where the file has several."""
        if not self.others:
            return ()
        return (f"task.weights: of {path.name} {self.part} was taken, not {' and '.join(self.others)}",)


def unwrapped(content: object, path: Path) -> StateDict:
    """Return the tensors in what a torch file holds, perhaps as ``{"state_dict": ...}``.

    Raises:
        UserError: there are none, or things beside them.
    """
    from torch import Tensor

    there = [key for key in _WRAPPERS if isinstance(content, dict) and isinstance(content.get(key), dict)]
    inner: object = content[there[0]] if there and isinstance(content, dict) else content
    if (
        isinstance(inner, dict)
        and inner
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in inner.items())
    ):
        return _named(inner, there)
    raise UserError(
        f"task.weights: {str(path)!r} holds a {type(inner).__name__} that is not a state dict. "
        "Expected tensors by name, as model.state_dict() gives them."
    )


def _named(tensors: Mapping[str, Tensor], parts: Sequence[str]) -> StateDict:
    """Return a part of a checkpoint under the module's own names; a whole file keeps those that it has."""
    found = StateDict(tensors)
    found._metadata = getattr(tensors, "_metadata", None)
    if not parts:
        return found
    found.part, found.others = parts[0], tuple(parts[1:])
    found.pop(_AVERAGED, None)
    for prefix in _PREFIXES:
        if found and all(name.startswith(prefix) for name in found):
            named = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
            found.clear()
            found.update(named)
            found.prefix, found._metadata = found.prefix + prefix, None
    return found
