"""What a training knows of maps of classes before it begins, and what of them reaches its examples."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cnnbatch.errors import UserError
from cnnbatch.images import class_map
from cnnbatch.inference.worker.readahead import DecodeOptions
from cnnbatch.job import TrainJob
from cnnbatch.output.folder import Output
from cnnbatch.sources import open_source
from cnnbatch.storage import Storage
from cnnbatch.tasks.recipes.recipe import Example
from cnnbatch.training.data.dataset import Collected, collect
from cnnbatch.training.data.loader import Loader
from cnnbatch.training.data.splits import parts_of
from cnnbatch.types import Image as Decoded
from tests import tiny
from tests.conftest import jpeg

CLASSES = ("sky", "road", "car", "bike", "void")
SIZE = (12, 16)


def mask(number: int, most: int = 3) -> NDArray[np.uint8]:
    """Return numbers below ``most``, and some pixels of void."""
    rng = np.random.default_rng(number)
    return np.where(rng.random(SIZE) < 0.1, 4, rng.integers(0, most, SIZE)).astype(np.uint8)


def write(root: Path, masks: dict[str, NDArray[np.uint8]]) -> Path:
    """Write pictures and masks as SegNet's tutorial has them, by keys such as ``train/a``."""
    root.mkdir(exist_ok=True)
    for key, values in masks.items():
        folder, name = key.split("/")
        for path, data in (
            (f"{folder}/{name}.jpg", jpeg(1, *SIZE[::-1])),
            (f"{folder}annot/{name}.png", None),
        ):
            (root / path).parent.mkdir(exist_ok=True)
            if data is None:
                Image.fromarray(values).save(root / path)
            else:
                (root / path).write_bytes(data)
    (root / "classes.txt").write_text("\n".join(CLASSES))
    return root


def job(root: Path, out: Path, **fields: Any) -> TrainJob:
    return tiny.job(root, out, input={"url": str(root), "ignore": ("void",), **fields})


def collected(found: TrainJob) -> Collected:
    output = Output(found.output.url, Storage())
    return collect(found, parts_of(found, Storage()), output)


def made(root: Path, **more: NDArray[np.uint8]) -> Path:
    masks = {f"train/{number}": mask(number) for number in range(8)}
    masks |= {f"val/{number}": mask(20 + number) for number in range(3)}
    masks |= {f"test/{number}": mask(30 + number) for number in range(2)}
    return write(root, masks | {name.replace("__", "/"): values for name, values in more.items()})


def test_pixels_and_images_of_each_class_are_counted_once(tmp_path: Path) -> None:
    root = made(tmp_path / "set")
    training = job(root, tmp_path / "out")
    assert parts_of(training, Storage()).how == "by the folders test, train, validation"
    found = collected(training)
    pixels, seen = Counter[str](), Counter[str]()
    for number in range(8):
        counts = {name: int((mask(number) == place).sum()) for place, name in enumerate(CLASSES[:3])}
        pixels.update(counts)
        seen.update(name for name, count in counts.items() if count)
    assert found.data.classes == ("sky", "road", "car")  # no pixel is a bike's
    assert found.data.counts == pixels
    assert found.data.seen == seen
    assert found.data.numbers == {"sky": 0, "road": 1, "car": 2}
    assert (found.data.images, found.data.pixels) == (8, sum(pixels.values()))
    assert (len(found.train), len(found.validation)) == (8, 3)
    shutil.rmtree(root)
    again = collected(training)  # from what was kept
    assert again.data == found.data


def test_a_class_that_only_validates_is_left_out_of_the_model(tmp_path: Path) -> None:
    root = made(tmp_path / "set", val__bike=np.full(SIZE, 3, np.uint8))
    found = collected(job(root, tmp_path / "out"))
    assert "bike" not in found.data.classes
    assert found.left_out == {"bike": {"validation": 1, "test": 0}}
    assert len(found.validation) == 4
    assert "'bike' (1 validate)" in found.left_out_words()


def test_images_without_a_mask_do_not_teach(tmp_path: Path) -> None:
    root = made(tmp_path / "set")
    (root / "trainannot/3.png").unlink()
    found = collected(job(root, tmp_path / "out"))
    assert (len(found.train), found.data.images) == (7, 7)
    assert "1 without ground truth are left out" in found.how


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            np.full(SIZE, 9, np.uint8),
            r"(?s)of 14 images that train, validate and test 1 has ground truth "
            r"that can't be used:\n  test/x.jpg: its mask testannot/x.png has values which no class has: 9.*"
            r"ignore=\[9\]",
        ),
        (
            np.zeros((12, 15), np.uint8),
            "test/x.jpg: its ground truth is for 15 x 12 pixels, the image has 16",
        ),
    ],
)
def test_masks_that_can_not_be_used_stop_the_training_before_it_begins(
    values: NDArray[np.uint8], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words):
        collected(job(made(tmp_path / "set", test__x=values), tmp_path / "out"))


def test_a_training_without_a_pixel_to_learn_is_refused(tmp_path: Path) -> None:
    root = write(
        tmp_path / "set", {f"{part}/a": np.full(SIZE, 4, np.uint8) for part in ("train", "val", "test")}
    )
    with pytest.raises(UserError, match="no training image has anything to learn"):
        collected(job(root, tmp_path / "out"))


def test_a_block_of_each_training_sequence_validates(tmp_path: Path) -> None:
    masks = {f"train/{film}_{number:02}": mask(number) for film in ("a", "b") for number in range(10)}
    root = write(tmp_path / "set", masks | {"val/a_99": mask(1), "test/c_00": mask(2)})
    rule = {"by": "folder", "cut": "block", "group": "([^_]+)_", "validation": 0.2, "test": 0.0}
    found = collected(job(root, tmp_path / "out", subset=rule))
    held = [f"train/{film}_{number:02}.jpg" for film in ("a", "b") for number in (8, 9)]
    assert found.validation.table["key"].to_pylist() == [*held, "val/a_99.jpg"]
    assert len(found.train) == 16
    folds = {"cut": "block", "group": "(train/[^_]+)_", "folds": 5, "fold": 4, "test": 0.0}
    only = tiny.job(
        root,
        tmp_path / "only",
        input={
            "url": f"{root}/train/*.jpg",
            "format": "masks",
            "truth": f"{root}/trainannot",
            "ignore": ("void",),
            "subset": {**folds, "group": "([^_]+)_"},
        },
    )
    found = collected(only)
    assert found.validation.table["key"].to_pylist() == [key.removeprefix("train/") for key in held]
    assert "by blocks of each sequence: fold 5 of 5 validates" in found.how


class Recording:
    """A recipe that keeps what it was given."""

    def __init__(self) -> None:
        self.truths: dict[str, Any] = {}

    def decode_size(self, size: tuple[int, int]) -> None:
        return None

    def example(self, image: Decoded, draw: Random | None) -> Example:
        assert image.truth is not None
        self.truths[image.ref.key] = image.truth
        return Example(image.pixels, image.size)


def epoch(loader: Loader, number: int, recipe: Recording) -> dict[str, Any]:
    recipe.truths = {}
    steps: Sequence[list[Example]] = list(loader.training(number, 3))
    assert sum(map(len, steps)) == len(recipe.truths)
    return recipe.truths


def test_an_image_s_map_reaches_its_example_and_is_read_once(tmp_path: Path) -> None:
    root = made(tmp_path / "set")
    training = job(root, tmp_path / "out")
    found = collected(training)
    source = open_source(parts_of(training, Storage()).train, Storage())
    recipe: Any = Recording()
    loader = Loader(recipe, source, found.train, 0, 10**8, DecodeOptions(1, 8))
    try:
        first = epoch(loader, 0, recipe)
        for number in range(8):
            row = first[f"train/{number}.jpg"]
            assert np.array_equal(class_map.from_png(row["map"]), mask(number))
            assert (row["width"], row["height"]) == SIZE[::-1]
        shutil.rmtree(root)
        assert epoch(loader, 1, recipe) == first
    finally:
        loader.close()


def test_maps_are_read_again_where_there_is_no_room(tmp_path: Path) -> None:
    root = made(tmp_path / "set")
    training = job(root, tmp_path / "out")
    source = open_source(parts_of(training, Storage()).train, Storage())
    recipe: Any = Recording()
    loader = Loader(recipe, source, collected(training).train, 0, 0, DecodeOptions(1, 8))
    try:
        first = epoch(loader, 0, recipe)
        Image.fromarray(mask(99)).save(root / "trainannot/0.png")
        second = epoch(loader, 1, recipe)
    finally:
        loader.close()
    assert np.array_equal(class_map.from_png(second["train/0.jpg"]["map"]), mask(99))
    assert {**second, "train/0.jpg": None} == {**first, "train/0.jpg": None}


def test_masks_of_objects_are_read_once_too(tmp_path: Path) -> None:
    for folder, data in (("images", None), ("masks", mask)):
        (tmp_path / folder).mkdir()
        for number in range(6):
            path = tmp_path / folder / f"{number}"
            if data is None:
                path.with_suffix(".jpg").write_bytes(jpeg(1, *SIZE[::-1]))
            else:
                Image.fromarray(data(number)).save(path.with_suffix(".png"))
    how = {
        "url": f"{tmp_path}/images",
        "format": "object_masks",
        "truth": f"{tmp_path}/masks",
        "ignore": (4,),
    }
    training = tiny.job(
        "", tmp_path / "out", input={**how, "subset": {"validation": 0.3, "test": 0.0, "seed": 1}}
    )
    found = collected(training)
    assert found.data.classes == ("object",)
    assert found.data.numbers == {}
    source = open_source(parts_of(training, Storage()).train, Storage())
    recipe: Any = Recording()
    loader = Loader(recipe, source, found.train, 0, 10**8, DecodeOptions(1, 8))
    try:
        first = epoch(loader, 0, recipe)
        assert {len(row["objects"]) for row in first.values()} == {2}
        shutil.rmtree(tmp_path / "masks")
        assert epoch(loader, 1, recipe) == first
    finally:
        loader.close()


@pytest.mark.slow
def test_camvid_with_a_block_of_each_sequence_held_out(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CNNBATCH_DATA", str(shared / "data"))
    rule = {"cut": "block", "group": "([^_]+)_", "folds": 8, "fold": 7}
    found = tiny.job("dataset:camvid", tmp_path / "out", input={"url": "dataset:camvid", "subset": rule})
    parts = parts_of(found, Storage())
    assert parts.test is not None
    data = collected(found)
    held, learned = (
        [str(key) for key in part.table["key"].to_pylist()] for part in (data.validation, data.train)
    )
    films, trained = (Counter(key.split("_")[0] for key in keys) for keys in (held, learned))
    assert films + trained == {"0001TP": 62, "0006R0": 101, "0016E5": 204}
    assert all(abs(films[name] - (films + trained)[name] / 8) <= 1 for name in films)
    last = {name: max(key for key in learned if key.startswith(name)) for name in films}
    assert all(key > last[key.split("_")[0]] for key in held)
    assert len(list(open_source(parts.test, Storage()).refs())) == 117
    assert len(data.data.classes) == 11
    assert data.data.pixels / (data.data.images * 480 * 360) > 0.9
