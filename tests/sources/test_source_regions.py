"""Objects and patches as images: cut out of pictures that are read and decoded once."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

import cnnbatch
from cnnbatch.errors import UserError
from cnnbatch.images import decode as decoding
from cnnbatch.images.decode import DecodeError, full
from cnnbatch.inference.run import run
from cnnbatch.sources.mask_patches import SHARE, VOID, majority
from cnnbatch.storage import Storage
from cnnbatch.types import Content, Failure, ImageRef, Shard, Source
from tests.inference.test_run import QUIET, job, table
from tests.sourcing import source
from tests.tasks.test_detect import JOB

pytest_plugins = ("tests.s3",)
BOXES: dict[str, list[tuple[float, ...]]] = {
    "a.png": [(2, 3, 10, 8), (0, 0, 40, 30), (30.2, 20.9, 9.1, 8.3)],
    "b.png": [],
    "c.png": [(5, 5, 1, 1)],
}


def picture(number: int, size: tuple[int, int] = (30, 40)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8))


@pytest.fixture
def coco(tmp_path: Path) -> str:
    """Write three pictures, of which the first has three objects and a crowd, and the second none."""
    images, annotations = [], []
    for number, (name, boxes) in enumerate(BOXES.items()):
        picture(number).save(tmp_path / name)
        images.append({"id": number, "file_name": name, "width": 40, "height": 30})
        annotations += [{"image_id": number, "category_id": 1 + len(box) % 2, "bbox": box} for box in boxes]
    annotations.insert(1, {"image_id": 0, "category_id": 1, "bbox": [0, 0, 5, 5], "iscrowd": 1})
    for number, one in enumerate(annotations):
        one["id"] = number
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    return str(tmp_path / "instances.json")


def cut(content: Content | Failure) -> torch.Tensor:
    assert not isinstance(content, bytes | Failure)
    pixels, size = content.decode(full)
    assert tuple(pixels.shape[1:]) == size
    return pixels


def images(found: Source, refs: Sequence[ImageRef]) -> list[torch.Tensor]:
    return [cut(reader()) for reader in found.read(Shard(0, tuple(refs)))]


def test_objects_are_cut_out_of_their_pictures(coco: str) -> None:
    found = pickle.loads(pickle.dumps(source(f"{coco}#objects")))
    refs = list(source(f"{coco}#objects").refs())
    assert [ref.key for ref in refs] == [
        "a.png#0",
        "a.png#2",
        "a.png#3",
        "c.png#0",
    ]  # The crowd is no object.
    pixels = np.asarray(picture(0)), np.asarray(picture(2))
    expected = [pixels[0][3:11, 2:12], pixels[0], pixels[0][20:30, 30:40], pixels[1][5:6, 5:6]]
    for one, region in zip(images(found, refs), expected, strict=True):
        assert np.array_equal(one.permute(1, 2, 0), region)
    truth = found.truth(Shard(0, tuple(refs)))
    assert truth is not None
    assert truth["label"].to_pylist() == ["cat", "cat", "cat", "cat"]
    assert truth["image_id"].to_pylist() == [ref.key for ref in refs]


def test_any_part_of_a_shard_and_any_rest_of_a_listing(coco: str) -> None:
    found = source(f"{coco}#objects")
    refs = list(found.refs())
    whole = images(found, refs)
    for place in range(len(refs)):
        assert [ref.key for ref in found.refs(refs[place])] == [ref.key for ref in refs[place + 1 :]]
        assert torch.equal(images(found, [refs[place]])[0], whole[place])
    assert torch.equal(images(found, refs[1::2])[1], whole[3])


def test_a_picture_is_read_and_decoded_once_for_its_regions(
    coco: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = source(f"{coco}#objects")
    refs = list(found.refs())[:3]
    calls: list[str] = []

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*given: Any) -> Any:
            calls.append(name)
            return function(*given)

        return counted

    monkeypatch.setattr(Storage, "read", counting("read", Storage.read))
    monkeypatch.setattr(decoding, "decode", counting("decode", decoding.decode))
    assert len(images(found, refs)) == 3
    assert calls == ["read", "decode"]


def test_a_picture_that_is_gone_fails_for_each_of_its_regions(coco: str) -> None:
    found = source(f"{coco}#objects")
    refs = list(found.refs())
    (Path(coco).parent / "a.png").unlink()
    results = [reader() for reader in found.read(Shard(0, tuple(refs)))]
    assert [isinstance(one, Failure) and one.code for one in results] == ["not_found"] * 3 + [False]


def test_a_box_outside_its_picture_is_told(coco: str) -> None:
    content = json.loads(Path(coco).read_text())
    content["annotations"][0]["bbox"] = [50, 3, 10, 8]
    Path(coco).write_text(json.dumps(content))
    found = source(f"{coco}#objects")
    with pytest.raises(DecodeError, match="is outside its picture of 40 x 30"):
        images(found, list(found.refs()))


def test_what_has_no_boxes_is_refused(coco: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no boxes that could be images"):
        source(f"{tmp_path}#objects")
    with pytest.raises(UserError, match="image, box, box_score can be kept; got licence"):
        source(f"{coco}#objects", keep=("licence",))
    content = json.loads(Path(coco).read_text())
    Path(coco).write_text(json.dumps({**content, "annotations": []}))
    with pytest.raises(UserError, match="expected pictures with boxes"):
        list(source(f"{coco}#objects").refs())


@pytest.mark.slow
def test_what_one_job_detects_another_classifies(tmp_path: Path, photos: Callable[[int], Path]) -> None:
    spec = tmp_path / "job.yaml"
    folder = photos(3)
    spec.write_text(JOB.format(photos=folder, truth="null", out=tmp_path / "boxes").replace('"null"', "null"))
    cnnbatch.run(spec, quiet=True, compute={"pool": "inline"}, task={"max_objects": 4})
    detected = cnnbatch.open(tmp_path / "boxes").arrow().to_pylist()
    out = tmp_path / "kinds"
    given = {"keep": ["image", "box", "box_score"], "min_score": 0.0}
    run(job(Path(f"{tmp_path}/boxes#objects"), out, input=given), QUIET)
    rows = table(out).to_pylist()
    expected = [
        (f"{row['key']}#{number}", row["key"], one["box"], one["score"])
        for row in detected
        for number, one in enumerate(row["objects"])
    ]
    assert [(row["key"], row["image"], row["box"], row["box_score"]) for row in rows] == expected
    assert len(rows) == 12


def test_an_output_without_objects_says_what_it_has(tmp_path: Path, photos: Callable[[int], Path]) -> None:
    run(job(photos(2), tmp_path / "out"), QUIET)
    with pytest.raises(UserError, match="has no objects: its columns are key, uri"):
        source(f"{tmp_path}/out#objects")


def test_what_means_nothing_to_an_output_is_refused(
    tmp_path: Path, photos: Callable[[int], Path], coco: str
) -> None:
    run(job(photos(2), tmp_path / "out"), QUIET)
    with pytest.raises(UserError, match="input.key: .* is read as the output of a job"):
        source(f"{tmp_path}/out#objects", key="id")
    with pytest.raises(UserError, match="input.split: .* is read as patches"):
        source(f"{tmp_path}#patches=8", truth=str(tmp_path), split="val")


def test_patches_have_the_class_of_nearly_all_their_pixels(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    picture(0, (20, 24)).save(tmp_path / "images" / "a.png")
    mask = np.zeros((20, 24), np.uint8)
    mask[:8, 8:16] = 1
    mask[0, 8:15] = 2  # 57 of 64 pixels are left of the class: 0.89
    mask[8:16, :8] = VOID
    mask[8:11, 8:16] = 2  # 24 of 64: no class has 0.8
    Image.fromarray(mask).save(tmp_path / "masks" / "a.png")
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\n")
    found = source(f"{tmp_path}/images#patches=8", truth=str(tmp_path / "masks"))
    refs = list(found.refs())
    assert [(ref.key, ref.columns["label"]) for ref in refs] == [
        ("a.png#0", "sky"),
        ("a.png#1", "road"),
        ("a.png#2", "sky"),
        ("a.png#5", "sky"),
    ]
    pixels = np.asarray(picture(0, (20, 24)))
    assert np.array_equal(images(found, refs)[1].permute(1, 2, 0), pixels[:8, 8:16])
    assert np.array_equal(images(found, refs)[3].permute(1, 2, 0), pixels[8:16, 16:24])


def test_a_mask_of_another_size_is_told(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    picture(0).save(tmp_path / "images" / "a.png")
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(tmp_path / "masks" / "a.png")
    found = source(f"{tmp_path}/images#patches=16", truth=str(tmp_path / "masks"))
    with pytest.raises(DecodeError, match="the mask has 32 x 32 pixels, its picture 40 x 30"):
        images(found, list(found.refs()))


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (lambda path: picture(0).save(path), r"a.png: expected one value a pixel .* got colours \(RGB\)"),
        (
            lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n cut"),
            "a.png: it is no whole PNG file",
        ),
    ],
)
def test_masks_that_are_none_are_refused(write: Any, expected: str, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    picture(0).save(tmp_path / "images" / "a.png")
    write(tmp_path / "masks" / "a.png")
    with pytest.raises(UserError, match=expected):
        list(source(f"{tmp_path}/images#patches=16", truth=str(tmp_path / "masks")).refs())
    with pytest.raises(UserError, match="need a folder of masks"):
        source(f"{tmp_path}/images#patches=16")


@given(
    arrays(
        np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.sampled_from([0, 1, VOID])
    )
)
@settings(deadline=None)
def test_majority_equals_counting(values: Any) -> None:
    found = majority(values, 3)
    assert found.shape == (values.shape[0] // 3, values.shape[1] // 3)
    for row in range(found.shape[0]):
        for column in range(found.shape[1]):
            square = values[3 * row : 3 * row + 3, 3 * column : 3 * column + 3].ravel().tolist()
            clear = [value for value in (0, 1) if square.count(value) >= SHARE * 9]
            assert found[row, column] == (clear[0] if clear else -1)
