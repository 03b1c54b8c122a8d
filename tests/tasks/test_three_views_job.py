"""The job ``three_views`` with networks that are trained here, as docs/three_views.md has it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import cnnbatch
from cnnbatch.cli.app import app
from cnnbatch.inference.run import RunOptions
from cnnbatch.launch import launch
from cnnbatch.output.evaluation import read_evaluation
from cnnbatch.storage import Storage
from cnnbatch.tasks.three_views import ThreeViews
from tests import tiny_detections, tiny_instances, tiny_maps
from tests.jobs import load_job
from tests.report.test_report import Page, words

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SIZE = (64, 96)
TRAINING, SEEN = 16, 3
CLASSES = ("background", *tiny_instances.CLASSES)
HOW = ["compute.pool=inline", "compute.precision=fp32", "compute.backend=eager"]
FEW = {"score_threshold": 0, "max_objects": 4}
"""What is asked of networks that have seen so little: all scores count, of the best objects."""
NETWORK = "mobilenet_v3_small_fpn"


def write_maps(root: Path, count: int) -> Path:
    """Write the map of each picture of `tiny_instances.write_coco`."""
    root.mkdir(parents=True)
    for number in range(count):
        numbers = np.zeros(SIZE, np.uint8)
        for name, mask in tiny_instances.drawn(number, SIZE)[1]:
            numbers[mask] = CLASSES.index(name)
        Image.fromarray(numbers).save(root / f"{number:03}.png")
    (root / "classes.txt").write_text("\n".join(CLASSES))
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the folders of a detector, a segmenter and an instance network, by the views that they are for.

    All three have learned from the same pictures, whose ground truth is objects with masks.
    """
    folder = tmp_path_factory.mktemp("trained")
    truth = tiny_instances.write_coco(folder / "photos", TRAINING, SIZE)
    maps = write_maps(folder / "maps", TRAINING)
    short = {"epochs": 1, "batch": 1, "validation": 0.1, "test": 0.0}
    few = {**short, "proposals": 8}
    pixels = {"url": str(truth.parent), "truth": str(maps)}
    segmenter = {"model": "unet_mobilenet_v2", "weights": "random", "size": SIZE}
    windows = {"crop_size": SIZE}
    more = {**short, "epochs": 6, "batch": 2, "loss": {"dice": 1.0, "balance": 0.5}, "augment": windows}
    jobs = {
        "detect": tiny_detections.job(truth, folder / "detect", few, task={"model": f"fasterrcnn_{NETWORK}"}),
        "segment": tiny_maps.job(truth.parent, folder / "segment", more, input=pixels, task=segmenter),
        "instances": tiny_instances.job(
            truth, folder / "instances", few, task={"model": f"maskrcnn_{NETWORK}"}
        ),
    }
    assert [launch(job, RunOptions(quiet=True)).exit_status for job in jobs.values()] == [0, 0, 0]
    return {view: folder / view for view in jobs}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the ground truth of pictures that no network has learned from."""
    return tiny_instances.write_coco(tmp_path_factory.mktemp("seen") / "photos", SEEN, SIZE, first=TRAINING)


def ran(job: str, photos: Path, out: Path, **task: Any) -> list[dict[str, Any]]:
    """Run a job of ``jobs/`` by the command line; return its rows."""
    fields = [f"task.{name}={value}" for name, value in task.items()]
    done = CliRunner().invoke(app, ["run", job, f"input={photos}", f"output={out}", "--quiet", *HOW, *fields])
    assert done.exit_code == 0, done.output
    rows: list[dict[str, Any]] = cnnbatch.open(str(out)).arrow().to_pylist()
    return rows


@pytest.fixture(scope="module")
def output(trained: dict[str, Path], photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("views") / "out"
    models = {f"{view}.model": folder for view, folder in trained.items()}
    few = {f"{view}.{name}": value for view in ("detect", "instances") for name, value in FEW.items()}
    ran("three_views", photos, out, **models, **few)
    return out


def test_the_default_is_three_published_networks() -> None:
    task = load_job("three_views", ["input=photos", "output=out"]).task
    assert isinstance(task, ThreeViews)
    found = [(one.model, one.weights) for one in (task.detect, task.segment, task.instances)]
    names = ("fasterrcnn_resnet50_fpn_v2", "deeplabv3_resnet50", "maskrcnn_resnet50_fpn_v2")
    assert found == [(name, "DEFAULT") for name in names]


def test_a_row_a_picture_has_what_each_network_says_alone(
    trained: dict[str, Path], photos: Path, output: Path, tmp_path: Path
) -> None:
    rows: list[dict[str, Any]] = cnnbatch.open(str(output)).arrow().to_pylist()
    assert [row["key"] for row in rows] == [f"{number:03}.png" for number in range(TRAINING, TRAINING + SEEN)]
    assert all(row["error"] is None for row in rows)
    answers = {
        "detect": {"objects": "boxes"},
        "segment": {name: name for name in ("map", "map_classes", "confidence")},
        "instances": {"objects": "objects"},
    }
    for view, columns in answers.items():
        # A segmenter alone is judged by maps only.
        truth, few = (photos.parent, {}) if view == "segment" else (photos, FEW)
        alone = ran(view, truth, tmp_path / view, model=trained[view], **few)
        for name, ours in columns.items():
            found = [row[ours] for row in rows]
            assert found == [row[name] for row in alone]
            assert all(found)
            assert all(found.count(one) == 1 for one in found)  # A picture's row is of that picture.


def test_each_view_is_judged_and_shown_beside_what_is_true(output: Path) -> None:
    evaluation = read_evaluation(str(output), Storage())
    assert evaluation is not None
    assert {"AP", "mIoU", "mask_AP"} <= {
        name for name, one in evaluation.metrics.items() if one.value is not None
    }
    html = (output / "report.html").read_text()
    said = re.findall(r'<p class="said"><span>([^<:]+):?</span>', html)
    cards = [said[first : first + 6] for first in range(0, len(said), 6)]
    views = ["Detection", "Semantic segmentation", "Instance segmentation"]
    assert len(cards) >= SEEN
    assert all(card == [*views, "Actual", "Actual", "Actual"] for card in cards)
    assert Page(html).tags["img"] == len(said)
    assert all(f"{name} " in words(html) for name in ("AP", "mIoU", "mask_AP"))
