"""Darknet's YOLOv3-tiny as the job `detect` runs it: from the file of a photograph to rows in its pixels."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import cnnbatch
from cnnbatch.images.decode import decode
from cnnbatch.tasks.detect import Detect
from cnnbatch.types import Image, ImageRef, Runtime
from tests.models.architectures.test_darknet import Files, opencv, suppressed, tiny  # noqa: F401 - a fixture
from tests.places import SHARED
from tests.tasks.test_task_contract import predict

DATA = SHARED / "data" / "coco-sample"
SAID = "coffee.png: cup\n", "motorcycle_left.png: motorbike\n", "chelsea.png: nothing\n"


def photograph(name: str) -> Image:
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        pytest.skip("scikit-image, which has the photographs, is not installed")
    pixels, size = decode((Path(spec.origin).parent / "data" / name).read_bytes())
    return Image(ImageRef(name, name), pixels, size)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["coffee.png", "motorcycle_left.png", "rocket.jpg"])
def test_rows_are_opencvs_boxes_in_pixels_of_the_original(
    tiny: Files,  # noqa: F811
    name: str,
    tmp_path: Path,
) -> None:
    task, picture = Detect(model="yolov3_tiny", max_objects=100_000), photograph(name)
    model = task.load(Runtime("cpu"))
    (prepared,) = model.prepare(picture)
    (top, left), (height, width) = prepared.offset, prepared.size
    scale = np.array([picture.size[1] / width, picture.size[0] / height] * 2)
    expected = []
    for label, score, box in suppressed(opencv(tiny.cfg, tiny.weights, prepared.pixels[None], tmp_path), 416):
        corners = ((box - [left, top, left, top]) * scale).reshape(2, 2).clip(0, picture.size[::-1])
        expected.append((model.classes.names[label], -score, corners.ravel().tolist()))
    rows = predict(model, [picture])["objects"][0].as_py()
    found = [(one["label"], -one["score"], list(one["box"].values())) for one in rows]
    assert len(found) == len(expected) > 3
    for ours, theirs in zip(sorted(found), sorted(expected), strict=True):
        assert ours[0] == theirs[0]
        assert ours[1] == pytest.approx(theirs[1], abs=1e-4)
        assert ours[2] == pytest.approx(theirs[2], rel=1e-3, abs=0.1)


@pytest.mark.slow
def test_the_job_says_what_the_readme_shows(tiny: Files, tmp_path: Path, capsys: Any) -> None:  # noqa: F811
    photograph("coffee.png")
    names = ("astronaut.png", "coffee.png", "motorcycle_left.png", "chelsea.png")
    addresses = [f"package:skimage/data/{name}" for name in names]
    cnnbatch.run("detect", input=addresses, output=str(tmp_path / "out"), task={"model": "yolov3_tiny"})
    said = capsys.readouterr().out
    assert all(words in said for words in SAID)


@pytest.mark.slow
def test_the_average_precision_on_photographs_of_coco(tiny: Files, tmp_path: Path) -> None:  # noqa: F811
    truth = DATA / "annotations" / "instances.json"
    if not truth.exists():
        pytest.skip("no photographs of COCO beside the checkout")
    out = str(tmp_path / "out")
    task, compute = {"model": "yolov3_tiny"}, {"pool": "inline"}
    cnnbatch.run("detect", quiet=True, input=str(truth), output=out, task=task, compute=compute)
    coco = COCO(str(truth))
    images = {image["file_name"]: image["id"] for image in coco.dataset["images"]}
    model = Detect(model="yolov3_tiny").load(Runtime("cpu")).classes
    ids = dict(zip(model.names, model.ids, strict=True))
    found = []
    for row in cnnbatch.open(out).arrow(["key", "objects"]).to_pylist():
        for one in row["objects"]:
            x1, y1, x2, y2 = one["box"].values()
            shape = {"image_id": images[row["key"]], "category_id": ids[one["label"]]}
            found.append({**shape, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": one["score"]})
    measured = COCOeval(coco, coco.loadRes(found), "bbox")
    measured.evaluate()
    measured.accumulate()
    measured.summarize()
    # Darknet's own test-dev figure is 0.331 at half overlap; channels in the wrong order give 0.240 here.
    assert measured.stats[0] == pytest.approx(0.155, abs=0.005)
    assert measured.stats[1] == pytest.approx(0.320, abs=0.005)


@pytest.mark.slow
def test_a_batch_is_of_pictures_prepared_alone(tiny: Files) -> None:  # noqa: F811
    model = Detect(model="yolov3_tiny").load(Runtime("cpu"))
    one, other = photograph("coffee.png"), photograph("rocket.jpg")
    with torch.inference_mode():
        first, second = predict(model, [one, other]), predict(model, [one, one])
    assert first["objects"][0] == second["objects"][0] == second["objects"][1]
