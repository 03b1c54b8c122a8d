"""What a training can't learn is said, and folders called train and test are parts, never classes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cnnbatch.config.input import Input
from cnnbatch.errors import UserError
from cnnbatch.inference.run import RunOptions
from cnnbatch.launch import launch
from cnnbatch.output.folder import Output
from cnnbatch.report import write_report
from cnnbatch.sources import open_source
from cnnbatch.sources.cuts import part_by_hash
from cnnbatch.sources.files.splits import PARTS, part_in, part_of, splits_below
from cnnbatch.sources.labelled import Labelled
from cnnbatch.storage import Storage
from cnnbatch.training import run as training
from cnnbatch.training.data.dataset import Collected, collect
from cnnbatch.training.data.splits import parts_of
from tests import tiny

QUIET = RunOptions(quiet=True)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("train", "train"),
        ("Train", "train"),
        ("TRAINING_SET", "train"),
        ("training-data", "train"),
        ("train2017", "train"),
        ("trainval", "train"),
        ("Training Images", "train"),
        ("test_set", "test"),
        ("TestSet", "test"),
        ("Test", "test"),
        ("testing", "test"),
        ("valid", "validation"),
        ("val", "validation"),
        ("Validation_Set", "validation"),
        ("dev-set", "validation"),
        ("trains", ""),
        ("training wheels", ""),
        ("tested", ""),
        ("valley", ""),
        ("a train", ""),
        ("", ""),
    ],
)
def test_names_of_parts(name: str, part: str) -> None:
    assert part_of(name) == part


def files(root: Path, *keys: str) -> Path:
    for key in keys:
        path = root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def labels(root: Path) -> dict[str, str | None]:
    source = open_source(Input.model_validate({"url": str(root), "format": "folders"}), Storage())
    assert isinstance(source, Labelled)
    return {ref.key: source.label(ref.key) for ref in source.refs()}


@pytest.mark.parametrize("around", ["", "archive/", "a/b/"])
@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Train/cats", "Test/cats"),
        ("training_set/training_set/cats", "test_set/test_set/cats"),
        ("cats/train", "cats/test"),
        ("train/cats/2020", "VAL/cats/2020"),
        ("seg_train/seg_train/cats", "seg_test/seg_test/cats"),
        ("01_train/cats", "02_test/cats"),
        ("My-Train-Set/cats", "my-test-set/cats"),
    ],
)
def test_folders_of_parts_are_no_classes(tmp_path: Path, around: str, train: str, test: str) -> None:
    root = files(tmp_path, f"{around}{train}/1.jpg", f"{around}{test}/2.jpg", ".hidden/train/x", "notes.txt")
    files(root, f"{around}{train.replace('cats', 'dogs')}/3.jpg")
    found_labels = labels(root)
    assert found_labels[f"{around}{train}/1.jpg"] == found_labels[f"{around}{test}/2.jpg"] == "cats"
    assert found_labels[f"{around}{train.replace('cats', 'dogs')}/3.jpg"] == "dogs"
    assert part_in(f"{around}{train}/1.jpg") == "train"
    assert part_in(f"{around}{test}/2.jpg") == ("validation" if "VAL" in test else "test")
    found = splits_below(str(root), Storage())
    assert found is not None
    assert found.parts == {"train", "validation" if "VAL" in test else "test"}


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    root = files(tmp_path, "bus/1.jpg", "train/2.jpg", "car/3.jpg")
    assert splits_below(str(root), Storage()) is None
    assert labels(root) == {"bus/1.jpg": "bus", "train/2.jpg": "train", "car/3.jpg": "car"}
    inside = files(tmp_path / "set", "train/bus/1.jpg", "train/train/2.jpg", "test/train/3.jpg")
    assert labels(inside) == {
        "train/bus/1.jpg": "bus",
        "train/train/2.jpg": "train",
        "test/train/3.jpg": "train",
    }
    assert [part_in(key) for key in labels(inside)] == ["test", "train", "train"]


def test_classes_may_have_names_that_end_as_parts(tmp_path: Path) -> None:
    root = files(tmp_path / "classes", "freight_train/1.jpg", "litmus_test/2.jpg", "car/3.jpg")
    assert set(labels(root).values()) == {"freight_train", "litmus_test", "car"}
    pairs = files(tmp_path / "pairs", *(f"{name}_{part}/1.jpg" for name in ("a", "b") for part in PARTS))
    assert splits_below(str(pairs), Storage()) is None
    inside = files(tmp_path / "inside", "train/freight_train/1.jpg", "test/litmus_test/2.jpg")
    assert list(labels(inside).values()) == ["litmus_test", "freight_train"]
    assert [part_in(key) for key in labels(inside)] == ["test", "train"]


def test_a_test_without_images_is_a_mistake_before_the_training(tmp_path: Path) -> None:
    root = tmp_path / "set"
    tiny.colours(root, 40, ("red", "blue"))
    for path in root.rglob("*.png"):
        if part_by_hash(path.relative_to(root).as_posix(), 0.15, 0.15) == "test":
            path.unlink()
    with pytest.raises(UserError, match=r"no image belongs to test by hash\n.*train\.test"):
        collected(root, tmp_path / "out")
    assert not (tmp_path / "out" / "_job" / "training").exists()


def test_what_lies_beside_the_parts_is_named(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for part in ("Train", "test_set", "extra"):
        tiny.colours(root / part, 6)
    job = tiny.job(root, tmp_path / "out")
    parts = parts_of(job, Storage())
    assert parts.how == "by the folders test, train; of those that train, by hash 15% for validation; " + (
        "extra beside them are left out"
    )
    assert parts.test is not None
    tested = [ref.key for ref in open_source(parts.test, Storage()).refs()]
    assert len(tested) == 18
    assert all(key.startswith("test_set/") for key in tested)


def test_many_folders_or_files_are_not_searched_for_parts(tmp_path: Path) -> None:
    root = files(tmp_path, *(f"{number:03}/1.jpg" for number in range(70)), "train/1.jpg", "test/1.jpg")
    assert splits_below(str(root), Storage()) is None


# ---- classes that can't be learned ------------------------------------------------------------


def only(part: str, folder: Path) -> Callable[[str], bool]:
    """Tell the pictures of a folder whose hash puts them into ``part``."""
    return lambda name: part_by_hash(f"{folder.name}/{name}", 0.15, 0.15) == part


def with_rare(root: Path, part: str, count: int = 1) -> Path:
    """Return two classes that are learned, and ``green`` with so many pictures, all of one part."""
    tiny.colours(root, 20, ("red", "blue"))
    tiny.colours(root, 80, ("green",))
    wanted = only(part, root / "green")
    pictures = sorted((root / "green").iterdir())
    kept = [path for path in pictures if wanted(path.name)][:count]
    assert len(kept) == count
    for path in pictures:
        if path not in kept:
            path.unlink()
    return root


def collected(root: Path, out: Path, **fields: Any) -> Collected:
    job = tiny.job(root, out, **fields)
    return collect(job, parts_of(job, Storage()), Output(str(out), Storage()))


def test_a_class_whose_one_image_tests_is_said_and_reported(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root, out = with_rare(tmp_path / "set", "test"), tmp_path / "out"
    launch(tiny.job(root, out, {"epochs": 1}))
    said = capfd.readouterr().err
    assert "one class is left out of the model, since no image trains: 'green' (1 test)" in said
    assert json.loads((out / "model.json").read_text())["classes"] == ["blue", "red"]
    write_report(str(out), Storage())
    page = re.sub(r"<[^>]+>|\s+", " ", (out / "report.html").read_text())
    assert "Classes left out" in page
    assert "no image trains green" in page


def test_a_class_that_only_validates_is_left_out(tmp_path: Path) -> None:
    found = collected(with_rare(tmp_path / "set", "validation", 2), tmp_path / "out")
    assert found.data.classes == ("blue", "red")
    assert found.left_out == {"green": {"validation": 2, "test": 0}}
    assert "'green' (2 validate)" in found.left_out_words()
    assert "green" not in found.validation.counts()
    again = collected(tmp_path / "set", tmp_path / "out")
    assert again.left_out == found.left_out


def test_a_class_that_only_lies_in_the_test_folder_is_left_out(tmp_path: Path) -> None:
    for part, names in (("Train", ("red", "blue")), ("Test", ("red", "green"))):
        tiny.colours(tmp_path / "set" / part, 8, names)
    found = collected(tmp_path / "set", tmp_path / "out")
    assert found.data.classes == ("blue", "red")
    assert found.left_out == {"green": {"validation": 0, "test": 8}}


def test_a_class_that_was_asked_for_and_is_not_there_is_said(tmp_path: Path) -> None:
    root = tiny.colours(tmp_path / "set", 12)
    chosen = {"url": str(root), "format": "folders", "classes": ["red", "blue", "pink"]}
    found = collected(root, tmp_path / "out", input=chosen)
    assert found.data.classes == ("blue", "red")
    assert "'pink' (no image at all)" in found.left_out_words()


def test_images_without_a_truth_are_counted(tmp_path: Path) -> None:
    root = tiny.colours(tmp_path / "set", 12)
    (root / "red" / "0000.png").rename(root / "loose.png")
    assert "; 1 without ground truth are left out" in collected(root, tmp_path / "out").how


@pytest.mark.parametrize(
    "fields",
    [
        {"input": {"classes": ["red"]}},
        {"input": {"limit": 6}},
        {"task": {"classes": ["red"]}, "input": {"classes": ["red"]}},
        {"train": {"strategy": "as_is"}, "input": {"classes": ["red"]}},
    ],
)
def test_one_class_alone_is_not_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    root = tiny.colours(tmp_path / "set", 20, ("red", "blue"))
    chosen = {"url": str(root), "format": "folders", **fields["input"]}
    monkeypatch.setattr(training, "_fit", lambda order: pytest.fail("it trains"))
    job = tiny.job(root, tmp_path / "out", fields.get("train"), input=chosen, task=fields.get("task", {}))
    with pytest.raises(UserError, match="expected two at least, got one: '(red|blue)'"):
        launch(job, QUIET)


def test_one_class_that_is_left_because_others_only_test_names_them(tmp_path: Path) -> None:
    tiny.colours(tmp_path / "set" / "train", 8, ("red",))
    tiny.colours(tmp_path / "set" / "test", 8, ("red", "green"))
    with pytest.raises(UserError, match="of 'green' no image trains"):
        collected(tmp_path / "set", tmp_path / "out")
