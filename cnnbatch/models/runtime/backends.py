"""Runs a network the way that was chosen for it: eager, compiled by torch, or by OpenVINO.

What a backend can't run here is `Unavailable`, with the reason for people; whether it may be used,
and whether it is faster, is decided elsewhere (`cnnbatch.inference.autotune`).
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as fx_config

from cnnbatch.models.passes import trying
from cnnbatch.models.runtime.converted import kept_or_converted
from cnnbatch.models.runtime.fusion import fuse
from cnnbatch.models.runtime.network_digest import network_digest
from cnnbatch.models.runtime.structure import flatten

if TYPE_CHECKING:
    from cnnbatch.types import Precision, Runtime

DTYPES: Mapping[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
TOLERANCE: Mapping[Precision, float] = {"fp32": 1e-3, "bf16": 0.1, "fp16": 0.05}
"""How far outputs for noise may lie from eager fp32's, as a part of the largest."""


class Unavailable(Exception):
    """A backend can't run a network here; says why, for people."""


@dataclass(frozen=True, slots=True)
class Executable:
    """A network ready to run: ``call`` takes what the module takes, on its device, in ``dtype``."""

    call: Callable[..., Any]
    dtype: torch.dtype = torch.float32

    def __call__(self, *inputs: Any) -> Any:
        """Return what the module returns; tensors of which no later call changes anything."""
        return self.call(*inputs)


def noise(picture: tuple[int, int], count: int = 2) -> tuple[Tensor]:
    """Return an example of inputs: ``count`` pictures (3, H, W) of normal noise, always the same."""
    generator = torch.Generator().manual_seed(0)
    return (torch.randn((count, 3, *picture), generator=generator),)


def executable(
    module: nn.Module, example: Sequence[Any], runtime: Runtime, varies: bool = False
) -> Executable:
    """Return ``module`` as ``runtime`` says.

    ``module`` is in evaluation mode, float32, on the CPU; ``example`` are inputs that it takes there,
    floats of two or more pictures; ``varies`` says that there will be some of other heights and widths.
    A module with its own method ``executable`` runs as that says.

    Raises:
        Unavailable: the backend is not there, refuses the network, or computes something else.
    """
    own = getattr(module, "executable", None)
    if own is not None:
        return Executable(own(runtime))
    return _BACKENDS[runtime.backend](module, example, runtime, varies)


def _eager(module: nn.Module, example: Sequence[Any], runtime: Runtime, _varies: bool) -> Executable:
    dtype = DTYPES[runtime.precision]
    fused = fuse(module, runtime.device, example, dtype)
    return Executable(_placed(fused, runtime, dtype), dtype)


def _placed(module: nn.Module, runtime: Runtime, dtype: torch.dtype) -> nn.Module:
    placed: nn.Module = module.to(runtime.device, dtype).to(memory_format=torch.channels_last)
    return placed


def _compiled(module: nn.Module, example: Sequence[Any], runtime: Runtime, varies: bool) -> Executable:
    """Compile for the one number of pictures that nearly every batch has; short batches are filled up.

    For several heights and widths once, which takes twice as long as for one and is as fast
    (measured on two cores: 95 s, and 48 s for each; within 3 % of each other's rate).
    """
    if runtime.device == "mps":
        raise Unavailable("torch.compile is used on CPUs and CUDA devices only")
    dtype = DTYPES[runtime.precision]
    references = _references(module, example)
    on_cuda = runtime.device == "cuda"
    options: dict[str, Any] = {"freezing": True, "triton.cudagraphs": on_cuda}
    compiled = torch.compile(_placed(module, runtime, dtype), dynamic=varies, options=options)
    run = partial(_run_compiled, compiled, varies)
    found = Executable(Filled(_OneThread(run) if on_cuda else run, runtime.batch), dtype)
    _require_same(found, references, runtime, "torch.compile")
    return found


def _openvino(module: nn.Module, example: Sequence[Any], runtime: Runtime, _varies: bool) -> Executable:
    """Convert to OpenVINO; shapes stay free, at no cost (measured: within 1 % of fixed ones)."""
    device_config = openvino_config(runtime)
    openvino = openvino_package()
    references = _references(module, example)
    flat, rebuild_inputs = flatten(tuple(example))
    outputs, rebuild = flatten(references[0][1])
    core = openvino.Core()
    known = network_digest(module, tuple(example))
    model = kept_or_converted(core, known, lambda: _converted(_Flat(module, rebuild_inputs), flat))
    for port, tensor in zip(model.inputs, flat, strict=True):
        model.reshape({port: [-1] * tensor.ndim if tensor.ndim != 4 else [-1, tensor.shape[1], -1, -1]})
    compiled = core.compile_model(model, "CPU", device_config)
    if len(compiled.outputs) != len(outputs):
        raise Unavailable(f"OpenVINO gives {len(compiled.outputs)} outputs where eager gives {len(outputs)}")
    found = Executable(partial(_infer, compiled.create_infer_request(), rebuild))
    _require_same(found, references, runtime, "OpenVINO")
    return found


_BACKENDS: Mapping[str, Callable[[nn.Module, Sequence[Any], Runtime, bool], Executable]] = {
    "eager": _eager,
    "compile": _compiled,
    "openvino": _openvino,
}
"""A new backend is one entry; `inference.autotune.candidates` says when it is worth a try."""


def openvino_package() -> Any:
    """Import OpenVINO; raises Unavailable where it is not installed."""
    try:
        return importlib.import_module("openvino")
    except ImportError:
        raise Unavailable(
            "the package openvino is not installed (pip install 'cnnbatch[openvino]')"
        ) from None


def openvino_config(runtime: Runtime) -> dict[str, Any]:
    """Return how OpenVINO runs as one worker among several.

    Threads are not pinned: every worker's would be pinned to the same core.

    Raises:
        Unavailable: not on the CPU, or in a precision that this processor does not compute in.
    """
    if runtime.device != "cpu":
        raise Unavailable("OpenVINO is used on CPUs only")
    hints = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
    able = {"fp32": "FP32", "bf16": "BF16", "fp16": "FP16"}[runtime.precision]
    if able not in openvino_package().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise Unavailable(f"OpenVINO does not compute in {runtime.precision} on this processor")
    return {
        "INFERENCE_NUM_THREADS": runtime.threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": hints[runtime.precision],
        "ENABLE_CPU_PINNING": False,
    }


class Filled:
    """Fills batches up to one number of pictures, so that there is one shape, and cuts the results.

    Where the device has no memory for so many, the number becomes what the caller's next, smaller
    batch has.
    """

    def __init__(self, call: Callable[..., Any], full: int) -> None:
        self._call = call
        self._full = full

    def __call__(self, *inputs: Any) -> Any:
        """Run the inputs, tensors of first dimension N or structures of them."""
        tensors, rebuild = flatten(inputs)
        count = len(tensors[0])
        self._full = max(self._full, count)
        try:
            found = self._call(*rebuild([_filled(one, self._full) for one in tensors]))
        except torch.OutOfMemoryError:
            self._full = max(1, count // 2)
            raise
        results, rebuild = flatten(found)
        return rebuild([one[:count] for one in results])


def _run_compiled(call: Callable[..., Any], varies: bool, *inputs: Any) -> Any:
    """Call what is compiled, so that nothing but a new shape has it compiled again.

    Where any sizes may come, two that are equal the first time are not taken to be so for ever.
    """
    tensors, rebuild = flatten(inputs)
    with torch.inference_mode(), fx_config.patch(use_duck_shape=not varies):  # type: ignore[attr-defined]
        return call(*rebuild([_uniform(one) for one in tensors]))


def _uniform(tensor: Tensor) -> Tensor:
    """Return a tensor of inference mode in the one memory order: for others all is compiled again."""
    if tensor.ndim != 4:
        return tensor.contiguous() if tensor.is_inference() else tensor.clone()
    _, channels, height, width = tensor.shape
    strides = (channels * height * width, 1, channels * width, channels)
    if tensor.is_inference() and tensor.stride() == strides:
        return tensor
    return tensor.clone(memory_format=torch.channels_last)


class _OneThread:
    """Calls from one thread of its own: CUDA graphs belong to the thread that recorded them.

    Results are copies, since the next run of a graph writes into the same memory.
    """

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call
        self._thread = ThreadPoolExecutor(1, "cuda-graphs")

    def __call__(self, *inputs: Any) -> Any:
        return self._thread.submit(self._run, inputs, torch.cuda.current_stream()).result()

    def _run(self, inputs: Sequence[Any], stream: torch.cuda.Stream) -> Any:
        with torch.inference_mode(), torch.cuda.stream(stream):
            results, rebuild = flatten(self._call(*inputs))
            return rebuild([one.clone() for one in results])


class _Flat(nn.Module):
    """A module of tensors in, a tuple of tensors out."""

    def __init__(self, module: nn.Module, rebuild: Callable[[Sequence[Tensor]], Any]) -> None:
        super().__init__()
        self.module = module
        self._rebuild = rebuild

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(flatten(self.module(*self._rebuild(tensors)))[0])


def _converted(module: nn.Module, example: Sequence[Tensor]) -> Any:
    """Return OpenVINO's model of a module, made by its own reader of torch's graphs."""
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # About tracing, which is what is meant here.
            decoder = TorchScriptPythonDecoder(module, example_input=tuple(example))
            frontend = FrontEndManager().load_by_framework("pytorch")
            return frontend.convert(frontend.load(decoder))
    except Exception as error:  # Tracing runs the model's own code, and the reader refuses in its own ways.
        told = [line[3:] for line in str(error).splitlines() if line.startswith("-- ")]  # Unknown operators.
        reason = "; ".join(told) or _first_line(error)
        raise Unavailable(f"OpenVINO can't read the network: {reason}") from error


def _infer(request: Any, rebuild: Callable[[Sequence[Tensor]], Any], *inputs: Any) -> Any:
    arrays = [one.contiguous().numpy() for one in flatten(inputs)[0]]
    request.infer(arrays, share_inputs=True)
    return rebuild([torch.from_numpy(tensor.data.copy()) for tensor in request.output_tensors])


def _references(module: nn.Module, example: Sequence[Any]) -> list[tuple[Sequence[Any], Any]]:
    """Return inputs, each with what eager fp32 gives: the example, and one picture that it has not."""
    tensors, rebuild = flatten(tuple(example))
    other: Sequence[Any] = rebuild([-one[:1] for one in tensors])
    try:
        with torch.inference_mode(), trying():
            return [(inputs, module(*inputs)) for inputs in (example, other)]
    except Exception as error:  # The model's own.
        raise Unavailable(f"the network refuses its input: {_first_line(error)}") from error


def _require_same(
    found: Executable, references: Sequence[tuple[Sequence[Any], Any]], runtime: Runtime, name: str
) -> None:
    """Insist that a backend computes what eager fp32 does, also for another number of pictures."""
    for inputs, expected in references:
        tensors, rebuild = flatten(tuple(inputs))
        given = rebuild([one.to(runtime.device, found.dtype) for one in tensors])
        try:
            with torch.inference_mode():
                results = flatten(found(*given))[0]
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # Compilers fail in many ways; each means that eager stays.
            raise Unavailable(f"{name} fails: {_first_line(error)}") from error
        for result, wanted in zip(results, flatten(expected)[0], strict=True):
            _require_near(result.float().cpu(), wanted, TOLERANCE[runtime.precision], name)


def _require_near(result: Tensor, wanted: Tensor, tolerance: float, name: str) -> None:
    if result.shape != wanted.shape:
        raise Unavailable(f"{name} gives the shape {tuple(result.shape)} for {tuple(wanted.shape)}")
    off = float((result - wanted).abs().max() / wanted.abs().max().clamp(min=1e-6)) if wanted.numel() else 0.0
    if not off <= tolerance:
        raise Unavailable(f"{name} computes something else: off by {off:.1%} of the largest output")


def _filled(tensor: Tensor, count: int) -> Tensor:
    lacking = count - len(tensor)
    return tensor if lacking <= 0 else torch.cat([tensor, tensor[-1:].expand(lacking, *tensor.shape[1:])])


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"
