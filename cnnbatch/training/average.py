"""The moving average of what is trained, by which a training is validated and which it keeps."""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

Tensors = tuple[Tensor, ...] | list[Tensor]


class MovingAverage(AveragedModel):
    """The exponential moving average of a module's weights and buffers.

    After n updates its decay is min(``decay``, (1 + n) / (10 + n)), as that of TensorFlow's
    ``ExponentialMovingAverage`` with ``num_updates``: the weights that a training begins with are soon
    forgotten, and its first epochs are judged by what they have learned.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        super().__init__(module, multi_avg_fn=self._take, use_buffers=True)
        self._decay = decay

    def _take(self, averaged: Tensors, current: Tensors, _: Tensor | int) -> None:
        updates = int(self.n_averaged)  # On the CPU, where the one that is given may be on a GPU.
        decay = min(self._decay, (1 + updates) / (10 + updates))
        get_ema_multi_avg_fn(decay)(averaged, current, updates)  # type: ignore[no-untyped-call]
