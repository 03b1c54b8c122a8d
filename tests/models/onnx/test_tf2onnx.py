"""The way from TensorFlow that docs/models.md names, tried with TensorFlow's own outputs."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cnnbatch.models import Choice, build_classifier
from tests.places import CHECKOUT

MADE = """
import sys
import numpy as np
import tensorflow as tf

layers = tf.keras.layers
model = tf.keras.Sequential([
    layers.Input((32, 48, 3)),
    layers.Conv2D(4, 3),
    layers.GlobalAveragePooling2D(),
    layers.Dense(3, "softmax"),
])
model.export(sys.argv[1])
pictures = np.random.default_rng(0).random((3, 32, 48, 3), dtype=np.float32)
np.savez(sys.argv[2], pictures=pictures, probabilities=model(pictures).numpy())
"""


@pytest.mark.long
def test_a_saved_model_of_tensorflow_gives_what_tensorflow_does(tmp_path: Path) -> None:
    uv, python = [sys.executable, "-m", "uv"], tmp_path / "venv" / "bin" / "python"
    subprocess.run([*uv, "venv", "-q", "--python", sys.executable, tmp_path / "venv"], check=True)
    installed = subprocess.run(
        [*uv, "pip", "install", "-q", "--python", python, "tensorflow-cpu", "tf2onnx"], capture_output=True
    )
    if installed.returncode:
        pytest.skip(f"TensorFlow can't be installed here: {installed.stderr.decode()[-200:]}")
    saved, numbers = tmp_path / "saved", tmp_path / "numbers.npz"
    subprocess.run([python, "-c", MADE, saved, numbers], check=True, capture_output=True)
    page = (CHECKOUT / "docs" / "models.md").read_text()
    (recipe,) = re.findall(r"`python (-m tf2onnx\.convert [^`]+)`", page)
    words = recipe.replace("FOLDER", str(saved)).replace("model.onnx", str(tmp_path / "model.onnx")).split()
    subprocess.run([python, *words], check=True, capture_output=True)
    network = build_classifier(Choice("onnx", str(tmp_path / "model.onnx"), classes=("a", "b", "c")))
    right = np.load(numbers)
    found = network.module(torch.from_numpy(right["pictures"]).permute(0, 3, 1, 2)).softmax(1)
    assert network.preprocessing.crop == (32, 48)
    assert np.allclose(found.numpy(), right["probabilities"], atol=1e-5)
