"""Folds batch normalisation and activation into the convolution before them.

The network then goes over its feature maps once where it went three times, which on a CPU is most of
the time of a cheap network. The price: sums are rounded in another order (about 1e-6 in float32).
"""

from __future__ import annotations

import inspect
import platform
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.ops import FrozenBatchNorm2d

from cnnbatch.models.runtime.structure import flatten

TOLERANCE = 1e-3

Attribute = tuple[str, list[float], str]
"""How oneDNN names an activation: its name, its scalars, its algorithm."""

_ACTIVATIONS: dict[type[nn.Module], Attribute] = {
    nn.ReLU: ("relu", [], ""),
    nn.ReLU6: ("hardtanh", [0.0, 6.0], ""),
    nn.Hardswish: ("hardswish", [], ""),
    nn.SiLU: ("swish", [], ""),
}


def fuse(
    module: nn.Module, device: str, example: Sequence[Any], dtype: torch.dtype = torch.float32
) -> nn.Module:
    """Return what computes the same as ``module`` in evaluation mode, with fewer passes over memory.

    ``module`` is float32 on the CPU and takes what ``example`` is; ``device`` is where it will run,
    in ``dtype``. Only plain convolutions without hooks change. A module that can't be traced, that
    refuses such inputs, or that computes another thing when traced, is returned as it is.

    Source: the folding is Jacob et al. 2018 (arXiv 1712.05877), equation 14.
    """
    try:
        graph = _Tracer().trace(module, _structures(module, example))
    except Exception:  # Tracing runs the model's own code on stand-ins for tensors, where anything may fail.
        return module
    fused = fx.GraphModule(module, graph)
    for node in list(graph.nodes):
        _fold_norm(fused, node)
    if device == "cpu" and _has_fused_convolution(dtype):
        for node in list(graph.nodes):
            _fold_activation(fused, node)
    fused.delete_all_unused_submodules()
    graph.lint()
    fused.recompile()
    return fused if _agree(module, fused, example) else module


class _Tracer(fx.Tracer):
    """Takes frozen batch normalisation for the one step that it is."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, FrozenBatchNorm2d) or super().is_leaf_module(m, module_qualified_name)


def _structures(module: nn.Module, example: Sequence[Any]) -> dict[str, Any] | None:
    """Return by parameter what lists and mappings the inputs are, which the tracer can't guess."""
    if all(isinstance(one, Tensor) for one in example):
        return None
    found = {}
    for name, one in zip(inspect.signature(module.forward).parameters, example, strict=False):
        tensors, rebuild = flatten(one)
        found[name] = rebuild([fx.PH] * len(tensors))  # type: ignore[attr-defined]
    return found


def _has_fused_convolution(dtype: torch.dtype) -> bool:
    """Say whether oneDNN has the one call on this processor; where the type is emulated it refuses."""
    if not torch._C._has_mkldnn or platform.machine() != "x86_64":
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype != torch.float16 or bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())


class FusedConvolution(nn.Module):
    """A convolution and the activation behind it, as one call of oneDNN on (N, C, H, W)."""

    def __init__(self, convolution: nn.Conv2d, attribute: Attribute) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias
        self._how = convolution.padding, convolution.stride, convolution.dilation, convolution.groups
        self._attribute = attribute

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the activated feature maps (N, C, H, W)."""
        convolve: Callable[..., Tensor] = torch.ops.mkldnn._convolution_pointwise
        return convolve(pixels, self.weight, self.bias, *self._how, *self._attribute)


def _fold_norm(fused: fx.GraphModule, norm: fx.Node) -> None:
    convolution, layer = _only_convolution_before(fused, norm), _layer(fused, norm)
    if convolution is None or not _normalises_by_constants(layer):
        return
    constants: Any = layer
    _replace(fused, convolution, norm, fuse_conv_bn_eval(_convolution(fused, convolution), constants))


def _normalises_by_constants(layer: nn.Module | None) -> bool:
    if layer is None or layer.training:
        return False
    if type(layer) is nn.BatchNorm2d:
        return layer.running_mean is not None
    return type(layer) is FrozenBatchNorm2d


def _fold_activation(fused: fx.GraphModule, activation: fx.Node) -> None:
    convolution, attribute = _only_convolution_before(fused, activation), _attribute(fused, activation)
    if convolution is not None and attribute is not None:
        layer = _convolution(fused, convolution)
        if not isinstance(layer.padding, str):
            _replace(fused, convolution, activation, FusedConvolution(layer, attribute))


def _replace(fused: fx.GraphModule, convolution: fx.Node, after: fx.Node, layer: nn.Module) -> None:
    """Have ``layer`` do what ``convolution`` and the node behind it did; other users keep theirs."""
    fused.add_submodule(f"fused_{convolution.name}", layer)
    convolution.target = f"fused_{convolution.name}"
    after.replace_all_uses_with(convolution)
    fused.graph.erase_node(after)


def _only_convolution_before(fused: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Return the plain convolution whose result is used by ``node`` and by nothing else."""
    before = node.args[0] if node.args else None
    if not isinstance(before, fx.Node) or len(before.users) != 1:
        return None
    layer = _layer(fused, before)
    if type(layer) is not nn.Conv2d or layer.padding_mode != "zeros":
        return None
    return None if layer._forward_hooks or layer._forward_pre_hooks else before


def _layer(fused: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return fused.get_submodule(str(node.target)) if node.op == "call_module" else None


def _convolution(fused: fx.GraphModule, node: fx.Node) -> nn.Conv2d:
    layer = _layer(fused, node)
    assert isinstance(layer, nn.Conv2d)
    return layer


def _attribute(fused: fx.GraphModule, node: fx.Node) -> Attribute | None:
    if node.op == "call_function" and node.target is nn.functional.relu:
        return _ACTIVATIONS[nn.ReLU]
    layer = _layer(fused, node)
    if type(layer) is nn.LeakyReLU:
        return "leaky_relu", [layer.negative_slope], ""
    return None if layer is None else _ACTIVATIONS.get(type(layer))


def _agree(module: nn.Module, fused: nn.Module, example: Sequence[Any]) -> bool:
    """Say whether both give the same for the example; they don't where one refuses it."""
    tensors, rebuild = flatten(tuple(example))
    channels_last = [
        one.contiguous(memory_format=torch.channels_last) if one.ndim == 4 else one for one in tensors
    ]
    try:
        with torch.inference_mode():
            expected = flatten(module(*example))[0]
            found = flatten(fused(*rebuild(channels_last)))[0]
    except Exception:  # The model's own, whose words `network.check` tells.
        return False
    return len(found) == len(expected) and all(map(_near, found, expected))


def _near(found: Tensor, expected: Tensor) -> bool:
    scale = max(1e-6, float(expected.abs().max())) if expected.numel() else 1.0
    return found.shape == expected.shape and bool(((found - expected).abs() <= TOLERANCE * scale).all())
