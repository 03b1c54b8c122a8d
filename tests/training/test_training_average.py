"""The moving average equals its recursion, forgets its beginning, and goes on where it was."""

import torch
from torch import nn

from cnnbatch.training.average import MovingAverage


def _module(value: float) -> nn.Module:
    module = nn.BatchNorm1d(1)
    with torch.no_grad():
        for tensor in (module.weight, module.running_mean):
            assert tensor is not None
            tensor.fill_(value)
    return module


def test_it_is_the_recursion_of_weights_and_buffers() -> None:
    average = MovingAverage(_module(9.0), 0.9)
    expected = 0.0
    for step in range(200):
        value = float(step % 7)
        average.update_parameters(_module(value))
        decay = min(0.9, (1 + step) / (10 + step)) if step else 0.0  # The first replaces what was there.
        expected = decay * expected + (1 - decay) * value
        kept = average.module.state_dict()
        for name in ("weight", "running_mean"):
            torch.testing.assert_close(kept[name], torch.tensor([expected]))


def test_the_first_weights_are_soon_forgotten() -> None:
    average = MovingAverage(_module(0.0), 0.998)
    average.update_parameters(_module(1.0))
    for _ in range(60):
        average.update_parameters(_module(0.0))
    assert float(average.module.state_dict()["weight"]) < 1e-6


def test_it_goes_on_from_its_state() -> None:
    whole, broken = MovingAverage(_module(0.0), 0.998), MovingAverage(_module(0.0), 0.998)
    for step in range(30):
        if step == 11:
            state, broken = broken.state_dict(), MovingAverage(_module(5.0), 0.998)
            broken.load_state_dict(state)
        for one in (whole, broken):
            one.update_parameters(_module(float(step)))
    assert torch.equal(whole.module.state_dict()["weight"], broken.module.state_dict()["weight"])
