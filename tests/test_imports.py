"""What loads torch or Ray when it is imported, and that nothing else does."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.places import CHECKOUT

ROOT = CHECKOUT
TORCH = """
    images.decode images.inspect images.nvjpeg images.pasted_masks inference.autotune.agreement
    inference.autotune.measure inference.autotune.recall inference.autotune.trials
    inference.bench.alone inference.bench.command inference.worker.devices
    inference.worker.predictor inference.worker.readahead inference.worker.settings inference.worker.timings
    inference.worker.transfer inference.worker.worker models.architectures.darknet
    models.architectures.darknet_layers
    models.architectures.darknet_models models.architectures.dlib_resnet
    models.architectures.face_models models.architectures.fcn models.architectures.feature_maps
    models.architectures.inception_resnet models.architectures.iresnet models.architectures.mtcnn
    models.architectures.pyramid models.architectures.segmentation models.architectures.segnet
    models.architectures.suppression models.architectures.unet models.building models.catalogue
    models.choice models.depth models.detector models.detector_heads models.detectors
    models.architectures.classical_faces models.embedding_head models.embedding_network
    models.trained_face_embedder
    models.face_alignment models.face_detector models.face_detector_scaling models.face_detectors
    models.face_embedder models.face_embedders models.face_pipeline models.heads
    models.libraries.keras_layers models.libraries.keras_models models.libraries.timm_models
    models.libraries.torchvision_backbones models.libraries.torchvision_detectors
    models.libraries.torchvision_models models.libraries.torchvision_rcnn
    models.libraries.torchvision_segmenters
    models.mtcnn.detector models.mtcnn.published models.mtcnn.windows models.network models.onnx
    models.onnx.choice models.onnx.classifier models.onnx.detector models.onnx.detr models.onnx.engines
    models.onnx.face_embedder
    models.onnx.face_heads models.onnx.faces models.onnx.module models.onnx.segmenter
    models.onnx.torchvision_export models.onnx.yolo
    models.pixel_classes models.pixel_network models.preprocessing models.published models.resizing
    models.runtime.backends models.runtime.converted models.runtime.fusion
    models.runtime.network_digest models.runtime.parts models.runtime.structure models.segmenter
    models.segmenters models.summed_areas models.tiles models.trained models.views
    report.collection tasks.recipes.augment tasks.recipes.auxiliary_head tasks.recipes.tuned_blocks
    tasks.recipes.boxes tasks.recipes.classification tasks.recipes.embedding tasks.recipes.segmentation
    tasks.recipes.embedding_inside tasks.recipes.kept_features tasks.recipes.pictures
    tasks.recipes.inside tasks.recipes.masks_inside tasks.recipes.segmentation_inside
    tasks.recipes.segmentation_augment tasks.recipes.segmentation_losses tasks.recipes.segmenter_start
    tasks.recipes.detection tasks.recipes.face_losses tasks.recipes.targets training.checkpoints
    training.data.decoded_cache
    training.average training.data.loader training.distributed training.lesson training.loop
    training.optimizers training.vectors training.worker
"""
RAY = """
    cluster.private_ray cluster.session index.serving.deployment inference.driver.ray_workers
    training.driver training.study.sweep
"""
READERS = """
    launch results inference.run evaluation evaluation.comparison.page report.page sources.describe
    sources.formats output.export training.run training.study.run
    training.study.predictions.run training.study.again tasks.registry job cli.app
"""
"""What `run`, `evaluate`, `report`, `compare`, `open` and `describe` load before they need a network."""

REFUSING = """
import importlib, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "ray"):
            raise ModuleNotFoundError(f"{name} is refused")

sys.meta_path.insert(0, Refuse())
found = []
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if "is refused" not in str(error):
            raise
        found.append(name)
print(*found)
"""


def named(text: str) -> set[str]:
    return {f"cnnbatch.{name}" for name in text.split()}


def modules() -> set[str]:
    paths = (ROOT / "cnnbatch").rglob("*.py")
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths
    }


def refused(names: set[str]) -> set[str]:
    """Return which modules can't be imported where there is neither torch nor Ray."""
    command = [sys.executable, "-c", REFUSING, *sorted(names)]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert not found.returncode, found.stderr
    return set(found.stdout.split())


@pytest.mark.slow
def test_all_other_modules_load_neither_torch_nor_ray() -> None:
    heavy = named(TORCH) | named(RAY)
    assert heavy <= modules(), "a module that is gone, or has another name"
    light = modules() - heavy
    assert named(READERS) <= light
    assert refused(light) == set()


@pytest.mark.slow
def test_the_lists_name_only_what_loads_one_of_them() -> None:
    assert refused(named(TORCH)) == named(TORCH)
    assert refused(named(RAY)) == named(RAY)
