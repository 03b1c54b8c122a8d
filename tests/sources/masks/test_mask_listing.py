"""Pictures and their masks meet while both are listed: the same pairs as by a dictionary of all names."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnbatch.errors import UserError
from cnnbatch.sources.files.source import Files
from cnnbatch.sources.masks.listing import WITHOUT_PICTURE, MaskListing
from cnnbatch.sources.masks.pairs import MaskedPictures
from cnnbatch.sources.masks.places import MaskPlaces, places_of
from cnnbatch.storage import Entry, NotFound


class Names:
    """A storage of empty files, of whose listings is kept how far they were read."""

    def __init__(self, *uris: str) -> None:
        self.uris = sorted(uris, key=str.encode)
        self.read = Counter[str]()

    def head(self, uri: str) -> Entry:
        raise NotFound(uri)

    def list(self, uri: str, after: str | None = None) -> Iterator[Entry]:
        below = [one for one in self.uris if one.startswith(f"{uri}/")]
        if not below:
            raise NotFound(uri)
        for one in below:
            if after is None or one.encode() > after.encode():
                self.read[uri] += 1
                yield Entry(one, 0, None)


def pairs(storage: Any, places: MaskPlaces, after: str | None = None) -> tuple[dict[str, list[str]], int]:
    """Return the masks of each picture below ``/p``, and how many no picture has."""
    pictures = Files(storage, ("s3://b/p",))
    source = MaskedPictures(pictures, storage, places)
    refs = list(source.refs())
    if after is not None:
        refs = list(source.refs(next(ref for ref in refs if ref.key == after)))
    return {ref.key: source.masks(ref) for ref in refs}, pictures.left_out.counts[WITHOUT_PICTURE]


STEMS = st.text("ab1._-", min_size=1, max_size=4).filter(lambda name: not name.startswith("."))
FOLDERS = st.sampled_from(["", "a/", "a1/", "a.b/", "a_/"])
NAMES = st.sets(st.tuples(FOLDERS, STEMS).map("".join), min_size=1, max_size=12)
SUFFIXES = st.sampled_from([".jpg", ".png", ".JPG"])


@given(
    st.data(), NAMES, NAMES, st.sampled_from(["m", "m/{name}_mask.png", "m/x_{name}.png", "m/{name}/*.png"])
)
def test_each_picture_has_the_masks_of_its_name(
    data: st.DataObject, pictures: set[str], masks: set[str], truth: str
) -> None:
    shown = {name + data.draw(SUFFIXES) for name in pictures}
    after = {"m/{name}_mask.png": "_mask.png", "m/{name}/*.png": "/1.png"}.get(truth, ".png")
    before = "x_" if "x_" in truth else ""
    kept = {f"{before}{name}{after}" for name in masks}
    if truth == "m":
        kept |= {f"{name}.jpg" for name in sorted(masks)[:2]}
    storage = Names(*(f"s3://b/p/{name}" for name in shown), *(f"s3://b/m/{name}" for name in kept))
    places = places_of(f"s3://b/{truth}")
    by_name: dict[str, list[str]] = {}
    for path in sorted(kept, key=str.encode):
        by_name.setdefault(places.name_of(path) or "", []).append(path)
    expected = {key: by_name.get(key.rpartition(".")[0], []) for key in shown}
    if not any(expected.values()):
        with pytest.raises(UserError, match="has a mask below"):
            pairs(storage, places)
        return
    found, without = pairs(storage, places)
    assert found == expected
    assert without == len(kept) - sum(map(len, {tuple(paths) for paths in expected.values()}))
    listed = sorted(shown, key=str.encode)
    begun = data.draw(st.sampled_from(listed))
    assert pairs(storage, places, begun)[0] == {
        key: expected[key] for key in listed[listed.index(begun) + 1 :]
    }


def test_neither_listing_runs_ahead_of_the_other() -> None:
    names = [f"{number:04}" for number in range(1000)]
    storage = Names(*(f"s3://b/p/{name}.jpg" for name in names), *(f"s3://b/m/{name}.png" for name in names))
    source = MaskedPictures(Files(storage, ("s3://b/p",)), storage, MaskPlaces("s3://b/m"))  # type: ignore[arg-type]
    refs = source.refs()
    for number in range(10):
        assert json.loads(next(refs).columns["masks"]) == [f"{number:04}.png"]
    assert storage.read["s3://b/m"] <= 12


def test_names_that_can_no_longer_come_are_not_held() -> None:
    masks = [f"s3://b/m/{number:05}_mask.png" for number in range(5000)]
    counts = Counter[str]()
    listing = MaskListing(Names(*masks), places_of("s3://b/m/{name}_mask.png"), "", None, counts)  # type: ignore[arg-type]
    for number in range(0, 5000, 50):
        assert listing.of(f"{number:05}") == [f"{number:05}_mask.png"]
        assert len(listing._held) < 200
    listing.close()
    assert counts == {WITHOUT_PICTURE: 4900}


def test_folders_of_masks_beside_those_of_pictures() -> None:
    storage = Names(
        *("s3://b/p/test/a.jpg", "s3://b/p/testannot/a.png", "s3://b/p/train/a.jpg", "s3://b/p/train/b.jpg"),
        *("s3://b/p/trainannot/b.png", "s3://b/p/trainannot/c.png", "s3://b/p/more/a.jpg"),
    )
    places = MaskPlaces("s3://b/p", beside=True)
    found, without = pairs(storage, places)
    assert found == {
        "more/a.jpg": [],
        "test/a.jpg": ["testannot/a.png"],
        "train/a.jpg": [],
        "train/b.jpg": ["trainannot/b.png"],
    }
    assert without == 1
    assert pairs(storage, places, "train/a.jpg")[0] == {"train/b.jpg": ["trainannot/b.png"]}


def test_masks_in_the_folder_of_the_pictures() -> None:
    storage = Names("s3://b/p/a.jpg", "s3://b/p/masks/a.png", "s3://b/p/z.jpg")
    assert pairs(storage, MaskPlaces("s3://b/p/masks"))[0] == {"a.jpg": ["a.png"], "z.jpg": []}
    beside = Names("s3://b/p/a.jpg", "s3://b/p/a.png")
    assert pairs(beside, MaskPlaces("s3://b/p"))[0] == {"a.jpg": ["a.png"], "a.png": ["a.jpg"]}


@pytest.mark.parametrize("truth", ["m/{name}", "m/{name}/{name}.png", "m/*/{name}.png"])
def test_a_pattern_says_what_masks_are_called(truth: str) -> None:
    with pytest.raises(UserError, match=r"expected what the mask of a picture is called, with \{name\} once"):
        places_of(truth)
