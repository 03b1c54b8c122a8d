"""Pictures with a class for every pixel: folders of masks, their values, and what is wrong with some."""

from __future__ import annotations

import io
import pickle
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cnnbatch.config.input import Input
from cnnbatch.errors import UserError
from cnnbatch.images import class_map
from cnnbatch.sources.recognition import recognise
from cnnbatch.sources.soundness import require_sound
from cnnbatch.storage import Storage
from cnnbatch.truth import Class, classes_of, ignored_of
from cnnbatch.types import Shard, Source
from tests.conftest import jpeg
from tests.servers import Bucket
from tests.sourcing import keys, read, source

pytest_plugins = ("tests.s3",)

SKY = np.zeros((48, 64), np.uint8)
HALF = np.repeat(np.array([[0, 1]], np.uint8), 32, axis=1).repeat(48, axis=0)


def png(values: NDArray[Any], kind: str = "PNG", palette: bool = False) -> bytes:
    image = Image.fromarray(values)
    if palette:
        image.putpalette(class_map.colours(256).tobytes())
    sink = io.BytesIO()
    image.save(sink, kind)
    return sink.getvalue()


def write(folder: Path, **masks: NDArray[Any] | bytes | None) -> Path:
    """Write a picture of 64 x 48 pixels for each name, with its mask; and three classes."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name, mask in masks.items():
        (folder / "images" / f"{name}.jpg").write_bytes(jpeg(len(name)))
        if mask is not None:
            data = mask if isinstance(mask, bytes) else png(mask)
            (folder / "masks" / f"{name}.png").write_bytes(data)
    (folder / "masks" / "classes.txt").write_text("sky\nroad\nother\n")
    return folder


def masked(folder: Path, **fields: Any) -> Source:
    return source(str(folder / "images"), truth=str(folder / "masks"), **fields)


def rows(found: Source) -> list[dict[str, Any]]:
    table = found.truth(Shard(0, tuple(found.refs())))
    assert table is not None
    assert found.truth_schema is not None
    assert table.schema.equals(found.truth_schema, check_metadata=True)
    return table.to_pylist()


def maps(found: Source) -> list[list[list[int]] | None]:
    return [row["map"] and class_map.from_png(row["map"]).tolist() for row in rows(found)]


def refusal(found: Source) -> str:
    with pytest.raises(UserError) as caught:
        require_sound(found, [Shard(0, tuple(found.refs()))])
    return str(caught.value)


def test_each_picture_has_its_mask_as_it_is(tmp_path: Path) -> None:
    found = masked(write(tmp_path, a=SKY, b=HALF, c=None))
    assert [row["image_id"] for row in rows(found)] == ["a.jpg", "b.jpg", None]
    assert maps(found) == [SKY.tolist(), HALF.tolist(), None]
    first = rows(found)[0]
    assert first == {
        "image_id": "a.jpg",
        "map": (tmp_path / "masks/a.png").read_bytes(),
        "width": 64,
        "height": 48,
        "problem": None,
    }
    assert found.truth_schema is not None
    assert classes_of(found.truth_schema) == (Class("sky", 0), Class("road", 1), Class("other", 2))
    assert ignored_of(found.truth_schema) == {255}
    assert [len(one) for one in read(found) if isinstance(one, bytes)] == [
        path.stat().st_size for path in sorted((tmp_path / "images").iterdir())
    ]
    require_sound(found, [Shard(0, tuple(found.refs()))])


def test_values_are_changed_when_they_are_read(tmp_path: Path) -> None:
    folder = write(tmp_path, a=HALF)
    found = masked(folder, relabel={"0": None, "1": 0}, ignore=("other",))
    assert maps(found) == [np.where(HALF == 0, 255, 0).tolist()]
    assert found.truth_schema is not None
    assert classes_of(found.truth_schema) == (Class("sky", 0),)  # No value is a road any more.
    assert ignored_of(found.truth_schema) == {2, 255}
    assert maps(masked(folder, relabel={"road": "sky"})) == [SKY.tolist()]


def test_a_source_travels_and_goes_on_where_a_listing_ended(tmp_path: Path) -> None:
    found = masked(write(tmp_path, a=SKY, b=HALF, c=SKY), relabel={"road": None})
    refs = list(found.refs())
    again: Source = pickle.loads(pickle.dumps(found))
    assert list(again.refs(refs[0])) == refs[1:]
    assert rows(again) == rows(found)


def test_masks_in_folders_and_by_a_pattern(tmp_path: Path) -> None:
    for name, value in {"train/a": 0, "train/b": 1, "val/a": 2}.items():
        for path, data in {
            f"images/{name}.jpg": jpeg(value),
            f"masks/{name}.png": png(np.full((48, 64), value, np.uint8)),
            f"others/{name}_mask.png": png(np.full((48, 64), value, np.uint8)),
        }.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(data)
    for truth in ("masks", "others/{name}_mask.png"):
        found = source(str(tmp_path / "images"), truth=f"{tmp_path}/{truth}")
        assert [ref.key for ref in found.refs()] == ["train/a.jpg", "train/b.jpg", "val/a.jpg"]
        assert [mask and mask[0][0] for mask in maps(found)] == [0, 1, 2]
    training = source(f"{tmp_path}/images", truth=f"{tmp_path}/masks", subset={"by": "folder", "test": 0.0})
    assert {ref.key for ref in training.refs()} <= {"train/a.jpg", "train/b.jpg"}


def test_the_layout_of_segnets_tutorial(tmp_path: Path) -> None:
    for part in ("test", "train", "val"):
        for path, data in {f"{part}/x.jpg": jpeg(1), f"{part}annot/x.png": png(HALF)}.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(data)
    (tmp_path / "classes.txt").write_text("sky\nroad\nunlabelled\n")
    assert recognise(Input(url=str(tmp_path)), Storage()) == "masks"
    found = source(str(tmp_path), ignore=("unlabelled",))
    assert [ref.key for ref in found.refs()] == ["test/x.jpg", "train/x.jpg", "val/x.jpg"]
    assert maps(found) == [HALF.tolist()] * 3
    assert keys(f"{tmp_path}/t*/*.jpg", format="masks") == ["test/x.jpg", "train/x.jpg"]


def test_classes_without_a_list_are_numbers(tmp_path: Path) -> None:
    folder = write(tmp_path, a=HALF)
    (folder / "masks/classes.txt").unlink()
    found = masked(folder)
    assert found.truth_schema is not None
    assert classes_of(found.truth_schema)[:2] == (Class("0", 0), Class("1", 1))
    named = masked(folder, relabel={"0": "sky", "1": "road"})
    assert named.truth_schema is not None
    assert classes_of(named.truth_schema) == (Class("sky", 0), Class("road", 1))
    assert rows(named)[0]["map"] == rows(found)[0]["map"]


def test_masks_of_a_bucket(bucket: Bucket, tmp_path: Path) -> None:
    folder = write(tmp_path, a=SKY, b=HALF)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            bucket.put(f"set/{path.relative_to(folder)}", path.read_bytes())
    found = source(f"{bucket.url}/set/images", Storage(bucket.options), truth=f"{bucket.url}/set/masks")
    assert maps(found) == maps(masked(folder))


# Bad masks


def test_a_palette_is_indices(tmp_path: Path) -> None:
    folder = write(tmp_path, a=png(HALF, palette=True))
    with Image.open(folder / "masks/a.png") as image:
        assert image.mode == "P"
        assert np.asarray(image.convert("RGB")).max() == 128
    assert maps(masked(folder)) == [HALF.tolist()]


def test_values_past_the_list_are_refused_with_how_to_ignore_them(tmp_path: Path) -> None:
    high, higher = HALF.copy(), HALF.copy()
    high[0, 0], higher[:, 0] = 7, 9
    folder = write(tmp_path, a=SKY, b=high, c=higher)
    assert refusal(masked(folder)) == (
        "of the first 3 images 2 have ground truth that can't be used:\n"
        "  b.jpg: its mask b.png has values which no class has: 7\n"
        "  c.jpg: its mask c.png has values which no class has: 9\n"
        "  what to do: leave the pixels of these values out (input.ignore=[7, 9]), make them others "
        "(input.relabel), or name each in a line of classes.txt\n"
        "  or leave the ground truth out (input.truth=none)"
    )
    row = rows(masked(folder))[1]
    assert (row["map"], row["problem"]) == (
        None,
        "its mask b.png has values which no class has: 7; its map is left out",
    )
    require_sound(masked(folder, ignore=(7, 9)), [Shard(0, tuple(masked(folder).refs()))])


def test_each_mistake_has_its_remedy_once(tmp_path: Path) -> None:
    strange = np.full((48, 64), 9, np.uint8)
    colour = png(np.zeros((48, 64, 3), np.uint8))
    folder = write(
        tmp_path, a=png(SKY[:40]), b=strange, c=colour, d=jpeg(1), e=png(SKY)[:50], f=SKY, g=colour
    )
    (folder / "masks/f.PNG").write_bytes(png(SKY))
    assert refusal(masked(folder)).splitlines()[7:] == [
        "  what to do: leave the pixels of these values out (input.ignore=[9]), make them others "
        "(input.relabel), or name each in a line of classes.txt",
        "  what to do: give each image a mask of its size; to resize one, take the nearest value, "
        "do not interpolate",
        "  what to do: write the masks as PNG files, from what they were made of: the values have changed",
        "  what to do: write the number of each pixel's class, not its colour (a palette may have that)",
        "  what to do: copy the damaged files again",
        "  what to do: keep one mask an image, or say what it is called, as in "
        "input.truth='masks/{name}_mask.png'",
        "  or leave the ground truth out (input.truth=none)",
    ]


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (jpeg(3), "a.png: expected a PNG file, got JPEG, whose values are not kept exactly"),
        (png(np.zeros((48, 64, 3), np.uint8)), r"a.png: expected one value a pixel .* got colours \(RGB\)"),
        (png(SKY)[:50], "a.png: it is no whole PNG file"),
        (b"", "a.png: it is no whole PNG file"),
        (png(SKY[:40]), "its ground truth is for 64 x 40 pixels, the image has 64 x 48"),
    ],
)
def test_what_is_no_mask_of_its_picture_is_refused(mask: bytes, words: str, tmp_path: Path) -> None:
    folder = write(tmp_path, a=mask, b=SKY)
    said = refusal(masked(folder))
    assert said.startswith("of the first 2 images 1 has ground truth that can't be used:\n  a.jpg: ")
    with pytest.raises(UserError, match=words):
        require_sound(masked(folder), [Shard(0, tuple(masked(folder).refs()))])


def test_a_jpeg_among_the_masks_is_no_mask(tmp_path: Path) -> None:
    folder = write(tmp_path, a=None, b=SKY)
    (folder / "masks/a.jpg").write_bytes(png(SKY, "JPEG"))
    assert "a.jpg: its mask a.jpg: expected a PNG file, got JPEG" in refusal(masked(folder))


def test_a_mask_of_another_format_is_to_be_a_png(tmp_path: Path) -> None:
    folder = write(tmp_path, a=None, b=SKY)
    (folder / "masks/a.tif").write_bytes(png(SKY, "TIFF"))
    assert refusal(masked(folder)).splitlines()[1:3] == [
        "  a.jpg: its mask a.tif: expected a PNG file of the same values, got TIFF",
        "  what to do: write the masks as PNG files",
    ]


def test_two_masks_of_one_picture_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, a=SKY)
    (folder / "masks/a.PNG").write_bytes(png(HALF))
    assert "a.jpg: it has 2 masks, a.PNG and a.png" in refusal(masked(folder))


def test_a_mask_that_is_all_of_one_class_or_of_none_is_kept(tmp_path: Path) -> None:
    nothing = np.full((48, 64), 255, np.uint8)
    assert maps(masked(write(tmp_path, a=SKY, b=nothing))) == [SKY.tolist(), nothing.tolist()]


def test_masks_that_no_picture_has_are_counted(tmp_path: Path) -> None:
    from cnnbatch.sources.files.left_out import left_out_by

    folder = write(tmp_path, a=SKY)
    (folder / "masks/z.png").write_bytes(png(SKY))
    found = masked(folder)
    assert len(list(found.refs())) == 1
    assert left_out_by(found) == Counter({"masks of no picture": 1})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"truth": "{0}/nowhere"}, "input.truth: there is no folder of masks"),
        (
            {"truth": "{0}/images"},
            "none of the first 2 pictures has a mask below .*: a picture is 'a.jpg', there is 'a.jpg'",
        ),
        ({"truth": "{0}/masks", "split": "train"}, "input.split: .* is read as masks"),
        ({"format": "masks"}, "input.truth: it is not said where the masks of the pictures"),
        ({"ignore": (2,)}, "input.ignore: .* is read as files, which has no use for it"),
        ({"relabel": {"1": 2}}, "input.relabel: these images have no ground truth whose classes"),
    ],
)
def test_what_can_not_be_asked_is_said(fields: dict[str, Any], words: str, tmp_path: Path) -> None:
    write(tmp_path, a=SKY, b=HALF)
    given = {name: value.format(tmp_path) if name == "truth" else value for name, value in fields.items()}
    with pytest.raises(UserError, match=words):
        list(source(f"{tmp_path}/images", **given).refs())


def test_several_addresses_have_no_masks(tmp_path: Path) -> None:
    write(tmp_path, a=SKY)
    with pytest.raises(UserError, match="with masks one address was expected, got 2"):
        source([f"{tmp_path}/images"] * 2, format="masks", truth=f"{tmp_path}/masks")


# Real ones


def counted(found: Source, refs: Sequence[Any]) -> Counter[int]:
    table = found.truth(Shard(0, tuple(refs)))
    assert table is not None
    counts = Counter[int]()
    for row in table.to_pylist():
        numbers, pixels = np.unique(class_map.from_png(row["map"]), return_counts=True)
        counts.update(dict(zip(numbers.tolist(), pixels.tolist(), strict=True)))
    return counts


def test_camvid(shared: Path) -> None:
    root = shared / "data" / "camvid"
    found = source(str(root), ignore=("unlabelled",))
    refs = list(found.refs())
    assert Counter(ref.key.split("/")[0] for ref in refs) == {"test": 117, "train": 367, "val": 51}
    assert found.truth_schema is not None
    names = (root / "classes.txt").read_text().split()
    assert [one.name for one in classes_of(found.truth_schema)] == names[:-1]
    assert len(names) == 12
    assert ignored_of(found.truth_schema) == {11, 255}
    some = refs[::60]
    expected = Counter[int]()
    for ref in some:
        folder, name = ref.key.split("/")
        with Image.open(root / f"{folder}annot" / name.replace(".jpg", ".png")) as image:
            expected.update(np.asarray(image).ravel().tolist())
    assert counted(found, some) == expected
    require_sound(found, [Shard(0, tuple(some))])
    single = source(str(root / "val"), truth=str(root / "valannot"))
    assert len(list(single.refs())) == 51
