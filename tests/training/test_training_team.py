"""What workers that train together know of each other's images."""

from __future__ import annotations

import torch

from cnnbatch.training.distributed import Team


class Alone(Team):
    """A worker of several that hears nothing of the others: what it would send stays as it is."""

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values


def test_rows_of_all_workers_lie_in_the_order_of_their_ranks() -> None:
    rows = [torch.arange(6.0).view(3, 2), torch.zeros(1, 2), torch.full((2, 2), 9.0)]
    counts = torch.tensor([3.0, 0.0, 2.0])  # The second has no image, and computes with a spare one.
    found = [Alone(rank, 3).rows(own, counts) for rank, own in enumerate(rows)]
    together = sum(one.values for one in found)
    assert isinstance(together, torch.Tensor)
    assert together.tolist() == [*rows[0].tolist(), *rows[2].tolist()]
    assert [(one.first, one.count) for one in found] == [(0, 3), (3, 0), (3, 2)]
