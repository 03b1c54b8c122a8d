"""Networks are built and run without torch's compiler, which is whole once somebody asks for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.places import CHECKOUT

BUILT = """
import sys
import torch
from cnnbatch.models import Choice, build_classifier
from cnnbatch.models.detectors import build_detector

for name in ("squeezenet1_1", "timm/test_byobnet.r160_in1k"):
    network = build_classifier(Choice(model=name, weights="random"))
    network.module(torch.zeros(1, 3, *network.preprocessing.crop))
build_detector(Choice(model="ssdlite320_mobilenet_v3_large", weights="random"))
assert "timm" in sys.modules and "torchvision.transforms.v2" in sys.modules
loaded = {"torch._dynamo", "torch._inductor", "sympy"} & set(sys.modules)
assert not loaded, loaded
"""

USED = """
import sys
import cnnbatch.models
import torch
from torchvision import tv_tensors
from torchvision.ops import roi_align
from torchvision.transforms.v2 import functional

generator = torch.Generator().manual_seed(0)
features = torch.rand(1, 3, 9, 9, generator=generator)
boxes = torch.tensor([[0.0, 1.0, 1.0, 7.0, 8.0], [0.0, 0.0, 2.0, 5.0, 5.0]])
picture = tv_tensors.Image(features[0])
pooled = roi_align(features, boxes, 3, sampling_ratio=2)
assert torch.equal(pooled, torch.ops.torchvision.roi_align(features, boxes, 1.0, 3, 3, 2, False))
exported = torch.jit.trace(lambda f, b: roi_align(f, b, 3, sampling_ratio=2), (features, boxes))
assert torch.equal(exported(features, boxes), pooled)
assert "torch._dynamo" not in sys.modules and "torch._dynamo.utils" not in sys.modules

flipped = functional.horizontal_flip(picture)
assert isinstance(flipped, tv_tensors.Image) and torch.equal(flipped, features[0].flip(-1))

module = sys.modules["torchvision.ops.roi_align"]
module._has_ops, asked = lambda: False, []
module._roi_align = lambda *given: asked.append(given) or "compiled"
assert roi_align(features, boxes, 3) == "compiled" and len(asked) == 1
import torch._dynamo.utils

assert torch._dynamo.utils is sys.modules["torch._dynamo.utils"]
assert torch._dynamo.utils.__file__.endswith("utils.py")
assert module.is_compile_supported("cpu") == torch._dynamo.utils.is_compile_supported("cpu")
module._has_ops = lambda: True
compiled = torch.compile(lambda f, b: roi_align(f, b, 3, sampling_ratio=2), backend="eager", fullgraph=True)
assert torch.equal(compiled(features, boxes), pooled)
assert torch.equal(torch.compile(functional.horizontal_flip, backend="eager")(picture), flipped)
"""

OTHERS = """
import sys
import torch
from cnnbatch.models.libraries.without_compiler import _module_deferred

with _module_deferred():
    from torch._dynamo.utils import counters, is_compile_supported
    import torch._dynamo
assert torch._dynamo.utils is sys.modules["torch._dynamo.utils"]
assert torch._dynamo.utils.counters is counters
assert torch._dynamo.utils.__spec__ is not None
assert is_compile_supported("meta") is False
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "script",
    [
        pytest.param(BUILT, id="networks are built and run without the compiler"),
        pytest.param(USED, id="what the compiler does is done, once it is asked for"),
        pytest.param(OTHERS, id="whoever asks for more meanwhile gets the real module"),
    ],
)
def test_in_a_fresh_process(script: str) -> None:
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=CHECKOUT)
    assert not found.returncode, found.stderr
