from __future__ import annotations

import os
import pickle
import random
import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.dom import minidom

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.output.plan import page_shards, page_table
from cnnbatch.sources.voc import source as voc
from cnnbatch.sources.voc import xml as voc_xml
from cnnbatch.sources.voc.source import VOC_CLASSES, XmlTree
from cnnbatch.storage import Storage, unique
from cnnbatch.truth import Class, classes_of
from cnnbatch.types import ImageRef, Shard, Source
from tests.places import SHARED
from tests.servers import Bucket, Reply, WebServer
from tests.sourcing import QUICK, failure, fill, keys, read, source

pytest_plugins = ("tests.s3",)

DATA = SHARED / "data"
BOX = "<bndbox><xmin>1</xmin><ymin>2.5</ymin><xmax>30</xmax><ymax>20</ymax></bndbox>"
DOG = f"<object><name>dog</name>{BOX}</object>"


def xml(*objects: str, width: Any = 40, height: Any = 30) -> str:
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation><filename>other.jpg</filename>{size}{''.join(objects)}</annotation>"


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def tree(root: Path, images: Sequence[str], annotations: Sequence[str]) -> str:
    fill(root, [f"JPEGImages/{name}" for name in images])
    (root / "Annotations").mkdir(exist_ok=True)
    for name in annotations:
        put(root / "Annotations" / f"{name}.xml", xml(DOG))
    return str(root)


def test_hidden_files_do_not_hide_a_tree(tmp_path: Path) -> None:
    url = tree(tmp_path, ["a.jpg"], ["a"])
    put(tmp_path / ".DS_Store", "notes")
    put(tmp_path / "Annotations" / "._a.xml", "notes")
    assert isinstance(source(url), XmlTree)
    assert keys(url) == ["JPEGImages/a.jpg"]


def rows_of(found: Source) -> list[dict[str, Any]]:
    """Return the truth as a worker gets it: behind the plan's page, of a source that travelled."""
    (shard,) = page_shards(page_table([Shard(0, tuple(found.refs()))], found.columns))
    truth = pickle.loads(pickle.dumps(found)).truth(shard)
    assert truth is not None
    return list(truth.to_pylist())


def parsed(path: Path) -> dict[str, Any]:
    """Read one file by another parser, in the plainest way."""
    document = minidom.parse(str(path))

    def text(node: Any, name: str) -> str:
        return str(node.getElementsByTagName(name)[0].firstChild.data).strip()

    objects = []
    for one in document.getElementsByTagName("object"):
        left, top, right, bottom = (int(text(one, side)) for side in ("xmin", "ymin", "xmax", "ymax"))
        box = {"x1": left - 1, "y1": top - 1, "x2": right, "y2": bottom}
        area = (right - left + 1) * (bottom - top + 1)
        kind = {"label": text(one, "name"), "difficult": text(one, "difficult") == "1"}
        objects.append({**kind, "box": box, "area": area})
    size = {"width": int(text(document, "width")), "height": int(text(document, "height"))}
    return {"image_id": path.stem, "objects": objects, **size}


# What it gives


@pytest.mark.parametrize("name", ["raccoon", "blood-cells"])
def test_real_trees_are_as_another_parser_reads_them(name: str) -> None:
    root = DATA / name
    if not root.is_dir():
        pytest.skip(f"no {name} beside the checkout")
    found = source(str(root))
    assert isinstance(found, XmlTree)
    names = sorted(path.name for path in (root / "JPEGImages").iterdir())
    assert [ref.key for ref in found.refs()] == [f"JPEGImages/{one}" for one in names]
    for one, row in zip(names, rows_of(found), strict=True):
        expected = parsed(root / "Annotations" / f"{Path(one).stem}.xml")
        made = [
            {key: value[key] for key in ("label", "difficult", "box", "area")} for value in row["objects"]
        ]
        assert {**row, "objects": made} == {**expected, "problem": None}
    assert len(read(found)) == len(names)
    assert classes_of(found.truth_schema) == ()


def test_a_tree(tmp_path: Path) -> None:
    root = tree(tmp_path, ["b.JPG", "a.png", "notes.txt", "._a.jpg", ".x/a.jpg"], ["a", "._b", "x"])
    objects = [
        f"<object><name> cat\n</name><difficult>1</difficult>{BOX}<part><name>head</name></part></object>",
        f"<object><name>dog</name><difficult/>{BOX}</object>",
    ]
    put(
        tmp_path / "Annotations/b.xml", '<?xml version="1.0" encoding="UTF-8"?>' + xml(*objects, width="40.0")
    )
    found = source(root)
    assert [ref.key for ref in found.refs()] == [f"JPEGImages/{one}" for one in ("a.png", "b.JPG", "x.jpg")]
    results = read(found)
    assert results[:2] == [b"JPEGImages/a.png", b"JPEGImages/b.JPG"]
    assert failure(results[2]) == ("read", "not_found")
    first, second, third = rows_of(found)
    assert [first["image_id"], second["image_id"], third["image_id"]] == ["a", "b", "x"]
    assert [one["label"] for one in second["objects"]] == ["cat", "dog"]
    assert second["objects"][0] == {
        "label": "cat",
        "score": None,
        "box": {"x1": 0.0, "y1": 1.5, "x2": 30.0, "y2": 20.0},
        "mask": None,
        "keypoints": None,
        "crowd": False,
        "area": 555.0,
        "difficult": True,
        "ignore": False,
        "is_thing": None,
    }
    assert second["objects"][1]["difficult"] is False
    assert (second["width"], second["height"]) == (40, 30)


def test_an_image_without_xml_has_no_truth_and_one_without_objects_has(tmp_path: Path) -> None:
    root = tree(tmp_path, ["a.jpg", "b.jpg", "c.jpg"], ["a"])
    put(tmp_path / "Annotations/b.xml", "<annotation/>")
    first, second, third = rows_of(source(root))
    assert len(first["objects"]) == 1
    assert (second["objects"], second["width"], second["image_id"]) == ([], None, "b")
    assert (third["objects"], third["image_id"]) == (None, None)


def test_vocs_own_classes_are_known_by_their_lists(tmp_path: Path) -> None:
    root = tree(tmp_path, ["a.jpg"], ["a"])
    for name in VOC_CLASSES[1:]:
        put(tmp_path / f"ImageSets/Main/{name}_train.txt", "a 1\n")
    assert classes_of(source(root).truth_schema) == ()  # type: ignore[arg-type]
    put(tmp_path / "ImageSets/Main/aeroplane_train.txt", "a -1\n")
    known = classes_of(source(root).truth_schema)  # type: ignore[arg-type]
    assert (len(known), known[0], known[19]) == (20, Class("aeroplane", 1), Class("tvmonitor", 20))
    assert list(known) == sorted(known, key=lambda one: one.name)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", None),
        ("", None),
        ("inf", None),
        ("nan", None),
        ("1e12", None),
        ("-4", None),
        ("wide", None),
        ("7", 7),
    ],
)
def test_sizes_that_are_not_known(text: str, size: int | None) -> None:
    assert voc_xml.parse(xml(width=text).encode(), "a.xml")["width"] == size


# Names


stems = st.sets(
    st.lists(st.text("ab.-k", min_size=1, max_size=4), min_size=1, max_size=2)
    .map(lambda parts: "x" + "/x".join(parts))
    .filter(lambda name: not re.search(r"\.$|\./", name)),
    max_size=8,
)


@pytest.mark.slow
@settings(max_examples=60)
@given(stems, stems, st.randoms(use_true_random=False))
def test_any_two_sets_of_names_give_their_union_each_once_and_go_on_anywhere(
    images: set[str], annotations: set[str], rng: random.Random
) -> None:
    images = images or {"only"}
    files = {f"{name}{rng.choice(['.jpg', '.JPEG', '.png'])}" for name in sorted(images)}
    with tempfile.TemporaryDirectory() as folder:
        tree(Path(folder), sorted(files), sorted(annotations))
        found = source(folder, format="voc")
        refs = list(found.refs())
        pictures = {os.path.splitext(name)[0] for name in files}
        assert sorted(ref.key for ref in refs) == sorted(
            [
                *(f"JPEGImages/{name}" for name in files),
                *(f"JPEGImages/{name}.jpg" for name in annotations - pictures),
            ]
        )
        known = [row["image_id"] for row in rows_of(found) if row["image_id"]]
        assert sorted(known) == sorted(annotations)
        for number, ref in enumerate(refs):
            assert list(found.refs(after=ref)) == refs[number + 1 :]


def test_a_listing_goes_on_behind_what_is_gone(tmp_path: Path) -> None:
    root = tree(tmp_path, ["a.jpg", "b.jpg", "c.jpg"], ["b", "x", "y", "z"])
    found = source(root)
    refs = list(found.refs())
    (tmp_path / "JPEGImages/b.jpg").unlink()
    (tmp_path / "Annotations/y.xml").unlink()
    assert [ref.key[11:] for ref in found.refs(after=refs[1])] == ["c.jpg", "b.jpg", "x.jpg", "z.jpg"]
    assert [ref.key[11:] for ref in found.refs(after=refs[4])] == ["z.jpg"]


# Splits


def test_a_split_names_its_images(tmp_path: Path) -> None:
    root = tree(
        tmp_path, ["000002.jpg", "1.png", "1.tif", "my photo.jpg", "my 3.jpg", "my.jpg", "rest.jpg"], ["1"]
    )
    put(tmp_path / "ImageSets/Main/val.txt", "\ufeff1\r\n\n  000002 \nmy photo\nmy 3\nnone\nmy")
    found = source(root, split="val")
    refs = list(found.refs())
    assert [ref.key[11:] for ref in refs] == [
        "1.png",
        "000002.jpg",
        "my photo.jpg",
        "my 3.jpg",
        "none.jpg",
        "my.jpg",
    ]
    assert [ref.etag is None for ref in refs] == [False, False, False, False, True, False]
    assert failure(read(found)[4]) == ("read", "not_found")
    assert [row["image_id"] for row in rows_of(found)] == ["1", None, None, None, None, None]
    for number, ref in enumerate(refs):
        assert list(found.refs(after=ref)) == refs[number + 1 :]
    with pytest.raises(UserError, match="'val' no longer names 'gone'"):
        list(found.refs(after=replace(refs[0], key="gone")))


def test_several_splits_are_read_one_after_the_other(tmp_path: Path) -> None:
    root = tree(tmp_path, ["1.jpg", "2.jpg", "3.jpg"], ["1"])
    put(tmp_path / "ImageSets/Main/val.txt", "3\n1\n")
    put(tmp_path / "ImageSets/Main/test.txt", "2\n")
    put(tmp_path / "ImageSets/Main/both.txt", "2\n1\n")
    found = source(root, split=["val", "test"])
    refs = list(found.refs())
    assert [ref.key[11:] for ref in refs] == ["3.jpg", "1.jpg", "2.jpg"]
    for number, ref in enumerate(refs):
        assert list(found.refs(after=ref)) == refs[number + 1 :]
    with pytest.raises(UserError, match="'val' names the same image in line 2 and 'both' in line 2"):
        list(source(root, split=["val", "both"]).refs())


def test_lists_of_a_class_leave_out_what_lacks_it(tmp_path: Path) -> None:
    root = tree(tmp_path, ["1.jpg", "2.jpg", "3.jpg", "4.jpg"], [])
    put(tmp_path / "ImageSets/Main/cat_val.txt", "1 -1\n2  0\n3  1\n4\n")
    assert keys(root, split="cat_val", format="voc") == [f"JPEGImages/{number}.jpg" for number in (2, 3, 4)]


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("trian", r"input\.split: there is no list 'trian' in .*/ImageSets/Main; did you mean 'train'\?"),
        ("../../secret", r"there is no list '\.\./\.\./secret' in .*\n  its lists: bad, train, twice"),
        ("/etc/hosts", r"there is no list '/etc/hosts' in"),
        ("twice", r"input\.split: 'twice' names the same image in lines 1 and 3"),
        ("bad", r"input\.split: 'bad' names '\.\./\.\./secret' in line 2, which leaves the folder"),
    ],
)
def test_mistakes_in_a_split(
    tmp_path: Path, split: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tree(tmp_path / "tree", ["a.jpg", "b.jpg"], [])
    put(tmp_path / "secret.txt", "a\n")
    lists = {"train": "a\n", "twice": "a\nb\na 1\n", "bad": "a\n../../secret\n"}
    for name, text in lists.items():
        put(tmp_path / f"tree/ImageSets/Main/{name}.txt", text)
    for early in (1 << 17, 0):
        monkeypatch.setattr(unique, "_EARLY", early)
        with pytest.raises(UserError, match=message):
            keys(root, split=split, format="voc")


def test_a_tree_without_lists(tmp_path: Path) -> None:
    root = tree(tmp_path, ["a.jpg"], ["a"])
    with pytest.raises(UserError, match=r"there is no list 'val' in .*\n  its lists: none"):
        keys(root, split="val")


# ImageNet-DET


def test_an_imagenet_det_tree(tmp_path: Path) -> None:
    names = ["train/n01/x.JPEG", "train/n01/z.JPEG", "val/v.JPEG", "val/w.JPEG"]
    fill(tmp_path, [f"Data/DET/{name}" for name in names])
    wordnet = DOG.replace("dog", "n02084071")
    for name in ("train/n01/x", "train/n02/y", "val/v"):
        put(tmp_path / "Annotations/DET" / f"{name}.xml", xml(wordnet))
    put(tmp_path / "ImageSets/DET/val.txt", "v 1\nw 2\n")
    put(tmp_path / "ImageSets/DET/train_1.txt", "n01/x 1\nn01/z -1\ntrain/n01/z\n")
    found = source(str(tmp_path))
    assert [ref.key for ref in found.refs()] == [
        *(f"Data/DET/{name}" for name in names),
        "Data/DET/train/n02/y.JPEG",
    ]
    rows = rows_of(found)
    assert [row["image_id"] for row in rows] == ["train/n01/x", None, "val/v", None, "train/n02/y"]
    assert rows[0]["objects"][0]["label"] == "n02084071"
    assert failure(read(found)[4]) == ("read", "not_found")
    assert keys(str(tmp_path), split="val") == ["Data/DET/val/v.JPEG", "Data/DET/val/w.JPEG"]
    assert keys(str(tmp_path), split="train_1") == ["Data/DET/train/n01/x.JPEG", "Data/DET/train/n01/z.JPEG"]


# Mistakes


BAD: list[tuple[bytes, str]] = [
    (xml(DOG)[:-5].encode(), r"is no whole XML in UTF-8: .*write the file again"),
    (b"", r"is no whole XML"),
    (b"\xff\xd8 a picture", r"is no whole XML"),
    (
        b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>',
        r"a document type",
    ),
    (f"<!DOCTYPE a><annotation>{DOG}</annotation>".encode("utf-16"), r"declares a document type"),
    (
        b'<?xml version="1.0" encoding="gb2312"?><annotation/>',
        r"is no whole XML in UTF-8: multi-byte encodings",
    ),
    (
        b'<?xml version="1.0" encoding="nonsense"?><annotation/>',
        r"is no whole XML in UTF-8: unknown encoding",
    ),
    (b"<annotation>&x;</annotation>", r"undefined entity"),
    (xml(DOG.replace("<name>dog</name>", "")).encode(), r"has an object without a name"),
    (xml(DOG.replace("dog", " ")).encode(), r"has an object without a name"),
    (xml(DOG.replace("30", "wide")).encode(), r"whose xmax is no number of pixels"),
    (xml(DOG.replace("2.5", "nan")).encode(), r"whose ymin is no number"),
    (xml(DOG.replace("20", "inf")).encode(), r"whose ymax is no number"),
    (xml("<object><name>dog</name></object>").encode(), r"whose xmin is no number"),
]


@pytest.mark.parametrize(("data", "message"), BAD)
def test_bad_xml(tmp_path: Path, data: bytes, message: str) -> None:
    root = tree(tmp_path, ["a.jpg", "b.jpg"], ["a"])
    (tmp_path / "Annotations/b.xml").write_bytes(data)
    with pytest.raises(UserError) as error:
        rows_of(source(root))
    assert re.search(message, str(error.value), re.DOTALL), error.value
    assert str(error.value).startswith(f"{root}/Annotations/b.xml ")


def test_xml_that_nests_deeply_or_is_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    depth = 200_000
    assert voc_xml.parse(b"<a>" * depth + b"</a>" * depth, "a.xml")["objects"] == []
    root = tree(tmp_path, ["a.jpg"], ["a"])
    monkeypatch.setattr(voc, "_MOST_BYTES", 100)
    with pytest.raises(UserError, match=r"a\.xml cannot be read: .* at most 100 are read"):
        rows_of(source(root))


def test_what_is_no_tree(tmp_path: Path) -> None:
    fill(tmp_path, ["x/JPEGImages/a.jpg", "y/Annotations/a.xml", "z/JPEGImages/a.txt", "z/Annotations/a.xml"])
    with pytest.raises(UserError, match=r"x has no Annotations, where a tree of the format voc has it"):
        next(iter(source(str(tmp_path / "x"), format="voc").refs()))
    with pytest.raises(UserError, match=r"y has no JPEGImages"):
        keys(str(tmp_path / "y"), format="voc")
    with pytest.raises(UserError, match=r"expected images in .*z/JPEGImages, found none"):
        keys(str(tmp_path / "z"), format="voc")
    with pytest.raises(UserError, match=r"has no Annotations/DET, where a tree of the format imagenet_det"):
        keys(str(tmp_path / "x"), format="imagenet_det")
    with pytest.raises(UserError, match="one tree was expected, got 2"):
        source([str(tmp_path / "x"), str(tmp_path / "y")], format="voc")


def test_a_tree_that_may_not_be_listed(web: WebServer, aws_keys: None) -> None:
    web.answer = lambda method, path: Reply.error(403, "AccessDenied")
    storage = Storage(QUICK.model_copy(update={"endpoint": web.url()}))
    with pytest.raises(EnvironmentFault, match="may not be listed"):
        source("s3://images/VOC", storage, format="voc")
    with pytest.raises(EnvironmentFault, match="may not be listed"):
        keys("s3://images/VOC", storage, format="imagenet_det")


def test_a_full_disk_is_no_mistake_of_the_user() -> None:
    pictures = voc._Pictures()
    pictures._base.execute("PRAGMA max_page_count = 4")

    def add_many() -> None:
        for number in range(1000):
            pictures.add(f"{number:050}", ImageRef(f"{number:050}", "x"))

    with pytest.raises(EnvironmentFault, match="disk is full"):
        add_many()
    pictures.close()


# Buckets


@pytest.mark.parametrize("kind", ["voc", "imagenet_det"])
def test_a_bucket_gives_what_the_folder_gives(tmp_path: Path, bucket: Bucket, kind: str) -> None:
    images, annotations, sets = (
        ("JPEGImages", "Annotations", "ImageSets/Main")
        if kind == "voc"
        else ("Data/DET", "Annotations/DET", "ImageSets/DET")
    )
    fill(tmp_path, [f"{images}/{name}" for name in ("b.png", "a.jpg", "a-b.jpg", "val/ü.jpg", "a.k.jpg")])
    for name in ("a", "a-b", "val/ü", "gone", "a.k"):
        put(tmp_path / annotations / f"{name}.xml", xml(DOG, width=len(name)))
    put(tmp_path / sets / "val.txt", "b\nü\nval/gone\na 1\na-b -1\n")
    for path in tmp_path.rglob("*.*"):
        if path.is_file():
            bucket.put(f"tree/{path.relative_to(tmp_path)}", path.read_bytes())
    for split in (None, "val"):
        here = source(str(tmp_path), split=split, format=kind)
        there = source(f"{bucket.url}/tree", Storage(bucket.options), split=split, format=kind)
        refs = list(there.refs())
        assert [ref.key for ref in refs] == [ref.key for ref in here.refs()]
        assert len(refs) == (6 if split is None else 4)
        assert [ref.etag is None for ref in refs] == [ref.etag is None for ref in here.refs()]
        assert rows_of(there) == rows_of(here)
        assert [str(one)[:25] for one in read(there)] == [str(one)[:25] for one in read(here)]
        for number, ref in enumerate(refs):
            assert list(there.refs(after=ref)) == refs[number + 1 :]
