"""However large a shard is, only a bounded number of its images and bytes lie in memory."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow

from cnnbatch import readahead
from cnnbatch.errors import EnvironmentFault
from cnnbatch.journal import Journal
from cnnbatch.readahead import Item, ReadAhead, Reading
from cnnbatch.records import Failure, Image, ImageRef, Prepared, Shard

AHEAD = 8
COUNT = 500


def png() -> bytes:
    file = io.BytesIO()
    Pillow.new("RGB", (2, 2)).save(file, "PNG")
    return file.getvalue()


class Counted:
    """A source of which every image is the same file; it counts what was read, and fails where told."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.data, self.fails_at = png(), fails_at
        self.asked = 0
        self._lock = threading.Lock()

    def read(self, shard: Shard) -> Iterator[Callable[[], bytes | Failure]]:
        return iter([lambda ref=ref: self._one(int(ref.key)) for ref in shard.refs])

    def _one(self, number: int) -> bytes:
        with self._lock:
            self.asked += 1
        if number == self.fails_at:
            raise EnvironmentFault("the storage is down", "mend it")
        return self.data


class Patient:
    """A model that prepares nothing before ``open``."""

    def __init__(self) -> None:
        self.open = threading.Event()

    def decode_size(self, size: tuple[int, int]) -> None:
        return None

    def prepare(self, image: Image) -> Sequence[Prepared]:
        assert self.open.wait(60)
        return [Prepared(image.pixels, image.size)]


@pytest.fixture
def ahead(tmp_path: Path) -> Iterator[Callable[[Counted, Patient], ReadAhead]]:
    made: list[ReadAhead] = []

    def make(source: Any, model: Any) -> ReadAhead:
        made.append(ReadAhead(source, model, Journal(tmp_path / f"journal-{len(made)}"), 2, AHEAD))
        return made[-1]

    yield make
    for one in made:
        one.close()


def reading(count: int = COUNT) -> Reading:
    refs = tuple(ImageRef(str(number), str(number)) for number in range(count))
    return Reading(Shard(0, refs), range(count), {}, None)


def settled(number: Callable[[], int]) -> int:
    """Return ``number`` once it has not changed for a while."""
    while True:
        before = number()
        time.sleep(0.2)
        if number() == before:
            return before


def opened() -> Patient:
    model = Patient()
    model.open.set()
    return model


def test_no_more_images_are_read_than_the_window_holds(ahead: Any) -> None:
    source = Counted()
    most = 0
    taken: list[int] = []
    for item in ahead(source, opened()).items(reading()):
        most = max(most, source.asked - len(taken))
        taken.append(item.position)
    assert taken == list(range(COUNT))
    assert most <= AHEAD + 1  # The one that is just being taken has not made room yet.


def test_two_shards_in_flight_have_a_window_each(ahead: Any) -> None:
    source, one = Counted(), ahead
    shared = one(source, opened())
    first, second = shared.items(reading()), shared.items(reading())
    got: list[Item] = [next(first)]
    waiting = threading.Thread(target=lambda: got.append(next(second)), daemon=True)
    waiting.start()
    assert settled(lambda: source.asked) <= AHEAD + 1  # The second is fed once the first is all under way.
    first.close()
    waiting.join(60)
    assert settled(lambda: source.asked) <= 2 * (AHEAD + 1)
    second.close()


def test_undecoded_bytes_are_bounded(ahead: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source, model = Counted(), Patient()
    monkeypatch.setattr(readahead, "ENCODED_LIMIT_BYTES", 3 * len(source.data))
    monkeypatch.setattr(readahead, "UNREAD_LIMIT", 1)
    items = ahead(source, model).items(reading())
    taking = threading.Thread(target=lambda: next(items), daemon=True)
    taking.start()
    # Three lie undecoded, and one more is read by the thread that had found room for it.
    assert settled(lambda: source.asked) <= 4
    model.open.set()
    taking.join(60)
    items.close()


def test_who_stops_early_reads_no_further(ahead: Any) -> None:
    source = Counted()
    items = ahead(source, opened()).items(reading())
    next(items)
    items.close()
    assert settled(lambda: source.asked) <= AHEAD + 1


def test_a_fault_of_the_storage_comes_in_its_place(ahead: Any) -> None:
    items = ahead(Counted(fails_at=20), opened()).items(reading())
    assert [next(items).position for _ in range(20)] == list(range(20))
    with pytest.raises(EnvironmentFault, match="storage is down"):
        next(items)
