"""A network gives the same whichever backend runs it; where one can't, it says why."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from cnnbatch.models.runtime.backends import (
    TOLERANCE,
    Executable,
    Filled,
    Unavailable,
    executable,
    noise,
    openvino_package,
)
from cnnbatch.models.runtime.structure import flatten
from cnnbatch.types import Backend, Precision, Runtime

BATCH = 4
OPENVINO = Runtime("cpu", backend="openvino")


class Pyramid(nn.Module):
    """Maps of two sizes in, a mapping with a list of maps and a tensor out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = (
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 5, 1),
        )

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Any]:
        """Return five maps for each, and their means."""
        found = [self.second(torch.relu(self.norm(self.first(one)))) for one in maps]
        return {"maps": found, "means": torch.stack([one.mean((2, 3)) for one in found], 1)}


class Plain(nn.Module):
    """A convolution and what ``then`` makes of its result."""

    def __init__(self, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.then = then

    def forward(self, pixels: Tensor) -> Tensor:
        """Return four maps."""
        return self.then(self.first(pixels))


def plain(then: Callable[[Tensor], Tensor] = torch.relu) -> nn.Module:
    torch.manual_seed(0)
    return Plain(then).eval().requires_grad_(False)


def pyramid() -> nn.Module:
    torch.manual_seed(0)
    module = Pyramid()
    for values in (module.norm.running_mean, module.norm.running_var, module.norm.weight, module.norm.bias):
        assert values is not None
        values.data = 0.8 + 0.4 * torch.rand(4)
    return module.eval().requires_grad_(False)


def maps(count: int, seed: int = 1, height: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn((count, 3, side, side + 4), generator=generator) for side in (height, height // 2)]


def assert_same(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    assert type(found) is type(expected)
    ours, theirs = flatten(found)[0], flatten(expected)[0]
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        assert (one.float() - other).abs().max() <= tolerance * other.abs().max()


@pytest.fixture(scope="module", params=["eager", pytest.param("compile", marks=pytest.mark.slow), "openvino"])
def run(request: pytest.FixtureRequest) -> Executable:
    """Return the same network by every backend; OpenVINO's and eager's also take maps of other sizes."""
    if request.param == "openvino":
        pytest.importorskip("openvino")
    return executable(pyramid(), (maps(2),), Runtime("cpu", backend=request.param, batch=BATCH))


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3, BATCH])
def test_every_backend_gives_what_the_network_does(run: Executable, count: int) -> None:
    with torch.inference_mode():
        assert_same(run(maps(count)), pyramid()(maps(count)))


def test_inputs_in_another_memory_order_give_the_same(run: Executable) -> None:
    turned = [one.contiguous(memory_format=torch.channels_last) for one in maps(BATCH)]
    with torch.inference_mode():
        assert_same(run(turned), pyramid()(maps(BATCH)))


def test_a_later_call_changes_nothing_of_an_earlier_one(run: Executable) -> None:
    with torch.inference_mode():
        first = run(maps(BATCH))
        kept = [one.clone() for one in flatten(first)[0]]
        run(maps(BATCH, seed=2))
    assert all(map(torch.equal, flatten(first)[0], kept))


@pytest.mark.parametrize("backend", ["eager", "openvino"])
def test_shapes_are_free(backend: Backend) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    run = executable(pyramid(), (maps(2),), Runtime("cpu", backend=backend), varies=True)
    for height in (6, 10, 32):
        with torch.inference_mode():
            assert_same(run(maps(3, height=height)), pyramid()(maps(3, height=height)))


@pytest.mark.slow
def test_a_network_compiled_for_several_shapes_is_compiled_once() -> None:
    torch._dynamo.reset()
    run = executable(pyramid(), (maps(2),), Runtime("cpu", backend="compile", batch=BATCH), varies=True)
    with torch.compiler.set_stance("fail_on_recompile"):
        for height in (6, 10, 32):
            assert_same(run(maps(BATCH, height=height)), pyramid()(maps(BATCH, height=height)))


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("count", [1, 2, BATCH])
def test_one_shape_is_compiled_once(
    run: Executable, inference: bool, order: torch.memory_format, count: int
) -> None:
    with torch.inference_mode(inference), torch.compiler.set_stance("fail_on_recompile"):
        run([one.clone(memory_format=order) for one in maps(count)])


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["eager", "compile"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_gives_the_same(backend: Backend, precision: Precision) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    run = executable(pyramid(), (maps(2),), Runtime("cuda", precision, backend, batch=BATCH))
    expected = [pyramid()(maps(3, seed)) for seed in (1, 2)]
    with torch.inference_mode():
        found = [run([one.to("cuda", run.dtype) for one in maps(3, seed)]) for seed in (1, 2)]
    for one, other in zip(found, expected, strict=True):
        tensors, rebuild = flatten(one)
        assert_same(rebuild([each.cpu() for each in tensors]), other, 2 * TOLERANCE[precision])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_eager_computes_in_narrow_types(precision: Precision) -> None:
    run = executable(pyramid(), (maps(2),), Runtime("cpu", precision))
    assert run.dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    with torch.inference_mode():
        assert_same(run([one.to(run.dtype) for one in maps(2)]), pyramid()(maps(2)), TOLERANCE[precision])


def test_a_module_that_knows_how_runs_itself() -> None:
    class Own(nn.Module):
        def executable(self, runtime: Runtime) -> Callable[[Tensor], Tensor]:
            return lambda pixels: pixels * runtime.batch

    run = executable(Own(), noise((2, 2)), Runtime("cpu", backend="openvino", batch=7))
    assert float(run(torch.ones(1))) == 7


def test_without_the_package_openvino_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(Unavailable, match=r"pip install 'cnnbatch\[openvino\]'"):
        executable(plain(), noise((8, 8)), OPENVINO)


@pytest.mark.parametrize(
    ("runtime", "reason"),
    [
        (Runtime("cuda", backend="openvino"), "on CPUs only"),
        (Runtime("mps", backend="compile"), "on CPUs and CUDA devices only"),
    ],
)
def test_a_device_that_a_backend_is_not_for_is_refused(runtime: Runtime, reason: str) -> None:
    with pytest.raises(Unavailable, match=reason):
        executable(plain(), noise((8, 8)), runtime)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_precision_that_the_processor_lacks_is_refused(precision: Precision) -> None:
    pytest.importorskip("openvino")
    able = openvino_package().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision.upper() in able:
        pytest.skip(f"this processor computes in {precision}")
    with pytest.raises(Unavailable, match=f"does not compute in {precision}"):
        executable(plain(), noise((8, 8)), Runtime("cpu", precision, "openvino"))


def _doubled_in_a_trace(pixels: Tensor) -> Tensor:
    return pixels if torch._C._get_tracing_state() is None else pixels * 2


def _by_the_first(pixels: Tensor) -> Tensor:
    return pixels if pixels[0].mean() > 0 else pixels * 2


def _made_outside_torch(pixels: Tensor) -> Tensor:
    return torch.from_numpy(pixels.detach().numpy().copy())


def _unknown_to_openvino(pixels: Tensor) -> Tensor:
    found: Tensor = torch.special.i0(pixels)
    return found.logcumsumexp(2)


def _refused(pixels: Tensor) -> Tensor:
    raise ValueError("only pictures of cats\nplease")


@pytest.mark.parametrize(
    ("then", "reason"),
    [
        (_doubled_in_a_trace, "computes something else: off by 100.0%"),
        (_by_the_first, "computes something else"),
        (_made_outside_torch, r"gives the shape \(2, 4, 6, 6\) for \(1, 4, 6, 6\)"),
        (_unknown_to_openvino, r"can't read the network: No conversion rule .*: .*logcumsumexp, .*i0$"),
        (_refused, "the network refuses its input: ValueError: only pictures of cats$"),
    ],
)
def test_a_network_that_openvino_gets_wrong_is_refused(then: Callable[[Tensor], Tensor], reason: str) -> None:
    pytest.importorskip("openvino")
    with pytest.raises(Unavailable, match=reason):
        executable(plain(then), noise((8, 8)), OPENVINO)


def test_what_a_compiler_gets_wrong_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def half(module: nn.Module, **_: Any) -> Callable[[Tensor], Tensor]:
        return lambda pixels: module(pixels) / 2

    monkeypatch.setattr(torch, "compile", half)
    with pytest.raises(Unavailable, match=r"torch.compile computes something else: off by 50.0%"):
        executable(plain(), noise((8, 8)), Runtime("cpu", backend="compile"))


def test_a_compiler_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_module: nn.Module, **_: Any) -> Callable[[Tensor], Tensor]:
        def call(pixels: Tensor) -> Tensor:
            raise RuntimeError("no C++ compiler\nas the log says")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(Unavailable, match="^torch.compile fails: RuntimeError: no C\\+\\+ compiler$"):
        executable(plain(), noise((8, 8)), Runtime("cpu", backend="compile"))


class Device:
    """A call that notes how many pictures it got, and has memory for ``most``."""

    def __init__(self, most: int = 100) -> None:
        self.most, self.seen = most, list[int]()

    def __call__(self, pictures: Tensor, pairs: Mapping[str, Tensor]) -> dict[str, Any]:
        self.seen.append(len(pictures))
        assert len(pairs["right"]) == len(pictures)
        if len(pictures) > self.most:
            raise torch.OutOfMemoryError("planted")
        return {"sums": [pictures.sum(1)], "right": pairs["right"] * 2}


def inputs(count: int) -> tuple[Tensor, dict[str, Tensor]]:
    return torch.arange(2.0 * count).reshape(count, 2), {"right": torch.arange(count)}


@pytest.mark.parametrize("count", [1, 3, 4])
def test_batches_are_filled_and_results_are_cut(count: int) -> None:
    device = Device()
    found = Filled(device, 4)(*inputs(count))
    pictures, pairs = inputs(count)
    assert device.seen == [4]
    assert torch.equal(found["sums"][0], pictures.sum(1))
    assert torch.equal(found["right"], pairs["right"] * 2)


def test_a_larger_batch_raises_the_number() -> None:
    device = Device()
    filled = Filled(device, 2)
    for count in (2, 5, 3):
        assert len(filled(*inputs(count))["right"]) == count
    assert device.seen == [2, 5, 5]


def test_without_room_the_number_becomes_the_callers_next() -> None:
    device = Device(most=2)
    filled = Filled(device, 8)
    for count in (8, 4):
        with pytest.raises(torch.OutOfMemoryError):
            filled(*inputs(count))
    for count in (2, 2, 1):
        filled(*inputs(count))
    assert device.seen == [8, 4, 2, 2, 2]


def test_one_picture_that_finds_no_room_is_tried_alone() -> None:
    device = Device(most=0)
    filled = Filled(device, 4)
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            filled(*inputs(1))
    assert device.seen == [4, 1]


tensors = st.integers(0, 9).map(torch.tensor)
structures = st.recursive(
    tensors,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
    ),
)


@given(structures)
def test_structures_are_rebuilt_around_other_tensors(value: Any) -> None:
    found, rebuild = flatten(value)
    assert rebuild(found) == value
    others = [one + 10 for one in found]
    again, _ = flatten(rebuild(others))
    assert all(one is other for one, other in zip(again, others, strict=True))
    assert _outline(rebuild(others)) == _outline(value)


def _outline(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _outline(one) for name, one in value.items()}
    return [type(value), *map(_outline, value)] if isinstance(value, list | tuple) else None


def test_what_is_no_tensor_is_refused() -> None:
    with pytest.raises(TypeError, match="got int"):
        flatten({"a": [torch.ones(1), 1]})
