"""Reads ONNX files as data: what goes in and out, metadata, and tensors; nothing in them is run.

A file may keep tensors in other files, which have to lie in its own folder. The price: whoever runs
the file parses it once more.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnbatch.errors import UserError

if TYPE_CHECKING:
    from onnx import (
        AttributeProto,
        GraphProto,
        ModelProto,
        NodeProto,
        SparseTensorProto,
        TensorProto,
        ValueInfoProto,
    )
    from torch import Tensor

SUFFIX = ".onnx"

_SHAPING = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
_WHOLE = re.compile("[0-9]{1,18}")
_BITS = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}  # of types smaller than a byte
_DOTTED = re.compile(r"\w+(\.\w+)+")  # the name of a tensor in a module, as torch's exporter keeps it


@dataclass(frozen=True, slots=True)
class Port:
    """An input or an output; a side of None is free, a shape of None says nothing at all.

    ``dtype`` is numpy's name of the type, empty where it is no tensor.
    """

    name: str
    shape: tuple[int | None, ...] | None
    dtype: str

    def __str__(self) -> str:
        sides = "unknown" if self.shape is None else ", ".join(str(side or "?") for side in self.shape)
        return f"{self.name} {self.dtype or 'no tensor'} ({sides})"


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """What an ONNX file says about itself.

    ``makers`` has the operator that each output comes from, those left out that only reshape or copy;
    ``lengths`` are the first and last sides of its tensors.
    """

    path: Path
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    metadata: Mapping[str, str]
    makers: Mapping[str, str]
    lengths: frozenset[int]


def package(name: str) -> Any:
    """Import a package that ONNX files need.

    Raises:
        UserError: it can't be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"task.weights: an ONNX file needs the package {name}, which cannot be imported here: {error}\n"
            "  what to do: pip install 'cnnbatch[onnx]'"
        ) from error


def read(path: Path) -> OnnxFile:
    """Read what a file says about itself, without the tensors that lie in other files.

    Raises:
        UserError: it is damaged, or names a file outside its folder.
    """
    model = _parse(path)
    _other_files(model, path)
    graph = model.graph
    tensors = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    return OnnxFile(
        path=path,
        inputs=tuple(_port(value) for value in graph.input if value.name not in tensors),
        outputs=tuple(_port(value) for value in graph.output),
        metadata={entry.key: entry.value for entry in model.metadata_props},
        makers=_makers(graph),
        lengths=frozenset(side for dims in tensors.values() for side in (*dims[:1], *dims[-1:])),
    )


def other_files(path: Path) -> list[Path]:
    """Return the files that hold the rest of an ONNX file's tensors, in the order of their names.

    Raises:
        UserError: one is not there, or lies outside the file's folder.
    """
    return _other_files(_parse(path), path)


def initialisers(path: Path) -> dict[str, Tensor]:
    """Return the tensors of an ONNX file by name, on the CPU, in their own types.

    What belongs to the graph rather than to the network is left out: whole numbers and single numbers
    that are not named like a module's (``features.0.weight``). Tensors that are equal, and therefore
    there only once, come back under each of their names.

    Raises:
        UserError: the file is damaged, names a file outside its folder, or has a type torch has not.
    """
    model, onnx = _parse(path), package("onnx")
    if _other_files(model, path):
        try:
            onnx.load_external_data_for_model(model, str(path.parent))
        except Exception as error:  # onnx reports damage by several types; all mean the same here
            raise _damaged(path, error) from error
    state = {tensor.name: _tensor(tensor, path) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Identity" and node.output and node.input and node.input[0] in state:
            state[node.output[0]] = state[node.input[0]]
    return {name: tensor for name, tensor in state.items() if _is_weight(name, tensor)}


def _parse(path: Path) -> ModelProto:
    onnx = package("onnx")
    try:
        model: ModelProto = onnx.load(str(path), format="protobuf", load_external_data=False)
    except Exception as error:  # protobuf reports damage by several types; all mean the same here
        raise _damaged(path, error) from error
    if not (model.ir_version and model.HasField("graph")):
        raise _damaged(path, "it has no graph")
    return model


def _damaged(path: Path, reason: Exception | str) -> UserError:
    text = " ".join(str(reason).split())[:200] or type(reason).__name__
    return UserError(
        f"task.weights: expected an ONNX file, but {str(path)!r} is none, or not whole: {text}\n"
        "  what to do: fetch or export it again"
    )


# ---- what it says -----------------------------------------------------------------------------


def _port(value: ValueInfoProto) -> Port:
    onnx = package("onnx")
    if not value.type.HasField("tensor_type"):
        return Port(value.name, None, "")
    kind = value.type.tensor_type
    shape = tuple(side.dim_value if side.dim_value > 0 else None for side in kind.shape.dim)
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    except KeyError:
        dtype = ""
    return Port(value.name, shape if kind.HasField("shape") else None, dtype)


def _makers(graph: GraphProto) -> dict[str, str]:
    by_output = {name: node for node in graph.node for name in node.output}
    return {value.name: _maker(value.name, by_output) for value in graph.output}


def _maker(name: str, by_output: dict[str, NodeProto]) -> str:
    for _ in by_output:  # as many steps as there are values, since a damaged file may go round in circles
        node = by_output.get(name)
        if node is None or node.op_type not in _SHAPING or not node.input:
            break
        name = node.input[0]
    return by_output[name].op_type if name in by_output else ""


# ---- tensors ----------------------------------------------------------------------------------


def _other_files(model: ModelProto, path: Path) -> list[Path]:
    """Return the files that hold tensors, after a look at what each tensor asks of them."""
    tensors = list(_graph_tensors(model.graph))
    for function in model.functions:
        tensors += _attribute_tensors(function.attribute_proto)
        tensors += _node_tensors(function.node)
    for training in model.training_info:
        tensors += [*_graph_tensors(training.initialization), *_graph_tensors(training.algorithm)]
    return sorted({_holder(tensor, path) for tensor in tensors if _is_elsewhere(tensor)})


def _graph_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Yield every tensor of a graph and of the graphs inside it."""
    yield from graph.initializer
    yield from _parts(graph.sparse_initializer)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        yield from _attribute_tensors(node.attribute)


def _attribute_tensors(attributes: Iterable[AttributeProto]) -> Iterator[TensorProto]:
    for attribute in attributes:
        yield from (attribute.t, *attribute.tensors)
        yield from _parts((attribute.sparse_tensor, *attribute.sparse_tensors))
        for graph in (attribute.g, *attribute.graphs):
            yield from _graph_tensors(graph)


def _parts(pairs: Iterable[SparseTensorProto]) -> Iterator[TensorProto]:
    for pair in pairs:
        yield from (pair.values, pair.indices)


def _is_elsewhere(tensor: TensorProto) -> bool:
    return bool(tensor.external_data) or tensor.data_location == package("onnx").TensorProto.EXTERNAL


def _holder(tensor: TensorProto, path: Path) -> Path:
    """Return the file that holds ``tensor``: one in the folder, that has as many bytes as it claims."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    place = entries.get("location", "")
    if len(entries) < len(tensor.external_data):
        raise _refused(path, tensor, f"says twice where in {place!r} it lies")
    found = _inside(place, path)
    size, needed = found.stat().st_size, _needed_bytes(tensor)
    offset = _whole(entries.get("offset", "0"))
    length = _whole(entries["length"]) if "length" in entries else needed
    if needed is None or offset is None or length is None:
        raise _refused(path, tensor, f"has sides or a place in {place!r} that are no whole numbers from 0")
    if length != needed or offset + length > size:
        raise _refused(
            path,
            tensor,
            f"has {needed:,} bytes and claims {length:,} from {offset:,} on of {place!r}, which has {size:,}",
        )
    return found


def _whole(text: str) -> int | None:
    return int(text) if _WHOLE.fullmatch(text) else None


def _needed_bytes(tensor: TensorProto) -> int | None:
    """Return how many bytes a tensor takes; None of a type or of sides that no file can hold."""
    onnx = package("onnx")
    try:
        name = onnx.TensorProto.DataType.Name(tensor.data_type)
        bits: int = _BITS.get(name) or 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except (KeyError, ValueError):
        return None
    if name in ("UNDEFINED", "STRING") or any(side < 0 for side in tensor.dims):
        return None
    return (math.prod(map(int, tensor.dims)) * bits + 7) // 8


def _refused(path: Path, tensor: TensorProto, words: str) -> UserError:
    return UserError(
        f"task.weights: the tensor {tensor.name!r} of {str(path)!r} {words}\n"
        "  what to do: export the file again, or fetch its data again"
    )


def _inside(place: str, path: Path) -> Path:
    """Return where ``place`` lies; links count by where they lead."""
    folder = path.parent.resolve()
    try:
        found = (folder / place).resolve()
        is_inside = found.is_relative_to(folder) and not Path(place).is_absolute()
        is_file = found.is_file()
    except (ValueError, OSError, RuntimeError):  # A null byte, a name too long, links in a circle.
        is_inside = is_file = False
    # ONNX Runtime takes this name for an address in memory.
    if not place or not is_inside or "_ORT_MEM_ADDR_" in place:
        raise UserError(
            f"task.weights: {str(path)!r} keeps tensors in {place!r}, which is outside its own folder\n"
            "  what to do: put that file beside it if you trust it, and export it with a plain file name"
        )
    if not is_file:
        raise UserError(
            f"task.weights: {str(path)!r} keeps tensors in {place!r}, which is not there\n"
            "  what to do: put both files into one local folder, and give the path of the ONNX file"
        )
    return found


def _tensor(proto: TensorProto, path: Path) -> Tensor:
    import numpy as np
    import torch

    try:
        array = package("onnx").numpy_helper.to_array(proto)
        if array.dtype.name == "bfloat16":  # numpy itself has no such type
            return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
        return torch.from_numpy(np.array(array))
    except Exception as error:  # onnx and torch report what they don't know by several types
        raise UserError(
            f"task.weights: the tensor {proto.name!r} of {str(path)!r} can't be read: {error}\n"
            "  what to do: export the file again, in float32, float16 or bfloat16"
        ) from error


def _is_weight(name: str, tensor: Tensor) -> bool:
    return bool(_DOTTED.fullmatch(name)) or (tensor.is_floating_point() and tensor.ndim > 0)
