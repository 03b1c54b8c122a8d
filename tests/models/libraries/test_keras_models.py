"""Keras' models predict as Keras does, from Keras' files, and are named and refused in plain words."""

from __future__ import annotations

import copy
import hashlib
import inspect
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from safetensors.torch import save_file

import cnnbatch
from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.models import Choice, Network, build_classifier, published
from cnnbatch.models.building import find
from cnnbatch.models.libraries import keras_layers, keras_models, keras_table
from cnnbatch.models.libraries.keras_table import MODELS
from cnnbatch.models.network import WithPenultimate, last_layer
from cnnbatch.models.preprocessing import Normalize, prepare
from cnnbatch.models.weights import files as tensorflow_files
from cnnbatch.storage.cache import cache_folder
from tests import keras_made
from tests.conftest import jpeg
from tests.keras_made import SMALLEST, answers, keras, made, normalize_by, pictures, write, write_legacy

SMALL = "MobileNetV3Small"
LARGER = pytest.param("EfficientNetB0", marks=pytest.mark.long)
FIVE = ("a", "b", "c", "d", "e")
IN_FILES = [
    "MobileNet",
    SMALL,
    *(
        pytest.param(name, marks=pytest.mark.long)
        for name in ("Xception", "EfficientNetB0", "EfficientNetV2B0", "ConvNeXtTiny", "VGG16")
    ),
]


def build(name: str, given: str | Path, classes: tuple[str, ...] | None = FIVE, side: int = 0) -> Network:
    crop = side or MODELS[name].least
    sizes = {"crop": (crop, crop), "resize": (crop, crop)}
    return build_classifier(Choice(f"keras/{name}", str(given), classes=classes, preprocessing=sizes))


def logits(network: Network, pixels: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = network.module(pixels)
    return found.clone()


def assert_same(network: Network, model: Any, name: str, pixels: torch.Tensor) -> None:
    """Hold a network against Keras' own model: all equal but the rounding of the head's last sum."""
    last = model.layers[-1]
    while not last.weights:
        last = last._inbound_nodes[0].parent_nodes[0].operation
    before = keras.Model(model.inputs, last.input)
    module: Any = network.module
    with torch.inference_mode():
        assert torch.equal(module.features(pixels), answers(before, name, pixels).flatten(1))
    kernel, bias = (one.value for one in last.weights)
    assert torch.equal(module.head.weight.T, kernel.reshape(kernel.shape[-2:]))
    assert torch.equal(module.head.bias, bias)
    torch.testing.assert_close(logits(network, pixels), answers(model, name, pixels))


# --- What Keras says of itself ---


def test_every_model_of_keras_is_in_the_table() -> None:
    builders = {name for name, value in vars(keras.applications).items() if inspect.isfunction(value)}
    assert set(MODELS) == builders - {"NASNetMobile"}
    assert {model.family for model in MODELS.values()} == set(SMALLEST)


def test_the_addresses_and_hashes_are_those_in_keras_source() -> None:
    for model in MODELS.values():
        source = inspect.getsource(sys.modules[f"keras.src.applications.{model.family}"])
        if model.family == "resnet_v2":
            source = inspect.getsource(sys.modules["keras.src.applications.resnet"])
        assert f'"{model.digest}"' in source or model.digest is None


@pytest.mark.parametrize(
    "name", [SMALL, *(pytest.param(one, marks=pytest.mark.long) for one in MODELS if one != SMALL)]
)
def test_parameters_sizes_addresses_and_hashes_are_keras_own(name: str) -> None:
    model = MODELS[name]
    builder = getattr(keras.applications, name)
    with keras_made.published() as asked, keras.device("meta"):
        side = {"input_shape": (224, 224, 3)} if name.startswith("MobileNet") else {}
        built = builder(weights="imagenet", **side)
    assert built.count_params() == model.parameters
    assert built.input_shape == (None, model.side, model.side, 3)
    assert asked == [(model.url, model.digest)]


def test_nasnet_mobile_is_refused_by_keras_and_answered_here() -> None:
    with pytest.raises(ValueError, match="NASNetMobile is not available with the torch backend"):
        keras.applications.NASNetMobile(weights=None)
    with pytest.raises(UserError, match=r"task\.model=timm/nasnetalarge") as error:
        find("keras/NASNetMobile")
    assert "issues/18451" in str(error.value)
    assert find("timm/nasnetalarge").classes


def test_the_listing_has_keras_numbers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CNNBATCH_CACHE", str(tmp_path))
    [row] = published.listing("keras/resnet50")
    assert (row.name, row.family, row.library, row.answer) == ("keras/ResNet50", "resnet", "keras", "label")
    assert (row.parameters, row.input_size, row.at_hand) == (25_636_712, (224, 224), False)
    assert row.accuracy == {"top1": 74.9, "top5": 92.1}
    file = cache_folder() / "abc" / MODELS["ResNet50"].url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    assert [row.name for row in published.listing() if row.at_hand and row.library == "keras"] == [row.name]
    assert len(published.listing("keras/*")) == len(MODELS)


@pytest.mark.slow
def test_nothing_imports_keras_before_it_is_asked_for() -> None:
    modules = "cnnbatch.models.published, cnnbatch.tasks.classify, cnnbatch.cli.app, cnnbatch.models"
    code = f"import sys, {modules}; sys.exit(bool({{'keras', 'h5py'}} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- Names ---


def test_names_are_found_whatever_the_case() -> None:
    assert find("keras/resnet50v2").name == find("Keras/ResNet50V2").name == "keras/ResNet50V2"


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("keras/ResNet51", "did you mean keras/ResNet50?"),
        ("keras/mobilnet", "did you mean keras/MobileNet?"),
        ("kera/Xception", "did you mean keras/Xception?"),
    ],
)
def test_unknown_names_propose_the_nearest(model: str, expected: str) -> None:
    with pytest.raises(UserError, match="expected") as error:
        find(model)
    assert expected in str(error.value)


def test_without_the_package_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras_models, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'cnnbatch\[keras\]'"):
        find("keras/VGG16")


def test_another_backend_in_this_process_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    other: Any = ModuleType("keras")
    other.backend = ModuleType("keras.backend")
    other.backend.backend = lambda: "jax"
    monkeypatch.setitem(sys.modules, "keras", other)
    with pytest.raises(UserError, match="this process has jax"):
        keras_layers.package()
    monkeypatch.delitem(sys.modules, "keras")
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    with pytest.raises(UserError, match="this process has tensorflow(?s:.*)unset KERAS_BACKEND"):
        keras_layers.package()


@pytest.mark.parametrize("field", ["model", "weights"])
def test_a_saved_model_is_answered_with_the_way_to_onnx(tmp_path: Path, field: str) -> None:
    (tmp_path / "saved_model.pb").write_bytes(b"graph")
    for spec in (str(tmp_path), str(tmp_path / "saved_model.pb"), "s3://bucket/model/saved_model.pb"):
        choice = Choice(spec) if field == "model" else Choice("mobilenet_v2", spec)
        with pytest.raises(UserError, match=rf"^task\.{field}: .*SavedModel") as error:
            build_classifier(choice)
        folder = spec.removesuffix("/saved_model.pb")
        assert f"tf2onnx.convert --saved-model {folder} --output model.onnx" in str(error.value)
        assert "task.model=onnx" in str(error.value)
    tensorflow_files.refuse(str(tmp_path.parent), "task.model")


# --- The input ---


@pytest.mark.parametrize("family", SMALLEST)
def test_preprocessing_is_keras_own(family: str) -> None:
    model = MODELS[SMALLEST[family]]
    pixels = torch.randint(0, 256, (3, 3, 8, 9), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    how = replace(keras_models.preprocessing(model), crop=(8, 9))
    found = keras_layers.arranged(Normalize(how, "cpu", torch.float32)(pixels), model.colours)
    preprocess_input = getattr(keras.applications, family).preprocess_input
    expected = preprocess_input(pixels.permute(0, 2, 3, 1).numpy().astype(np.float32))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=2e-5 * float(abs(expected).max()))


@pytest.mark.parametrize("size", [(64, 48), (331, 500), (223, 1024), (30, 40), (224, 224), (1000, 333)])
def test_resizing_is_that_of_load_img(tmp_path: Path, size: tuple[int, int]) -> None:
    height, width = size
    array = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path = tmp_path / "image.png"
    Pillow.fromarray(array).save(path)
    how = keras_models.preprocessing(MODELS["ResNet50"])
    expected = np.asarray(keras.utils.load_img(path, target_size=(224, 224)))
    found = prepare(torch.from_numpy(array).permute(2, 0, 1), size, how)
    assert np.array_equal(found.pixels.permute(1, 2, 0).numpy(), expected)
    assert how.decode_size((4000, 3000)) is None  # A picture decoded smaller has other pixels.


def test_a_size_that_keras_refuses_is_told() -> None:
    with pytest.raises(
        UserError, match=r"keras/Xception can't be built for 32 x 32 pixels(?s:.*)71 at least"
    ):
        build("Xception", "random", side=32)


# --- Weights ---


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_FILES)
@pytest.mark.parametrize("legacy", [False, True])
def test_keras_files_load_exactly(tmp_path: Path, name: str, legacy: bool) -> None:
    model = made(name)
    path = tmp_path / ("model.h5" if legacy else "model.weights.h5")
    (write_legacy if legacy else write)(model, path)
    network = build(name, path)
    pixels = pictures(name)
    assert_same(network, model, name, pixels)
    assert network.weights == tensorflow_files.digest(path)
    assert network.library == "keras " + ".".join(keras.__version__.split(".")[:2])


@pytest.mark.slow
@pytest.mark.parametrize("name", [SMALL, LARGER])
def test_tensors_saved_as_safetensors_come_back_exactly(tmp_path: Path, name: str) -> None:
    module = build(name, "random:7").module
    module.train()(pictures(name, count=4))  # So that statistics are other than at first.
    module.eval()
    state = module.state_dict()
    assert not [one for one in state if "/" in one or "_params" in one]
    save_file(state, tmp_path / "model.safetensors")
    again = build(name, tmp_path / "model.safetensors").module
    assert all(torch.equal(tensor, again.state_dict()[one]) for one, tensor in state.items())
    pixels = pictures(name)
    with torch.inference_mode():
        assert torch.equal(module(pixels), again(pixels))


@pytest.mark.slow
def test_random_weights_follow_from_their_seed() -> None:
    one, two, three = (build(SMALL, f"random:{seed}") for seed in (1, 2, 1))
    states = [network.module.state_dict() for network in (one, two, three)]
    assert all(torch.equal(tensor, states[2][name]) for name, tensor in states[0].items())
    assert not torch.equal(states[0]["features.layers.conv.kernel"], states[1]["features.layers.conv.kernel"])
    assert one.weights == "random:1"


@pytest.mark.slow
def test_published_weights_are_fetched_by_keras_address_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made("MobileNet", classes=1000, size=224)
    path = write_legacy(model, tmp_path / "mobilenet.h5")
    md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    own = replace(MODELS["MobileNet"], url=path.as_uri(), digest=md5)
    monkeypatch.setitem(keras_table.MODELS, "MobileNet", own)
    network = build_classifier(Choice("keras/mobilenet"))
    pixels = pictures("MobileNet", side=224)
    assert_same(network, model, "MobileNet", pixels)
    assert len(network.classes) == 1000
    monkeypatch.setitem(keras_table.MODELS, "MobileNet", replace(own, digest="0" * 32))
    with pytest.raises(EnvironmentFault, match=f"expected the hash {'0' * 32}, came {md5}"):
        build_classifier(Choice("keras/MobileNet"))


@pytest.mark.slow
def test_efficientnets_published_normalization_is_keras(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keras builds one layer more for its published EfficientNets than for all other weights."""
    name = "EfficientNetB0"
    own = made(name, classes=1000, size=224)
    normalization = next(layer for layer in own.layers if isinstance(layer, keras.layers.Normalization))
    deviation = np.array([0.229, 0.224, 0.225])
    normalization.adapt_mean.assign([0.485, 0.456, 0.406])
    normalization.adapt_variance.assign(deviation**2)
    normalization.finalize_state()
    pixels = pictures(name, side=224)
    normalize_by(own, name, pixels)
    normalization.adapt_variance.assign(deviation)
    path = write_legacy(own, tmp_path / "efficientnetb0.h5")
    with keras_made.published(path):
        theirs = keras.applications.EfficientNetB0(weights="imagenet", classifier_activation=None)
    write(theirs, tmp_path / "again.weights.h5")
    monkeypatch.setitem(keras_table.MODELS, name, replace(MODELS[name], url=path.as_uri(), digest=None))
    expected = answers(theirs, name, pixels)
    for given in ("DEFAULT", str(tmp_path / "again.weights.h5")):
        found = logits(build_classifier(Choice(f"keras/{name}", given)), pixels)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(answers(own, name, pixels), expected, rtol=0.5)


@pytest.mark.slow
def test_weights_of_others_are_refused_with_names(tmp_path: Path) -> None:
    write(made("MobileNet"), tmp_path / "other.weights.h5")
    with pytest.raises(
        UserError, match=r"missing \(\d+\): features\.layers(?s:.*)unexpected \(\d+\): layers/"
    ):
        build(SMALL, tmp_path / "other.weights.h5")
    path = write_legacy(made("MobileNet"), tmp_path / "other.h5")
    with pytest.raises(UserError, match=r"other\.h5 does not fit KerasClassifier"):
        build(SMALL, path)
    write(made(SMALL, classes=4), tmp_path / "four.weights.h5")
    with pytest.raises(UserError, match=r"four\.weights\.h5 has 4 classes, but task\.classes has 5"):
        build(SMALL, tmp_path / "four.weights.h5")


# --- As a torch module ---


def test_the_last_layer_is_torchs_and_its_features_are_given() -> None:
    network = build(SMALL, "random")
    name, layer = last_layer(network.module)
    assert (name, tuple(layer.weight.shape)) == ("head", (5, 1024))
    pixels = pictures(SMALL)
    expected = logits(network, pixels)
    with torch.inference_mode():
        found, features = WithPenultimate(network.module)(pixels)
    assert torch.equal(found, expected)
    assert tuple(features.shape) == (2, 1024)


@pytest.mark.slow
def test_statistics_are_counted_in_training_alone_and_layer_by_layer() -> None:
    module: Any = build(SMALL, "random").module
    pixels = pictures(SMALL, count=4)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}

    def moved() -> set[str]:
        return {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}

    module(pixels)
    assert not moved()
    module.train()
    module.features.layers["conv_bn"].eval()
    module(pixels)
    assert "features.layers.conv_1_bn.moving_mean" in moved()
    assert not [name for name in moved() if "moving" not in name or ".conv_bn." in name]
    module.eval()
    now = module(pixels)
    assert torch.equal(now, module(pixels))


@pytest.mark.slow
def test_what_is_frozen_gets_no_gradient_and_everything_else_does() -> None:
    module: Any = build(SMALL, "random").module.requires_grad_(True).train()
    module.features.layers["conv"].requires_grad_(False)
    module(pictures(SMALL, count=4)).square().sum().backward()
    without = {name for name, parameter in module.named_parameters() if parameter.grad is None}
    assert without == {"features.layers.conv.kernel"}
    assert not [name for name, _ in module.named_parameters() if "moving" in name]
    for part in module.modules():
        part.train(False).train(True)
    assert not module.features.layers["conv"].kernel.requires_grad


@pytest.mark.slow
@pytest.mark.parametrize("name", [SMALL, LARGER])
def test_copies_are_whole_and_their_own(name: str) -> None:
    module: Any = build(name, "random").module
    module.requires_grad_(True).train()(pictures(name, count=4))
    module.features.layers[next(iter(module.features.layers))].requires_grad_(False)
    for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        flags = [(one, p.requires_grad) for one, p in again.named_parameters()]
        assert flags == [(one, p.requires_grad) for one, p in module.named_parameters()]
        assert all(part.training for part in again.modules())
        module.eval(), again.eval()
        pixels = pictures(name)
        expected = module(pixels)
        assert torch.equal(again(pixels), expected)
        with torch.no_grad():
            for tensor in again.parameters():
                tensor.mul_(0.5)
        assert torch.equal(module(pixels), expected)
        assert not torch.equal(again(pixels), expected)
        module.train()


@pytest.mark.slow
@pytest.mark.parametrize("name", [SMALL, "EfficientNetB0", "ConvNeXtTiny"])
def test_in_bfloat16_it_computes_in_bfloat16(name: str) -> None:
    module: Any = build(name, "random").module
    pixels = pictures(name)
    expected = module(pixels)
    found = module.to(torch.bfloat16)(pixels.to(torch.bfloat16))
    assert found.dtype == torch.bfloat16
    assert float((found.float() - expected).abs().max() / expected.abs().max()) < 0.1
    again = module.float()(pixels)
    assert again.dtype == torch.float32


ELSEWHERE = """
import copy, torch
from tests.models.libraries.test_keras_models import build, pictures
module = copy.deepcopy(build("EfficientNetB0", "random").module)
module.requires_grad_(True).train()
module(pictures("EfficientNetB0", count=4)).square().sum().backward()
module.load_state_dict(module.state_dict())
assert all(one.grad.isfinite().all() for one in module.parameters())
print(bool(module.eval()(pictures("EfficientNetB0")).isfinite().all()))
"""


@pytest.mark.slow
def test_nothing_goes_to_keras_own_device() -> None:
    """Where there is CUDA, Keras takes to it what it is not told to keep elsewhere; here, to nowhere."""
    environment = {**os.environ, "KERAS_TORCH_DEVICE": "meta", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == "True\n", done.stderr


@pytest.mark.slow
def test_users_settings_of_keras_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = logits(build(SMALL, "random"), pictures(SMALL))
    keras.config.set_image_data_format("channels_first")
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        assert torch.equal(logits(build(SMALL, "random"), pictures(SMALL)), expected)
        assert keras.config.image_data_format() == "channels_first"
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
    finally:
        keras.config.set_image_data_format("channels_last")
        keras.config.set_dtype_policy("float32")


@pytest.mark.slow
def test_a_job_predicts_with_a_keras_model(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(3):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(jpeg(number))
    write(made(SMALL, size=64), tmp_path / "small.weights.h5")
    job: dict[str, Any] = {
        "task.model": "keras/mobilenetv3small",
        "task.weights": str(tmp_path / "small.weights.h5"),
        "task.classes": list(FIVE),
        "task.preprocessing": {"crop": 64, "resize": [64, 64]},
        "task.embedding": True,
        "compute.pool": "inline",
        "compute.backend": "eager",
        "compute.precision": "fp32",
    }
    cnnbatch.run("classify", input=str(tmp_path / "photos"), output=str(tmp_path / "out"), **job)
    table = cnnbatch.open(str(tmp_path / "out")).arrow()
    assert table.num_rows == 3
    assert table["error"].null_count == 3
    assert [len(one or ()) for one in table["embedding"].to_pylist()] == [1024] * 3
