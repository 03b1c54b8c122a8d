"""Sets whose truth no format reads: fetching makes lists of it; and what each set's files are."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from cnnbatch.sources.datasets.matlab import read_numbers
from cnnbatch.sources.datasets.table import DATASETS
from tests.conftest import jpeg
from tests.sourcing import read, source
from tests.tiny_sets import Published, labels, tar, zipped

pytest_plugins = ("tests.s3", "tests.published")
pytestmark = pytest.mark.usefixtures("nothing_here")

FETCHED = [name for name, entry in DATASETS.items() if entry.download]


def mat(tmp_path: Path, values: Mapping[str, object], compressed: bool = True) -> bytes:
    scipy_io = pytest.importorskip("scipy.io")
    scipy_io.savemat(tmp_path / "made.mat", values, do_compression=compressed)
    return (tmp_path / "made.mat").read_bytes()


def texts(**files: str) -> dict[str, bytes]:
    return {f"{name.replace('__', '/')}.txt": text.encode() for name, text in files.items()}


def of(name: str, tmp_path: Path) -> dict[str, bytes]:
    """Return the archives of a tiny set in its real layout."""
    one = jpeg(1)
    if name == "oxford_iiit_pet":
        lists = texts(
            annotations__list="#Image CLASS-ID\nBengal_2 2 1 2\n",
            annotations__trainval="Bengal_2 2 1 2\namerican_bulldog_10 4 2 1\n",
            annotations__test="Bengal_3 2 1 2\n",
        )
        images = {f"images/{key}.jpg": one for key in ("Bengal_2", "american_bulldog_10", "Bengal_3")}
        return {"images.tar.gz": tar(images), "annotations.tar.gz": tar(lists)}
    if name == "food101":
        lists = texts(**{"food-101__meta__train": "apple_pie/1\n", "food-101__meta__test": "sushi/2\n"})
        return {
            "f.tgz": tar(
                {"food-101/images/apple_pie/1.jpg": one, "food-101/images/sushi/2.jpg": one, **lists}
            )
        }
    if name == "dtd":
        lists = texts(
            **{f"dtd__labels__{part}1": f"dotted/{part}.jpg\n" for part in ("train", "val", "test")}
        )
        return {
            "dtd.tar.gz": tar(
                {f"dtd/images/dotted/{part}.jpg": one for part in ("train", "val", "test")} | lists
            )
        }
    if name == "imagenette":
        paths = ("train/n01440764/a.JPEG", "val/n03888257/b.JPEG")
        return {"imagenette2-320.tgz": tar({f"imagenette2-320/{path}": one for path in paths})}
    if name == "caltech101":
        kinds = ("BACKGROUND_Google/image_0001.jpg", "ant/image_0001.jpg", "camera/image_0001.jpg")
        inner = tar({f"101_ObjectCategories/{path}": one for path in kinds})
        return {"caltech-101.zip": zipped({"caltech-101/101_ObjectCategories.tar.gz": inner})}
    if name == "flowers102":
        parts = {"trnid": [[3, 1]], "valid": [[2]], "tstid": [[4]]}
        labels = {"labels": np.array([[77, 1, 102, 1]], np.uint8)}
        images = {f"jpg/image_{number:05}.jpg": one for number in range(1, 5)}
        found = {"imagelabels.mat": mat(tmp_path, labels), "setid.mat": mat(tmp_path, parts)}
        return {"102flowers.tgz": tar(images), **found}
    raise AssertionError(name)


LISTED: dict[str, dict[str | None, dict[str, str]]] = {
    "oxford_iiit_pet": {
        "trainval": {"images/Bengal_2.jpg": "Bengal", "images/american_bulldog_10.jpg": "american_bulldog"},
        "test": {"images/Bengal_3.jpg": "Bengal"},
    },
    "food101": {
        "train": {"food-101/images/apple_pie/1.jpg": "apple_pie"},
        "test": {"food-101/images/sushi/2.jpg": "sushi"},
    },
    "dtd": {part: {f"dtd/images/dotted/{part}.jpg": "dotted"} for part in ("train", "val", "test")},
    "imagenette": {
        "train": {"imagenette2-320/train/n01440764/a.JPEG": "tench"},
        "val": {"imagenette2-320/val/n03888257/b.JPEG": "parachute"},
    },
    "caltech101": {
        None: {
            "101_ObjectCategories/ant/image_0001.jpg": "ant",
            "101_ObjectCategories/camera/image_0001.jpg": "camera",
        }
    },
    "flowers102": {
        "train": {"jpg/image_00003.jpg": "blackberry lily", "jpg/image_00001.jpg": "passion flower"},
        "val": {"jpg/image_00002.jpg": "pink primrose"},
        "test": {"jpg/image_00004.jpg": "pink primrose"},
    },
}


@pytest.mark.parametrize("name", LISTED)
def test_a_set_is_fetched_and_its_truth_becomes_a_list(
    name: str, publish: Callable[..., Published], tmp_path: Path
) -> None:
    publish(name, of(name, tmp_path)).fetch()
    everything: dict[str, str] = {}
    for split, expected in LISTED[name].items():
        everything |= expected
        assert labels(f"dataset:{name}", split) == expected
    assert labels(f"dataset:{name}", None) == everything
    assert all(isinstance(one, bytes) for one in read(source(f"dataset:{name}")))


@pytest.mark.parametrize("compressed", [True, False])
def test_numbers_of_matlab(compressed: bool, tmp_path: Path) -> None:
    arrays = {"a": np.arange(300, dtype=np.uint16)[None], "b": np.array([[1.5, -2.0]]), "c": np.uint8(7)}
    mat(tmp_path, arrays, compressed)
    found = read_numbers(tmp_path / "made.mat")
    assert {name: values.tolist() for name, values in found.items()} == {
        "a": list(range(300)),
        "b": [1.5, -2.0],
        "c": [7],
    }
    whole = (tmp_path / "made.mat").read_bytes()
    (tmp_path / "cut.mat").write_bytes(whole[: len(whole) - 20])
    (tmp_path / "text.mat").write_bytes(mat(tmp_path, {"words": "some text"}))
    (tmp_path / "none.mat").write_bytes(b"x" * 200)
    for name in ("cut", "text", "none"):
        with pytest.raises(ValueError, match=f"{name}.mat"):
            read_numbers(tmp_path / f"{name}.mat")


@pytest.mark.parametrize("name", FETCHED)
def test_every_file_has_an_address_and_a_digest(name: str) -> None:
    download = DATASETS[name].download
    assert download is not None
    for remote in download.files():
        algorithm, digest = remote.digest
        assert re.match(r"https?://[^/]+/.+", remote.url)
        assert re.fullmatch(r"[0-9a-f]+", digest)
        assert len(digest) == {"md5": 32, "sha256": 64}[algorithm]
        assert re.search(r"\.(tar|tar\.gz|tgz|zip|mat)$", remote.name)
