"""A network that OpenVINO has read once is not read again; what is kept is whole, or not used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cnnbatch.models.runtime import backends, converted
from cnnbatch.models.runtime.backends import executable, noise
from cnnbatch.models.runtime.network_digest import network_digest
from cnnbatch.types import Runtime

pytest.importorskip("openvino")

INPUT = noise((6, 6), 3)


def network(seed: int = 0, **how: Any) -> nn.Module:
    torch.manual_seed(seed)
    return (
        nn.Sequential(nn.Conv2d(3, 4, 3, **how), nn.BatchNorm2d(4), nn.ReLU6()).eval().requires_grad_(False)
    )


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CNNBATCH_CACHE", str(tmp_path))
    return tmp_path / "openvino"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows with every network that OpenVINO's reader is given."""
    found: list[str] = []
    convert = backends._converted

    def counting(*given: Any) -> Any:
        found.append("read")
        return convert(*given)

    monkeypatch.setattr(backends, "_converted", counting)
    return found


def run(module: nn.Module) -> Tensor:
    result: Tensor = executable(module, noise((6, 6)), Runtime("cpu", backend="openvino"))(*INPUT)
    return result


def test_a_network_is_read_once_and_gives_the_same_bits(cache: Path, read: list[str]) -> None:
    first = run(network())
    assert torch.equal(run(network()), first)
    assert read == ["read"]
    assert [path.suffix for path in cache.iterdir()] == [".network"]
    run(network(seed=1))
    assert len(read) == 2


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: b"", id="empty"),
        pytest.param(lambda content: content[:-5], id="cut off"),
        pytest.param(lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:], id="one bit"),
    ],
)
def test_a_damaged_entry_is_made_anew(cache: Path, read: list[str], damage: Callable[[bytes], bytes]) -> None:
    first = run(network())
    [entry] = cache.iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(damage(whole))
    assert torch.equal(run(network()), first)
    assert len(read) == 2
    run(network())
    assert len(read) == 2


def test_a_folder_that_cannot_be_written_costs_only_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: list[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CNNBATCH_CACHE", str(tmp_path / "file"))
    assert torch.equal(run(network()), run(network()))
    assert len(read) == 2


def test_what_was_used_the_longest_ago_goes_first(
    cache: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(network())
    [entry] = cache.iterdir()
    monkeypatch.setattr(converted, "MOST_BYTES", entry.stat().st_size * 3 // 2)
    run(network(seed=1))
    [left] = cache.iterdir()
    assert left != entry


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ReLU()

    def forward(self, pixels: Tensor) -> Tensor:
        return 2 * pixels


def hooked() -> nn.Module:
    module = network()
    module.register_forward_hook(lambda *given: given[-1])
    return module


def test_a_digest_tells_networks_apart() -> None:
    known = network_digest(network(), INPUT)
    assert known is not None
    assert network_digest(network(), INPUT) == known
    others = [network(seed=1), network(stride=2), nn.Sequential(*network()[:2])]  # type: ignore[index]
    digests = {network_digest(other, INPUT) for other in others} | {network_digest(network(), noise((6, 6)))}
    assert len(digests | {known, None}) == 6


@pytest.mark.parametrize("module", [Own(), hooked()], ids=["code of the user's", "a hook"])
def test_what_cannot_be_told_has_no_digest(module: nn.Module) -> None:
    assert network_digest(module, INPUT) is None
