from __future__ import annotations

import os
import pickle
import re
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.images.decode import full
from cnnbatch.output.plan import page_shards, page_table
from cnnbatch.sources import containers
from cnnbatch.sources.cifar10 import CLASSES, Cifar10, RawPicture, _batch
from cnnbatch.storage import Storage
from cnnbatch.truth import LABEL_SCHEMA, classes_of
from cnnbatch.types import Content, Failure, ImageRef, Shard, Source
from tests.servers import Bucket
from tests.sourcing import failure, keys, read, source

pytest_plugins = ("tests.s3",)

Pixels = NDArray[np.uint8]
NAMES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
COUNTS = [3, 1, 4, 2, 5, 6]
FORMS = ["binary", "python"]


def batch(number: int) -> tuple[list[int], Pixels]:
    """Return the labels and the pixels [N, 3, 32, 32] of a file."""
    generator = np.random.default_rng(number)
    count = COUNTS[number]
    return generator.integers(0, 10, count).tolist(), generator.integers(0, 256, (count, 3, 32, 32), np.uint8)


def python_2(labels: Sequence[int], pixels: Pixels) -> bytes:
    """Pickle a batch opcode by opcode as Python 2 did, whose strings are bytes."""

    def text(value: bytes) -> bytes:
        return (
            b"U" + bytes([len(value)]) + value
            if len(value) < 256
            else b"T" + struct.pack("<I", len(value)) + value
        )

    raw = pixels.tobytes()
    shape = b"M" + struct.pack("<H", len(labels)) + b"M" + struct.pack("<H", 3072) + b"\x86"
    dtype = (
        b"cnumpy\ndtype\n"
        + text(b"u1")
        + b"K\x00K\x01\x87R(K\x03"
        + text(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n"
        + b"cnumpy\nndarray\n"
        + b"K\x00\x85"
        + text(b"b")
        + b"\x87R"
    )
    state = b"(K\x01" + shape + dtype + b"\x89" + text(raw) + b"tb"
    names = b"](" + b"".join(text(b"picture.png") for _ in labels) + b"e"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    items = text(b"batch_label") + text(b"batch 1 of 5") + text(b"labels") + numbers
    return b"\x80\x02}(" + items + text(b"data") + array + state + text(b"filenames") + names + b"u."


def python_3(labels: Sequence[int], pixels: Pixels, protocol: int = 2) -> bytes:
    return pickle.dumps({"data": pixels.reshape(-1, 3072), "labels": list(labels)}, protocol)


def binary(labels: Sequence[int], pixels: Pixels) -> bytes:
    return b"".join(bytes([label]) + picture.tobytes() for label, picture in zip(labels, pixels, strict=True))


def data_set(form: str) -> dict[str, bytes]:
    """Return the files of the whole data set, in one of its two forms."""
    if form == "binary":
        files = {f"{name}.bin": binary(*batch(number)) for number, name in enumerate(NAMES)}
        return {**files, "batches.meta.txt": "\n".join(CLASSES).encode() + b"\n\n", "readme.html": b"<html>"}
    files = {name: python_2(*batch(number)) for number, name in enumerate(NAMES)}
    return {
        **files,
        "batches.meta": pickle.dumps({"label_names": list(CLASSES)}, 2),
        "readme.html": b"<html>",
    }


def fill(folder: Path, form: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in data_set(form).items():
        (folder / name).write_bytes(data)
    return folder


def pixels_of(content: Content | Failure) -> Pixels:
    assert isinstance(content, RawPicture)
    assert content.size_bytes == 3072
    pixels, size = content.decode(full)
    assert (size, pixels.dtype, tuple(pixels.shape)) == ((32, 32), torch.uint8, (3, 32, 32))
    return np.asarray(pixels)


def expected(numbers: Sequence[int]) -> list[Pixels]:
    return [picture for number in numbers for picture in batch(number)[1]]


def same(found: Sequence[Content | Failure], pictures: Sequence[Pixels]) -> bool:
    return len(found) == len(pictures) and all(
        np.array_equal(pixels_of(one), other) for one, other in zip(found, pictures, strict=True)
    )


def labels_of(found: Source) -> list[str]:
    refs = tuple(found.refs())
    (shard,) = page_shards(page_table([Shard(0, refs)], found.columns))  # as a worker gets it, by the plan
    truth = found.truth(shard)
    assert truth is not None
    assert truth["image_id"].to_pylist() == [ref.key for ref in refs]
    return [str(label) for label in truth["label"].to_pylist()]


@pytest.mark.parametrize("form", FORMS)
def test_the_data_set(form: str, tmp_path: Path) -> None:
    suffix = ".bin" if form == "binary" else ""
    found = source(str(fill(tmp_path / "cifar", form)))
    assert isinstance(found, Cifar10)
    refs = list(found.refs())
    wanted = [
        f"{name}{suffix}#{row}" for name, count in zip(NAMES, COUNTS, strict=True) for row in range(count)
    ]
    assert [ref.key for ref in refs] == wanted
    assert all(ref.uri == f"{tmp_path}/cifar/{ref.key.partition('#')[0]}" and ref.etag for ref in refs)
    assert same(read(found), expected(range(6)))
    assert labels_of(found) == [CLASSES[label] for number in range(6) for label in batch(number)[0]]
    assert found.truth_schema.equals(LABEL_SCHEMA)
    assert [(one.name, one.id) for one in classes_of(found.truth_schema)] == [
        (name, number) for number, name in enumerate(CLASSES)
    ]
    assert len(pickle.dumps(found)) < 2000
    again = pickle.loads(pickle.dumps(found))
    assert list(again.refs()) == refs
    assert same(read(again, refs[2:9:3]), expected(range(6))[2:9:3])


@pytest.mark.parametrize("form", FORMS)
def test_splits(form: str, tmp_path: Path) -> None:
    folder = fill(tmp_path, form)
    assert same(read(source(str(folder), split="test")), expected([5]))
    assert same(read(source(str(folder), split="train")), expected(range(5)))
    with pytest.raises(UserError, match=r"input\.split: CIFAR-10 has train and test, got 'val'"):
        source(str(folder), split="val")
    test = list(source(str(folder), split="test").refs())
    with pytest.raises(UserError, match="no longer holds 'test_batch"):
        list(source(str(folder), split="train").refs(after=test[0]))


def test_the_picture_is_as_a_decoded_file(tmp_path: Path) -> None:
    (picture,) = read(source(str(fill(tmp_path, "binary"))), list(source(str(tmp_path)).refs())[:1])
    assert isinstance(picture, RawPicture)
    pixels, _ = picture.decode(full)
    assert pixels.is_contiguous(memory_format=torch.channels_last) or pixels.permute(1, 2, 0).is_contiguous()
    assert pixels[0, 0, 1] == batch(0)[1][0, 0, 0, 1]  # red, the first row, the second pixel
    pixels.zero_()  # it may be written to
    assert np.array_equal(pixels_of(picture), batch(0)[1][0])
    assert pickle.loads(pickle.dumps(picture)) == picture


def test_the_driver_needs_no_torch(tmp_path: Path) -> None:
    fill(tmp_path, "python")
    code = (
        "import sys; from cnnbatch.config.input import Input; from cnnbatch.sources import open_source;"
        f"from cnnbatch.storage import Storage; s = open_source(Input(url={str(tmp_path)!r}), Storage());"
        "assert len(list(s.refs())) == 21; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_own_class_names(tmp_path: Path) -> None:
    names = [f"class {number}" for number in range(10)]
    folder = fill(tmp_path, "binary")
    (folder / "batches.meta.txt").write_text("\r\n".join(names))
    assert labels_of(source(str(folder)))[0] == names[batch(0)[0][0]]
    (folder / "batches.meta.txt").write_text("\n".join(names[:9]))
    with pytest.raises(UserError, match=r"batches\.meta\.txt has 9 classes, expected 10"):
        source(str(folder))
    (folder / "batches.meta.txt").unlink()
    assert labels_of(source(str(folder)))[0] == CLASSES[batch(0)[0][0]]


@pytest.mark.parametrize("protocol", range(5))
def test_pickles_of_python_3(protocol: int, tmp_path: Path) -> None:
    folder = fill(tmp_path, "python")
    (folder / "test_batch").write_bytes(python_3(*batch(5), protocol))
    assert same(read(source(str(folder), split="test")), expected([5]))


# What is refused


class Command:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {Command.path}",)

    path = ""


@pytest.mark.parametrize("name", ["test_batch", "batches.meta"])
def test_no_code_of_a_pickle_runs(name: str, tmp_path: Path) -> None:
    folder = fill(tmp_path / "cifar", "python")
    Command.path = str(tmp_path / "touched")
    (folder / name).write_bytes(pickle.dumps({"labels": [1], "data": Command()}, 2))
    with pytest.raises(UserError, match=rf"{name} asks for posix\.system.*was not run\n  what to do: fetch"):
        keys(str(folder))
    assert not (tmp_path / "touched").exists()


def test_a_pickle_that_changes_behind_its_listing_runs_no_code_either(tmp_path: Path) -> None:
    folder = fill(tmp_path / "cifar", "python")
    found = source(str(folder))
    refs = [ImageRef(ref.key, ref.uri, ref.at, None, ref.columns) for ref in found.refs()]
    Command.path = str(tmp_path / "touched")
    (folder / "data_batch_1").write_bytes(pickle.dumps(Command(), 2))
    (folder / "data_batch_2").write_bytes(b"")
    results = read(found, refs)
    assert {failure(one) for one in results[:4]} == {("read", "unreadable")}
    assert same(results[4:], expected(range(2, 6)))
    assert not (tmp_path / "touched").exists()


NAMED = [
    "builtins eval",
    "numpy load",
    "numpy.core.multiarray fromfile",
    "numpy ndarray.tofile",
    "codecs decode",
]


@pytest.mark.parametrize(
    "name", [*NAMED, "_codecs decode", "copyreg _reconstructor", "numpy._core.multiarray scalar"]
)
def test_no_other_name_is_admitted(name: str, tmp_path: Path) -> None:
    folder = fill(tmp_path, "python")
    module, _, attribute = name.partition(" ")
    (folder / "test_batch").write_bytes(f"\x80\x02c{module}\n{attribute}\n.".encode("latin1"))
    with pytest.raises(UserError, match=re.escape(f"asks for {module}.{attribute}")):
        keys(str(folder), split="test")


def array_of(**state: Any) -> bytes:
    """Pickle a batch whose array's state was tampered with."""
    data = python_3([1, 2], np.zeros((2, 3, 32, 32), np.uint8))
    for old, new in state.values():
        assert old in data
        data = data.replace(old, new)
    return data


HOSTILE: list[tuple[bytes, str]] = [
    (b"", "is no whole pickle"),
    (b"\x80\x02}.", "expected CIFAR-10's `labels` and `data`"),
    (b"\x80\x02K\x01.", "is no whole pickle of a dictionary"),
    (b"\x80\x02K\x01r\xff\xff\xff\x7f.", "a dictionary: AttributeError"),  # in C: gigabytes of memo
    (b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.", "is no whole pickle"),
    (b"(" * 1000 + b".", "is no whole pickle"),
    (pickle.dumps({"fine_labels": [1], "data": b"x"}, 2), "holds fine_labels, data; expected"),
    (python_3([1], np.zeros((2, 3, 32, 32), np.uint8)), r"1 labels for pixels of the shape \(2, 3072\)"),
    (pickle.dumps({"labels": [1], "data": np.zeros((1, 3072), np.float32)}, 2), "an array of bytes"),
    (
        pickle.dumps({"labels": [1], "data": np.asfortranarray(np.zeros((2, 3072), np.uint8))}, 2),
        "row by row",
    ),
    (pickle.dumps({"labels": [1], "data": np.array([[object]], object)}, 2), "asks for __builtin__.object"),
    (
        array_of(shape=(b"K\x02M\x00\x0c\x86", b"J\x00\x00\x00\x7fM\x00\x0c\x86")),
        "bytes of an array of the shape",
    ),
    (python_3([1, 10], np.zeros((2, 3, 32, 32), np.uint8)), "record 1 has the label 10, expected 0 to 9"),
    (python_3([1, -1], np.zeros((2, 3, 32, 32), np.uint8)), "record 1 has the label -1, expected 0 to 9"),
    (pickle.dumps({"labels": ["cat"], "data": np.zeros((1, 3072), np.uint8)}, 2), "has the label cat"),
    (pickle.dumps({"labels": [1.0], "data": np.zeros((1, 3072), np.uint8)}, 2), "has the label 1.0"),
]


@pytest.mark.parametrize(("data", "message"), HOSTILE)
def test_pickles_that_are_no_batches(data: bytes, message: str, tmp_path: Path) -> None:
    folder = fill(tmp_path, "python")
    (folder / "test_batch").write_bytes(data)
    with pytest.raises(UserError, match=message):
        keys(str(folder), split="test")


@settings(max_examples=200)
@given(st.data())
def test_a_damaged_pickle_is_told(data: st.DataObject) -> None:
    raw = bytearray(python_2(*batch(1)))
    ends = [*range(200), *range(len(raw) - 80, len(raw))]
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.sampled_from(ends))] = data.draw(st.integers(0, 255))
    try:
        labels, pixels = _batch(bytes(raw), "test_batch")
    except UserError:
        return
    assert len(pixels) == 3072 * len(labels)


def test_files_that_are_no_records(tmp_path: Path) -> None:
    folder = fill(tmp_path, "binary")
    good = (folder / "test_batch.bin").read_bytes()
    for data, message in (
        (good[:-1], r"test_batch\.bin has 18,437 bytes, expected a multiple of 3,073"),
        (b"", r"test_batch\.bin has 0 bytes"),
        (
            good[: 3073 * 2] + b"\x0a" + good[3073 * 2 + 1 :],
            r"test_batch\.bin record 2 has the label 10, expected 0 to 9",
        ),
    ):
        (folder / "test_batch.bin").write_bytes(data)
        with pytest.raises(UserError, match=message):
            keys(str(folder))


def test_a_pickle_of_any_size_is_not_read(tmp_path: Path) -> None:
    folder = fill(tmp_path, "python")
    with open(folder / "test_batch", "r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match=r"test_batch has 1,099,511,627,776 bytes, expected at most"):
        keys(str(folder), split="test")


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    folder = fill(tmp_path, "binary")
    (folder / "data_batch_3.bin").unlink()
    with pytest.raises(UserError, match=r"data_batch_3\.bin cannot be read"):
        keys(str(folder))
    assert len(keys(str(folder), split="test")) == 6
    with pytest.raises(UserError, match=r"holds neither data_batch_1\.bin nor data_batch_1\n.*unpack"):
        source(str(tmp_path / "none"), format="cifar10")
    with pytest.raises(UserError, match="one folder, got 2 addresses"):
        source([str(folder), str(folder)], format="cifar10")
    with pytest.raises(UserError, match=r"input\.keep: .* is read as cifar10"):
        source(str(folder), keep=("x",))


@pytest.mark.parametrize("form", FORMS)
def test_files_that_change_or_vanish(form: str, tmp_path: Path) -> None:
    folder = fill(tmp_path / "cifar", form)
    found = source(str(folder))
    refs = list(found.refs())
    suffix = ".bin" if form == "binary" else ""
    (folder / f"data_batch_1{suffix}").write_bytes(b"another")
    (folder / f"data_batch_2{suffix}").unlink()
    results = read(found, refs)
    assert {failure(one) for one in results[:3]} == {("read", "unreadable")}
    assert failure(results[3]) == ("read", "not_found")
    assert same(results[4:], expected(range(2, 6)))
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(EnvironmentFault, match="missing or empty"):
        read(found, refs)


# Addresses


@settings(max_examples=30)
@given(st.data(), st.sampled_from(FORMS))
def test_any_picture_is_found_and_any_listing_resumed(data: st.DataObject, form: str) -> None:
    found, refs = listed(form)
    chosen = data.draw(st.lists(st.sampled_from(range(21)), unique=True).map(sorted))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(containers, "RANGE_BYTES", data.draw(st.sampled_from([1, 7000, 4 << 20])))
        patch.setattr(containers, "_GAP_BYTES", data.draw(st.sampled_from([0, 5000])))
        assert same(read(found, [refs[n] for n in chosen]), [expected(range(6))[n] for n in chosen])
    behind = data.draw(st.integers(0, 20))
    assert list(found.refs(after=refs[behind])) == refs[behind + 1 :]


@pytest.fixture(scope="module", autouse=True)
def _folders(tmp_path_factory: pytest.TempPathFactory) -> None:
    for form in FORMS:
        found = source(str(fill(tmp_path_factory.mktemp(form), form)))
        LISTED[form] = found, list(found.refs())


LISTED: dict[str, tuple[Source, list[ImageRef]]] = {}


def listed(form: str) -> tuple[Source, list[ImageRef]]:
    return LISTED[form]


@pytest.mark.parametrize("form", FORMS)
def test_a_bucket_gives_what_the_folder_gives(form: str, tmp_path: Path, bucket: Bucket) -> None:
    here = source(str(fill(tmp_path, form)))
    for name, data in data_set(form).items():
        bucket.put(f"cifar/{name}", data)
    there = pickle.loads(pickle.dumps(source(f"{bucket.url}/cifar", Storage(bucket.options))))
    assert isinstance(there, Cifar10)
    refs = list(there.refs())
    assert [(ref.key, ref.at, ref.columns) for ref in refs] == [
        (ref.key, ref.at, ref.columns) for ref in here.refs()
    ]
    assert same(read(there, refs[1:20:3]), expected(range(6))[1:20:3])
    assert labels_of(there) == labels_of(here)
    assert list(there.refs(after=refs[4])) == refs[5:]
