"""Loads what a network has in common with the weights it is trained from: all of its backbone, at least."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from cnnbatch.errors import UserError
from cnnbatch.models.weights import files

if TYPE_CHECKING:
    from torch import Tensor, nn

_BACKBONE = "backbone."
_FEATURES = "features."  # What torchvision's classifiers call their body.


def load(module: nn.Module, state: Mapping[str, Tensor], where: str = "the file") -> None:
    """Load ``state`` into ``module``, which has a submodule ``backbone``; all of that has to be there.

    The state is that of such a module, or of the classifier that the backbone is taken from. Of the head, the
    tensors that have the same name and shape are loaded, the others stay as they are.

    Raises:
        UserError: tensors of the backbone are missing, or of other shapes; it lists them.
    """
    expected = module.state_dict()
    named = next((one for one in _readings(state) if _has_backbone(expected, one)), None)
    if named is None:
        raise _no_backbone(module, state, where)
    fitting = {
        name: tensor
        for name, tensor in named.items()
        if name in expected and expected[name].shape == tensor.shape
    }
    module.load_state_dict(fitting, strict=False)


def load_connected(module: nn.Module, state: Mapping[str, Tensor], layers: Mapping[str, str]) -> None:
    """Load fully connected layers of a classifier into convolutions as large as what these layers see.

    ``layers`` leads from the names of convolutions to those of the classifier's layers; what the state lacks,
    or has for another size, stays as it is (Long et al. 2015, section 3.1).
    """
    expected = module.state_dict()
    pairs = [
        (f"{ours}.{part}", f"{its}.{part}") for ours, its in layers.items() for part in ("weight", "bias")
    ]
    fitting = {
        ours: state[its].reshape(expected[ours].shape)
        for ours, its in pairs
        if its in state and state[its].numel() == expected[ours].numel()
    }
    module.load_state_dict(fitting, strict=False)


def _readings(state: Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
    """Yield the state under the names that it may have in the module."""
    yield state
    yield {_BACKBONE + name: tensor for name, tensor in state.items()}
    yield {_BACKBONE + name.removeprefix(_FEATURES): tensor for name, tensor in state.items()}


def _has_backbone(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> bool:
    return not any(files.misfits(_of_backbone(expected), _of_backbone(state, expected)))


def _of_backbone(state: Mapping[str, Tensor], known: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return the tensors of the backbone, of those that are ``known``: a classifier has a head of its own."""
    return {
        name: tensor
        for name, tensor in state.items()
        if name.startswith(_BACKBONE) and (known is None or name in known)
    }


def _no_backbone(module: nn.Module, state: Mapping[str, Tensor], where: str) -> UserError:
    expected = module.state_dict()
    nearest = max(_readings(state), key=lambda one: len(one.keys() & expected.keys()))
    problems = files.misfits(_of_backbone(expected), _of_backbone(nearest, expected))
    return UserError(
        f"task.weights: {where} does not fit the backbone of {type(module).__name__}.\n"
        + "\n".join(problems)
        + "\nCheck task.model and task.key_map."
    )
