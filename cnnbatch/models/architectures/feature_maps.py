"""A classifier of torchvision as a backbone: the feature maps that it has at each stride, and no head.

Which outputs these are is read from the network itself, traced and run without values. So any classifier will
do whose maps become half as large each time; tensors keep the classifier's own names, and so its published
weights fit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torchvision
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torchvision.models import feature_extraction

from cnnbatch.errors import UserError
from cnnbatch.models import depth
from cnnbatch.models.libraries import torchvision_models
from cnnbatch.models.network import last_layer

STRIDES = (2, 4, 8, 16, 32)

_NEEDED = {4, 8, 16, 32}
_SIDE = 256  # of the picture that the strides are told by
_WIDENING = 2  # times the channels from which on a last 1 x 1 convolution only feeds the classifier


@dataclass(frozen=True, slots=True)
class Level:
    """The last features at one stride: which node of the traced classifier gives them, and how many."""

    stride: int
    node: str
    channels: int


def backbone(classifier: str, levels: Sequence[Level]) -> fx.GraphModule:
    """Return the part of a classifier of torchvision that gives the features at some of its `levels`.

    It maps (N, 3, H, W) to a mapping from each stride, as text, to (N, C, H / stride, W / stride).
    """
    whole = torchvision_models.architecture(classifier).make(1, {}, (_SIDE, _SIDE)).eval()
    graph, names = _traced(whole)
    nodes = {name: node for node, name in names.items()}
    for node in [node for node in graph.nodes if node.op == "output"]:
        graph.erase_node(node)
    graph.output({str(level.stride): nodes[level.node] for level in levels})
    found = fx.GraphModule(whole, graph)
    found.graph.eliminate_dead_code()
    found.delete_all_unused_submodules()
    found.recompile()
    return found


@cache
def levels(classifier: str) -> tuple[Level, ...]:
    """Return the last block's output at each of `STRIDES` that a classifier of torchvision has.

    A 1 x 1 convolution at the end that only widens the features for the classifier is left out, as in
    MobileNets.

    Raises:
        UserError: it can't be traced, or lacks one of the strides 4 to 32.
    """
    try:
        found = {level.stride: level for level in _outputs(classifier)}
    except (
        fx.proxy.TraceError,
        ValueError,
        TypeError,
        RuntimeError,
        AttributeError,
        AssertionError,
    ) as error:
        raise _no_backbone(classifier, f"it can't be traced: {error}") from error
    if not found.keys() >= _NEEDED:
        raise _no_backbone(classifier, f"its maps have the strides {sorted(found)}")
    return tuple(found[stride] for stride in STRIDES if stride in found)


def _no_backbone(classifier: str, why: str) -> UserError:
    return UserError(
        f"task.model: {classifier} is no backbone for a segmenter, which needs maps that become half as "
        f"large each time, up to stride {max(STRIDES)}; {why}\n"
        "  what to do: take a convolutional network, as resnet18, mobilenet_v2, efficientnet_b0 or vgg16_bn"
    )


def _outputs(classifier: str) -> Iterator[Level]:
    """Yield what the classifier's blocks give, and what lies between them, from the input on."""
    model = _without_values(classifier)
    graph, names = _traced(model)
    with torch.device("meta"):
        ShapeProp(fx.GraphModule(model, graph)).propagate(torch.empty(1, 3, _SIDE, _SIDE))
    kept, left_out = _blocks(model)
    nodes = [(names.get(node, ""), _level(node)) for node in graph.nodes]
    ends = {_inside(name, kept): level for name, level in nodes if level is not None}
    for name, level in nodes:
        block = _inside(name, kept)
        if _inside(name, left_out):
            return
        if level is not None and (not block or _stride(ends[block]) == _stride(level)):
            yield Level(_stride(level), name, level[1])


def _without_values(classifier: str) -> nn.Module:
    """Return a classifier whose parameters have shapes only."""
    make = torchvision_models.architecture(classifier).make
    try:
        with torch.device("meta"):
            return make(1, {}, (_SIDE, _SIDE)).eval()
    except NotImplementedError:  # RegNets compute their widths by tensors.
        return make(1, {}, (_SIDE, _SIDE)).eval().to("meta")


def _traced(model: nn.Module) -> tuple[fx.Graph, dict[fx.Node, str]]:
    """Return a model's graph, and the name of each node that computes something."""
    layers = [one for one in vars(torchvision.ops).values() if isinstance(one, type)]
    leaves = [one for one in layers if issubclass(one, nn.Module)]
    tracer = feature_extraction.NodePathTracer(autowrap_modules=(math, torchvision.ops), leaf_modules=leaves)
    return tracer.trace(model), tracer.node_to_qualname


def _level(node: fx.Node) -> torch.Size | None:
    """Return the shape of a map at one of the strides; None of what is none."""
    shape: torch.Size | None = getattr(node.meta.get("tensor_meta"), "shape", None)
    if shape is None or len(shape) != 4 or shape[2] != shape[3]:
        return None
    return shape if _stride(shape) in STRIDES else None


def _stride(shape: torch.Size) -> int:
    return _SIDE // shape[2] if _SIDE % shape[2] == 0 else 0


def _inside(name: str, blocks: Sequence[str]) -> str:
    """Return the block that a node is in, or that is in the node; nothing where there is none."""
    return next((one for one in blocks if f"{name}.".startswith(f"{one}.") or one.startswith(f"{name}.")), "")


def _blocks(model: nn.Module) -> tuple[list[str], list[str]]:
    """Return the names of a classifier's blocks, those that only serve its head apart."""
    _, head = last_layer(model)
    found = [(name, block) for name, block in depth.blocks(model, head=head) if block is not head]
    end = len(found)
    while end and not _convolutions(found[end - 1][1]):  # Normalisations, and linear layers.
        end -= 1
    if end and _only_widens(found[end - 1][1]):
        return [name for name, _ in found[: end - 1]], [name for name, _ in found[end - 1 :]]
    return [name for name, _ in found], []


def _convolutions(block: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in block.modules() if isinstance(layer, nn.Conv2d)]


def _only_widens(block: nn.Module) -> bool:
    """Say whether a block is one 1 x 1 convolution that gives many more channels than it takes."""
    layers = _convolutions(block)
    return (
        len(layers) == 1
        and layers[0].kernel_size == (1, 1)
        and layers[0].out_channels >= _WIDENING * layers[0].in_channels
    )
