"""What an output keeps of what was forgotten: hashes, boxes and models, and a mark while it is under way."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cnnbatch.errors import UserError
from cnnbatch.output.folder import Output
from cnnbatch.output.forgotten import (
    Forgotten,
    Suppression,
    finish,
    key_hmac,
    require_whole,
    secret_of,
    suppress,
    unfinished,
)
from cnnbatch.output.ownership import discard_all
from cnnbatch.storage import Entry, Storage

ONE, TWO = "1" * 32, "2" * 32
BOX = (1.5, 2.0, 30.25, 40.0)


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return Output(str(tmp_path / "out"), Storage())


def entry(output: Output, key: str, *box: float, model: str | None = None) -> Suppression:
    x1, y1, x2, y2 = box or (0, 0, 0, 0)
    return Suppression(key_hmac(secret_of(output), key), (x1, y1, x2, y2) if box else None, model)


def test_a_key_is_hashed_as_the_standard_says(output: Output) -> None:
    secret = secret_of(output)
    assert len(secret) == 32
    assert secret_of(output) == secret
    for key in ("a.jpg", "ä/b c.png", "\udcff.jpg"):
        expected = hmac.new(secret, key.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()
        assert key_hmac(secret, key) == expected


def test_nothing_forgotten_costs_one_listing(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    listings: list[str] = []
    list_of = output.storage.list

    def counted(uri: str) -> Iterator[Entry]:
        listings.append(uri)
        return list_of(uri)

    monkeypatch.setattr(output.storage, "list", counted)
    monkeypatch.setattr(output.storage, "read", lambda uri: pytest.fail(f"{uri} was read"))
    found = require_whole(output)
    assert not found
    assert not found.is_whole("a.jpg")
    assert not found.names("a.jpg#3")
    assert not found.boxes("a.jpg", "w").size
    assert len(listings) == 1


def test_photos_regions_and_objects(output: Output) -> None:
    suppress(output, ONE, [entry(output, "a.jpg"), entry(output, "b.jpg", *BOX, model="w")], "INDEX")
    suppress(output, TWO, [entry(output, "b.jpg", 0, 0, 5, 5, model="w")], "INDEX")
    found = Forgotten.read(output)
    assert found.is_whole("a.jpg")
    assert found.is_whole("a.jpg#12")
    assert not found.is_whole("a.jpg#x")
    assert not found.is_whole("c.jpg")
    assert not found.names("c.jpg")
    assert not found.is_whole("b.jpg")
    assert not found.is_whole("b.jpg", "w")
    assert found.names("b.jpg")
    np.testing.assert_array_equal(found.boxes("b.jpg", "w"), [[0, 0, 5, 5], BOX])
    assert found.boxes("a.jpg", "w").shape == found.boxes("b.jpg", "v").shape == (0, 4)


def test_an_object_of_another_model_forgets_the_photo(output: Output) -> None:
    suppress(output, ONE, [entry(output, "b.jpg", *BOX, model="w")], "INDEX")
    assert Forgotten.read(output).is_whole("b.jpg", "v")


def test_no_file_has_a_key(output: Output) -> None:
    suppress(output, ONE, [entry(output, "some-person.jpg")], "INDEX")
    folder = Path(output.uri)
    for path in (path for path in folder.rglob("*") if path.is_file()):
        assert b"some-person" not in path.read_bytes()
    for path in folder.rglob("*.parquet"):
        assert "some-person" not in str(pq.read_table(path).to_pylist())


def test_until_it_is_finished_nothing_works_on_it(output: Output) -> None:
    for _ in range(2):  # A command that was killed gives the same again.
        suppress(output, ONE, [entry(output, "a.jpg")], "s3://bucket/the-index")
    with pytest.raises(UserError, match=r"cnnbatch forget s3://bucket/the-index"):
        require_whole(output)
    assert unfinished(output) == [ONE]
    assert Forgotten.read(output).is_whole("a.jpg")
    for _ in range(2):
        finish(output, ONE)
    assert unfinished(output) == []
    assert require_whole(output).is_whole("a.jpg")


def test_a_lost_secret_is_named_and_no_new_one_made(output: Output) -> None:
    suppress(output, ONE, [entry(output, "a.jpg")], "INDEX")
    finish(output, ONE)
    secret = Path(output.path("_job", "forgotten", "secret.json"))
    secret.write_text(json.dumps({"version": 1, "secret": "too short"}))
    with pytest.raises(UserError, match="secret.json is damaged"):
        require_whole(output)
    secret.unlink()
    with pytest.raises(UserError, match="secret.json is damaged: it is missing"):
        require_whole(output)


def test_damaged_entries_are_named(output: Output) -> None:
    suppress(output, ONE, [entry(output, "a.jpg")], "INDEX")
    Path(output.path("_job", "forgotten", "entries", f"{ONE}.parquet")).write_bytes(b"PAR1")
    with pytest.raises(UserError, match=rf"{ONE}.parquet is damaged"):
        Forgotten.read(output)


def test_an_output_that_is_begun_anew_stays_as_forgetful(output: Output) -> None:
    suppress(output, ONE, [entry(output, "a.jpg")], "INDEX")
    finish(output, ONE)
    output.decide("begun", {"task.name": "detect"})
    assert discard_all(output)
    assert not output.decided("begun")
    assert require_whole(output).is_whole("a.jpg")
